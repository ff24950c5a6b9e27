"""Media in, what the decoder is told out: load, encode, mix, blend with an index, adapt.

Shapes: B batch, N features, E encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from imagebind_encoder.config import EncoderConfig, Modality

from .adapter import AdapterState
from .config import KEYWORDS, ClipConfig
from .encoding import INPUT_ERRORS, encode_items, settled
from .feature_cache import FeatureCache
from .model import AdapterLLM, concatenate, mix
from .processing import (
    InputOptions,
    LoadedItem,
    MediaItem,
    Processor,
    Question,
    check_modality,
    given_kinds,
    load_media,
    media_items,
)
from .prompts import describe, with_context
from .results import GenerationOptions
from .retrieval import FeatureIndex, RetrievalOptions, blend

OPTIONS = tuple(field.name for field in fields(InputOptions))
LOOKING = (*KEYWORDS, "weights", *OPTIONS, "retrieval")  # every keyword that has to do with media


@dataclass(frozen=True)
class Seen:
    """The media of one question, loaded, and how they are brought together."""

    items: list[LoadedItem]
    options: InputOptions
    retrieval: RetrievalOptions | None

    def __bool__(self) -> bool:
        return bool(self.items)


@dataclass(frozen=True)
class Request:
    """A call, sorted: what is asked, what is shown, and how to go about it."""

    question: Question
    seen: Seen
    state: AdapterState | None
    options: GenerationOptions


@dataclass(frozen=True)
class Perception:
    """From keyword media to features and adapter states. Keeps nothing of what it saw but in a cache it was given."""

    model: AdapterLLM
    processor: Processor
    index: FeatureIndex | None = None
    cache: FeatureCache | None = None

    @property
    def device(self) -> torch.device:
        """Where media go; a decoder that is shared out may begin elsewhere."""
        return next(self.model.encoder.parameters()).device

    def look(self, inputs: Mapping[str, Any]) -> Seen:
        """Load the media of one question, given by the keywords LOOKING: what is wrong with them is known at once."""
        media = {name: inputs[name] for name in KEYWORDS if name in inputs}
        items = media_items(inputs.get("weights"), **media)
        options = InputOptions(**{name: inputs[name] for name in OPTIONS if name in inputs})
        retrieval = inputs.get("retrieval")
        self.check(items, options, retrieval)
        load = load_media if self.cache is None else self._remembered
        return Seen(self.processor.load(items, options, load), options, retrieval)

    def media(self, inputs: Mapping[str, Any]) -> Seen:
        """Like `look`. Raises TypeError for what is no keyword of media, and ValueError if there are none."""
        if unknown := [name for name in inputs if name not in LOOKING]:
            raise TypeError(f"unknown keyword {', '.join(unknown)}; there are {', '.join(LOOKING)}")
        seen = self.look(inputs)
        if not seen:
            raise ValueError(f"there is nothing to look at; give {' or '.join(KEYWORDS)}")
        return seen

    def request(self, prompt: Question | None, inputs: dict[str, Any]) -> Request:
        """Sort the arguments of a call, and load its media: whatever is wrong with them is known at once."""
        state, context = (inputs.pop(name, None) for name in ("state", "context"))
        shown = {name: inputs.pop(name) for name in list(inputs) if name in LOOKING}
        options = GenerationOptions.of(inputs, LOOKING)
        kinds = given_kinds(shown)
        if state is not None and kinds:
            raise ValueError("give either media or a state, not both")
        if prompt is None and state is None and not kinds:
            raise ValueError("there is neither a prompt nor anything to describe; give one of them")
        seen = self.look(shown)
        return Request(with_context(describe(kinds) if prompt is None else prompt, context), seen, state, options)

    def _remembered(
        self, item: MediaItem, config: EncoderConfig | ClipConfig, options: InputOptions
    ) -> LoadedItem:
        """An item as its features, from the cache or looked at now."""

        def look() -> Tensor:
            return encode_items(self.model.encoder, [load_media(item, config, options)], self.device)[0]

        return LoadedItem(item.modality, item.weight, features=self.cache.features(item, options, look))

    def load_each(
        self, questions: Sequence[Mapping[str, Any]], options: InputOptions
    ) -> tuple[dict[int, list[LoadedItem]], dict[int, str]]:
        """The media of many questions by row, and the error of each row that cannot be read.

        Recordings that are read in windows are encoded here, so that one that breaks off half-way breaks no other.
        """
        found: dict[int, list[LoadedItem]] = {}
        errors: dict[int, str] = {}
        for row, media in enumerate(questions):
            try:
                items = self.processor.load(media_items(**media), options)
                if not items:
                    raise ValueError(f"there is no {' or '.join(media)}")
                found[row] = [settled(self.model.encoder, item, self.device) for item in items]
            except INPUT_ERRORS as error:
                errors[row] = " ".join(str(error).split())
        return found, errors

    def check(
        self, items: Sequence[MediaItem], options: InputOptions, retrieval: RetrievalOptions | None
    ) -> None:
        """Raise ValueError for what cannot be done with these items, before any is read."""
        if retrieval is not None and self.index is None:
            raise ValueError("there is no index to look into; give one when the pipeline is loaded: index=FILE")
        if not items:
            if options != InputOptions():
                raise ValueError(f"{', '.join(OPTIONS)} are about media; give some, or leave these out")
            return
        if self.model.encoder is None:
            raise ValueError("the encoder was released, so nothing new can be looked at; load the pipeline again")
        config, used = self.processor.config, [item for item in items if item.weight > 0]
        for item in items:
            check_modality(item.keyword, config.encoder)
            if item.modality not in self.model.encoder.modalities:
                raise ValueError(f"this pipeline was loaded without {item.keyword}; name it in media= when loading")
        several = len(used) > 1
        if several and options.keeps_windows and options.mix == "average":
            raise ValueError('pool="none" keeps features that cannot be averaged with other inputs; add mix="concat"')
        if config.connector.kind == "bridge" and (options.keeps_windows or (several and options.mix == "concat")):
            raise ValueError(
                "the connector of these weights reads one feature an input: it takes "
                'mix="average" and pool="mean" or "max" alone'
            )
        trunks = getattr(config.encoder, "trunks", {})  # CLIP has one kind of input
        if options.mix == "average" and len({trunks[item.modality].num_cls_tokens for item in used if trunks}) > 1:
            raise ValueError('inputs of these kinds have different numbers of features to average; use mix="concat"')

    @torch.inference_mode()
    def mixed(self, questions: Sequence[Sequence[LoadedItem]], options: InputOptions) -> Tensor | list[Tensor]:
        """What each question's media are together, before any blend: (B, N, E), or B times (N, E) of any N."""
        items = [item for question in questions for item in question]
        rows = [row for row, question in enumerate(questions) for _ in question]
        weights = [item.weight for item in items]
        features = encode_items(self.model.encoder, items, self.device)
        unit_length = self.model.encoder.unit_length
        if options.mix == "concat" or options.keeps_windows:
            return concatenate(features, rows, weights, len(questions), unit_length)

        def average(numbers: Sequence[int]) -> Tensor:
            found = torch.stack([features[number] for number in numbers])
            chosen = [torch.tensor([of[number] for number in numbers], device=found.device) for of in (rows, weights)]
            return mix(found, *chosen, len(questions), unit_length)

        counts = {len(feature) for feature in features}
        if len(counts) == 1:
            return average(range(len(items)))
        mixed = [features[0].new_zeros(1, features[0].shape[1]) for _ in questions]
        for count in counts:  # of kinds that have features in other numbers; no row has two of them, see `check`
            numbers = [number for number, feature in enumerate(features) if len(feature) == count]
            together = average(numbers)
            for row in {rows[number] for number in numbers}:
                mixed[row] = together[row]
        return mixed

    @torch.inference_mode()
    def features(
        self, questions: Sequence[Sequence[LoadedItem]], options: InputOptions, retrieval: RetrievalOptions | None
    ) -> Tensor | list[Tensor]:
        """What the connector reads: `mixed`, blended with the index if there is one."""
        features = self.mixed(questions, options)
        if self.index is None:
            return features
        settings = retrieval or RetrievalOptions()
        if isinstance(features, Tensor):
            return blend(features, self.index, settings)
        return [blend(feature, self.index, settings) for feature in features]

    @torch.inference_mode()
    def adapt(
        self,
        questions: Sequence[Sequence[LoadedItem]],
        options: InputOptions = InputOptions(),
        retrieval: RetrievalOptions | None = None,
    ) -> AdapterState:
        """The decoder's states of a batch of questions; those without media get closed gates."""
        features = self.features(questions, options, retrieval)
        present = torch.tensor([bool(items) for items in questions], device=self.device)
        return self.model.adapt(features, None if all(questions) else present)

    @torch.inference_mode()
    def head_outputs(self, seen: Seen) -> tuple[dict[Modality, Tensor], Tensor, Tensor]:
        """Head outputs (M, N, E) of whole inputs, the row of each, which is 0, and their weights: for image generators.

        Raises ValueError for recordings in windows.
        """
        outputs: dict[Modality, list[Tensor]] = {}
        weights: dict[Modality, list[float]] = {}
        for item in seen.items:
            if item.tensor is None:
                raise ValueError("pictures are generated from whole inputs; leave window, hop and pool out")
            found = self.model.encoder.head_outputs({item.modality: item.tensor[None].to(self.device)})
            outputs.setdefault(item.modality, []).append(found[item.modality])
            weights.setdefault(item.modality, []).append(item.weight)
        in_order = torch.tensor([weight for found in weights.values() for weight in found], device=self.device)
        rows = torch.zeros(len(in_order), dtype=torch.long, device=self.device)
        return {name: torch.cat(found) for name, found in outputs.items()}, rows, in_order

    def state(self, seen: Seen) -> AdapterState:
        return self.adapt([seen.items], seen.options, seen.retrieval)
