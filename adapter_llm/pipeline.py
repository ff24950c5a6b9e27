"""The one way in for inference: media and a question in, words out.

Everywhere below, media are keywords, `image`, `video`, `audio`, `text`, `depth`, `thermal`, `imu` and `point`: a
source, a (source, weight) pair, or a list of either; a source is a path, URL, data URI, bytes, PIL image or array,
and for `text` the words themselves. `weights` is a factor by keyword, `window`, `hop`, `pool` and `mix` are those of
InputOptions, and `retrieval` the RetrievalOptions of the blend with an index, if one is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.config import EncoderConfig

from .adapter import AdapterState
from .answering import Answerer, check_no_beams
from .batch import RunningBatch
from .checkpoint import Checkpoint, from_pretrained
from .device import choose_device, choose_dtype
from .encoders import find_encoder
from .feature_cache import FeatureCache
from .llama import execution_device
from .perception import OPTIONS, Perception, Request
from .processing import (
    InputOptions,
    LoadedItem,
    MediaItem,
    Processor,
    Question,
    keywords_of,
    modalities_of,
)
from .prompts import describe
from .results import GenerationOptions, NoNumbers, Result
from .retrieval import FeatureIndex, RetrievalOptions, generation_vector
from .settings import as_published, with_settings
from .writing import Draft

if TYPE_CHECKING:
    from .explain import Explanation

ORIGINAL_LENGTH = 512  # tokens of prompt and answer together, in LLaMA-Adapter V2 and ImageBind-LLM


class Pipeline:
    """A loaded model. Keeps nothing between calls: hold the state of `adapt` to ask about an input again.

    `faithful` follows the originals where they limit what can be asked: see docs/checkpoints.md. With an `index`
    features are blended with their neighbours in it, unless `retrieval` says otherwise. `settings` change how files
    are read, {"imu.rate": 50}: see settings.with_settings.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        faithful: bool = False,
        index: FeatureIndex | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        width = checkpoint.config.encoder.embedding_dim
        if index is not None and index.width != width:
            raise ValueError(f"the index holds vectors of {index.width} numbers and these weights make {width}")
        self.model = checkpoint.model
        config = as_published(checkpoint.config) if faithful else checkpoint.config
        self.config = with_settings(config, settings or {})
        self.manifest = checkpoint.manifest
        self.changes = checkpoint.changes
        self.processor = Processor(checkpoint.tokenizer, self.config)
        self.perception = Perception(self.model, self.processor, index)
        context = getattr(self.model.llama.config, "max_position_embeddings", None)
        self.answerer = Answerer(self.model, self.processor, ORIGINAL_LENGTH if faithful else context)

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "weights/default",
        llm: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        media: Iterable[str] | None = None,
        index: str | Path | None = None,
        faithful: bool = False,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Pipeline:
        """Load a weights folder or hub id, with the decoder it names or with `llm`; `index` is a feature index's file.

        `media` are keywords of what will be looked at: only their trunks are loaded, by default all. `options` are
        `allow_base_mismatch`, `device_map`, `max_memory` and `offload_folder`: see `checkpoint`.
        """
        modalities = None if media is None else modalities_of(media, find_encoder(weights)[1].encoder)
        place = choose_device(device)
        kind = choose_dtype(dtype, place)
        stored = None if index is None else FeatureIndex.open(index)
        checkpoint = from_pretrained(weights, llm, device=place, dtype=kind, modalities=modalities, **options)
        return cls(checkpoint, faithful=faithful, index=stored, settings=settings)

    @property
    def device(self) -> torch.device:
        return execution_device(self.model.llama)

    @property
    def index(self) -> FeatureIndex | None:
        return self.perception.index

    @property
    def keywords(self) -> list[str]:
        """Media that these weights take, of those whose trunks were loaded."""
        return keywords_of(self.config.encoder, self.model.encoder.modalities)

    def ask(self, prompt: Question | None = None, **inputs: Any) -> str:
        """The answer to one question about any number of media, or about none.

        Without a prompt a description is asked for. `inputs` are media, the options of GenerationOptions, `context`
        (a text the question is about), and `state` (from `adapt`, in place of media).
        """
        return self.result(prompt, **inputs).text

    def result(self, prompt: Question | None = None, **inputs: Any) -> Result:
        """Like `ask`, with the numbers."""
        request = self.perception.request(prompt, inputs)
        state = self._state_of(request)
        [result] = self.answerer.answer([request.question], state, [state is not None], request.options)
        if result.error:
            raise NoNumbers
        return result

    def stream(self, prompt: Question | None = None, **inputs: Any) -> Iterator[str]:
        """Like `ask`, in pieces as they are written. The model works while a piece is waited for, and no longer."""
        return self.answerer.pieces(self.draft(prompt, **inputs))

    def draft(self, prompt: Question | None = None, **inputs: Any) -> Draft:
        """Like `ask`, up to where the answer begins: the draft is written in a `batch`, among others."""
        request = self.perception.request(prompt, inputs)
        check_no_beams(request.options)
        state = self._state_of(request)
        return self.answerer.drafts([request.question], state, [state is not None], request.options)[0]

    def drafts(
        self,
        questions: Sequence[Question],
        items: Sequence[Sequence[LoadedItem]],
        options: GenerationOptions,
        looking: InputOptions = InputOptions(),
        retrieval: RetrievalOptions | None = None,
    ) -> list[Draft]:
        """A draft for each question about its own media, loaded by the processor; what is alike is encoded together."""
        check_no_beams(options)
        self.perception.check([], InputOptions(), retrieval)
        state = self.perception.adapt(items, looking, retrieval) if any(items) else None
        return self.answerer.drafts(questions, state, [bool(media) for media in items], options)

    def batch(self) -> RunningBatch:
        """Nothing yet: drafts join it and are written together."""
        return self.answerer.batch()

    def explain(self, prompt: Question | None = None, *, answer: Any = None, **inputs: Any) -> Explanation:
        """The answer of `ask`, or one that was written before (`Draft.ids`), and how it came about: docs/explain.md."""
        from .explain import explain  # looks at every layer: nothing of it is needed otherwise

        return explain(self.cached(None), prompt, answer, **inputs)  # it looks at the inputs themselves

    def caption(
        self,
        sources: Sequence[Any],
        prompt: str | Sequence[str] | None = None,
        *,
        keyword: str = "image",
        batch_size: int = 8,
        **options: Any,
    ) -> list[Result]:
        """An answer for each picture, or for each input of another kind that `keyword` names, in order.

        One that cannot be read gets a Result with its `error`, and the others go on. `options` are those of
        GenerationOptions and InputOptions, and `retrieval`.
        """
        if batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        prompt = describe([keyword]) if prompt is None else prompt
        prompts = [prompt] * len(sources) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(sources):
            raise ValueError(f"{len(sources)} inputs and {len(prompts)} prompts; give one prompt, or one an input")
        if not all(one.strip() for one in prompts):
            raise ValueError("a prompt is empty; ask something, or give no prompt for a description")
        retrieval = options.pop("retrieval", None)
        looking = InputOptions(**{name: options.pop(name) for name in list(options) if name in OPTIONS})
        self.perception.check([MediaItem(keyword, None)], looking, retrieval)
        chosen = GenerationOptions(**options)
        results: list[Result] = []
        for start in range(0, len(sources), batch_size):
            batch = slice(start, start + batch_size)
            items = [{keyword: source} for source in sources[batch]]
            found, errors = self.perception.load_each(items, looking)
            results += self._answers(found, errors, prompts[batch], looking, retrieval, chosen)
        return results

    def embed(self, *, normalized: bool = True, **media: Any) -> Tensor:
        """One vector (E,) for the inputs: the mean over class tokens, of unit length if `normalized`.

        It is what the connector reads, blended with the index if there is one; not normalised it is shorter the less
        tokens and inputs agree. Logit scales never count here: features are mixed as directions. Vectors to search
        with, sums of several inputs, and logit scales on request: `space.embedder.Embedder`, docs/retrieval.md.
        """
        vector = self.features(**media).mean(0)
        return F.normalize(vector, dim=-1) if normalized else vector

    def features(self, **media: Any) -> Tensor:
        """What the connector reads of the inputs, mixed by weight: (N, E)."""
        seen = self.perception.media(media)
        return self.perception.features([seen.items], seen.options, seen.retrieval)[0]

    def adapt(self, **media: Any) -> AdapterState:
        """The state of one input, to be asked about many times: `ask(question, state=state)`."""
        return self.perception.state(self.perception.media(media))

    def cached(self, cache: FeatureCache | None) -> Pipeline:
        """The same pipeline, not a copy of its model, with a memory of the media that it was given; None: without."""
        other = copy.copy(self)
        other.perception = replace(self.perception, cache=cache)
        return other

    def release_encoder(self) -> None:
        """Free the encoder's memory, for good: from now on questions are about states that were made before."""
        self.model.encoder = None

    @torch.inference_mode()
    def image_embeds(self, **media: Any) -> Tensor:
        """The vector (1, E) that diffusers' StableUnCLIPImg2ImgPipeline takes as `image_embeds`."""
        if not isinstance(self.config.encoder, EncoderConfig):
            raise ValueError("these weights see through CLIP; pictures are generated from ImageBind's features")
        seen = self.perception.media(media)
        outputs, rows, weights = self.perception.head_outputs(seen)
        return generation_vector(outputs, rows, weights, 1, self.index, seen.retrieval or RetrievalOptions())

    def _state_of(self, request: Request) -> AdapterState | None:
        return self.perception.state(request.seen) if request.seen else request.state

    def _answers(
        self,
        found: dict[int, list[LoadedItem]],
        errors: dict[int, str],
        prompts: Sequence[str],
        looking: InputOptions,
        retrieval: RetrievalOptions | None,
        options: GenerationOptions,
    ) -> list[Result]:
        """The results of a batch, some of whose rows were loaded and the others not."""
        results = {
            row: Result("", prompts[row], finish_reason="error", error=message) for row, message in errors.items()
        }
        if found:
            rows = list(found)
            state = self.perception.adapt(list(found.values()), looking, retrieval)
            answers = self.answerer.answer([prompts[row] for row in rows], state, [True] * len(rows), options)
            results |= dict(zip(rows, answers, strict=True))
        return [results[row] for row in range(len(prompts))]
