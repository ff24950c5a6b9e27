"""The one way in for inference: media and a question in, words out.

Everywhere below, media are keywords, `image` and `point`: a source, a (source, weight) pair, or a list of either; a
source is a path, URL, data URI, bytes, PIL image or array. `weights` is a factor by keyword, and `retrieval` the
RetrievalOptions of the blend with an index, if one is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.config import EncoderConfig, Modality

from .adapter import AdapterState
from .answering import Answerer
from .checkpoint import Checkpoint, from_pretrained
from .device import choose_device, choose_dtype
from .llama import execution_device
from .processing import KEYWORDS, LoadedItem, Processor, Question, as_published, media_items
from .prompts import DESCRIBE, with_context
from .results import GenerationOptions, Result
from .retrieval import FeatureIndex, RetrievalOptions, blend, generation_vector
from .streaming import pieces, stripped

# what goes wrong with a single input, as opposed to with the program
INPUT_ERRORS = (ValueError, OSError)
ORIGINAL_LENGTH = 512  # tokens of prompt and answer together, in LLaMA-Adapter V2 and ImageBind-LLM


@dataclass(frozen=True)
class Request:
    """A call, sorted: what is asked, what is shown, and how to go about it."""

    question: Question
    items: list
    state: AdapterState | None
    options: GenerationOptions
    retrieval: RetrievalOptions | None


class Pipeline:
    """A loaded model. Keeps nothing between calls: hold the state of `adapt` to ask about an input again.

    `faithful` follows the originals where they limit what can be asked: see docs/checkpoints.md. With an `index`
    features are blended with their neighbours in it, unless `retrieval` says otherwise.
    """

    def __init__(self, checkpoint: Checkpoint, *, faithful: bool = False, index: FeatureIndex | None = None) -> None:
        width = checkpoint.config.encoder.embedding_dim
        if index is not None and index.width != width:
            raise ValueError(f"the index holds vectors of {index.width} numbers and these weights make {width}")
        self.model = checkpoint.model
        self.config = as_published(checkpoint.config) if faithful else checkpoint.config
        self.manifest = checkpoint.manifest
        self.changes = checkpoint.changes
        self.index = index
        self.processor = Processor(checkpoint.tokenizer, self.config)
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
        modalities: Iterable[Modality | str] | None = None,
        index: str | Path | None = None,
        faithful: bool = False,
        **options: Any,
    ) -> Pipeline:
        """Load a weights folder or hub id, with the decoder it names or with `llm`; `index` is a feature index's file.

        `options` are `allow_base_mismatch`, `device_map`, `max_memory` and `offload_folder`: see `checkpoint`.
        """
        place = choose_device(device)
        kind = choose_dtype(dtype, place)
        stored = None if index is None else FeatureIndex.open(index)
        checkpoint = from_pretrained(weights, llm, device=place, dtype=kind, modalities=modalities, **options)
        return cls(checkpoint, faithful=faithful, index=stored)

    @property
    def device(self) -> torch.device:
        return execution_device(self.model.llama)

    @property
    def encoder_device(self) -> torch.device:
        """Where media go; a decoder that is shared out may begin elsewhere."""
        return next(self.model.encoder.parameters()).device

    @property
    def keywords(self) -> list[str]:
        """Media that these weights can see."""
        return [name for name, modality in KEYWORDS.items() if modality in self.model.encoder.modalities]

    def ask(self, prompt: Question | None = None, **inputs: Any) -> str:
        """The answer to one question about any number of media, or about none.

        Without a prompt a description is asked for. `inputs` are media, the options of GenerationOptions, `context`
        (a text the question is about), and `state` (from `adapt`, in place of media).
        """
        return self.result(prompt, **inputs).text

    def result(self, prompt: Question | None = None, **inputs: Any) -> Result:
        """Like `ask`, with the numbers."""
        request = self._request(prompt, inputs)
        state = self._state_of(request)
        return self.answerer.answer([request.question], state, [state is not None], request.options)[0]

    def stream(self, prompt: Question | None = None, **inputs: Any) -> Iterator[str]:
        """Like `ask`, in pieces as they are written. Leaving the loop stops the model."""
        request = self._request(prompt, inputs)
        if request.options.num_beams > 1:
            raise ValueError("beams cannot be streamed: which one wins is known at the end; use ask")
        state = self._state_of(request)

        def work(**kwargs) -> None:
            self.answerer.generate([request.question], state, [state is not None], request.options, **kwargs)

        return stripped(pieces(work, self.processor.tokenizer))

    def caption(
        self,
        images: Sequence[Any],
        prompt: str | Sequence[str] | None = None,
        *,
        batch_size: int = 8,
        retrieval: RetrievalOptions | None = None,
        **options,
    ) -> list[Result]:
        """An answer for each image, in order; one that cannot be read gets a Result with its `error`."""
        if batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        prompt = DESCRIBE if prompt is None else prompt
        prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(images):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts; give one prompt, or one an image")
        if not all(one.strip() for one in prompts):
            raise ValueError("a prompt is empty; ask something, or give no prompt for a description")
        self._check(True, retrieval)
        chosen = GenerationOptions(**options)
        results: list[Result] = []
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            results += self._caption_batch(images[batch], prompts[batch], chosen, retrieval)
        return results

    def embed(self, *, normalized: bool = True, **media: Any) -> Tensor:
        """One vector (E,) for the inputs: the mean over class tokens, of unit length if `normalized`."""
        vector = self.features(**media).mean(0)
        return F.normalize(vector, dim=-1) if normalized else vector

    def features(self, **media: Any) -> Tensor:
        """What the connector reads of the inputs, mixed by weight: (N, E)."""
        items, retrieval = self._media(media)
        return self._encode([items], retrieval)[0][0]

    @torch.inference_mode()
    def encode(self, questions: Sequence[Sequence[LoadedItem]]) -> Tensor:
        """Mixed features (B, N, E) of media that `processor.load` gave, before any blend."""
        return self.model.encode(self.processor.stack(questions, self.encoder_device), len(questions))[0]

    @torch.inference_mode()
    def adapt(self, **media: Any) -> AdapterState:
        """The state of one input, to be asked about many times: `ask(question, state=state)`."""
        items, retrieval = self._media(media)
        return self._adapt([items], retrieval)

    def release_encoder(self) -> None:
        """Free the encoder's memory, for good: from now on questions are about states that were made before."""
        self.model.encoder = None

    @torch.inference_mode()
    def image_embeds(self, **media: Any) -> Tensor:
        """The vector (1, E) that diffusers' StableUnCLIPImg2ImgPipeline takes as `image_embeds`."""
        if not isinstance(self.config.encoder, EncoderConfig):
            raise ValueError("these weights see through CLIP; pictures are generated from ImageBind's features")
        items, retrieval = self._media(media)
        batches = self.processor.stack([items], self.encoder_device)
        outputs = self.model.encoder.head_outputs({name: batch.tensor for name, batch in batches.items()})
        rows = torch.cat([batch.rows for batch in batches.values()])
        weights = torch.cat([batch.weights for batch in batches.values()])
        outputs = {name: outputs[name] for name in batches}
        return generation_vector(outputs, rows, weights, 1, self.index, retrieval or RetrievalOptions())

    def _media(self, inputs: dict[str, Any]) -> tuple[list[LoadedItem], RetrievalOptions | None]:
        """Media keywords, loaded. Raises ValueError if there are none."""
        retrieval = inputs.pop("retrieval", None)
        items = media_items(**inputs)
        if not items:
            raise ValueError(f"there is nothing to look at; give {' or '.join(KEYWORDS)}")
        self._check(True, retrieval)
        return self.processor.load(items), retrieval

    def _check(self, looks: bool, retrieval: RetrievalOptions | None) -> None:
        """Raise ValueError for what this pipeline cannot do, before anything is read."""
        if retrieval is not None and self.index is None:
            raise ValueError("there is no index to look into; give one when the pipeline is loaded: index=FILE")
        if looks and self.model.encoder is None:
            raise ValueError("the encoder was released, so nothing new can be looked at; load the pipeline again")

    def _request(self, prompt: Question | None, inputs: dict[str, Any]) -> Request:
        """Sort the arguments of a call, and load its media: whatever is wrong with them is known at once."""
        media = {name: inputs.pop(name) for name in KEYWORDS if name in inputs}
        state, weights, context, retrieval = (
            inputs.pop(name, None) for name in ("state", "weights", "context", "retrieval")
        )
        options = GenerationOptions(**inputs)
        items = media_items(weights, **media)
        if state is not None and items:
            raise ValueError("give either media or a state, not both")
        if prompt is None and state is None and not items:
            raise ValueError("there is neither a prompt nor anything to describe; give one of them")
        self._check(bool(items), retrieval)
        question = with_context(DESCRIBE if prompt is None else prompt, context)
        return Request(question, self.processor.load(items), state, options, retrieval)

    @torch.inference_mode()
    def _state_of(self, request: Request) -> AdapterState | None:
        return self._adapt([request.items], request.retrieval) if request.items else request.state

    @torch.inference_mode()
    def _encode(
        self, questions: Sequence[Sequence[LoadedItem]], retrieval: RetrievalOptions | None
    ) -> tuple[Tensor, Tensor]:
        features, present = self.model.encode(self.processor.stack(questions, self.encoder_device), len(questions))
        if self.index is not None:
            features = blend(features, self.index, retrieval or RetrievalOptions())
        return features, present

    @torch.inference_mode()
    def _adapt(
        self, questions: Sequence[Sequence[LoadedItem]], retrieval: RetrievalOptions | None = None
    ) -> AdapterState:
        features, present = self._encode(questions, retrieval)
        return self.model.adapt(features, None if all(questions) else present)

    def _caption_batch(
        self,
        images: Sequence[Any],
        prompts: Sequence[str],
        options: GenerationOptions,
        retrieval: RetrievalOptions | None,
    ) -> list[Result]:
        results: dict[int, Result] = {}
        loaded: dict[int, list[LoadedItem]] = {}
        for row, image in enumerate(images):
            try:
                loaded[row] = self.processor.load(media_items(image=image))
                if not loaded[row]:
                    raise ValueError("there is no image")
            except INPUT_ERRORS as error:
                loaded.pop(row, None)
                message = " ".join(str(error).split())
                results[row] = Result("", prompts[row], finish_reason="error", error=message)
        if loaded:
            rows = list(loaded)
            state = self._adapt(list(loaded.values()), retrieval)
            answers = self.answerer.answer([prompts[row] for row in rows], state, [True] * len(rows), options)
            results |= dict(zip(rows, answers, strict=True))
        return [results[row] for row in range(len(images))]
