"""The one way in for inference: media and a question in, words out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.config import Modality

from .adapter import AdapterState
from .checkpoint import Checkpoint, from_pretrained
from .device import choose_device, choose_dtype
from .processing import LoadedItem, MediaItem, Processor
from .prompts import DESCRIBE
from .results import GenerationOptions, Result
from .streaming import pieces, stripped

# what goes wrong with a single input, as opposed to with the program
INPUT_ERRORS = (ValueError, OSError)
KEYWORDS = {"image": Modality.VISION}


class Pipeline:
    """A loaded model. Keeps nothing between calls: hold the state of `adapt` to ask about an input again."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model = checkpoint.model
        self.config = checkpoint.config
        self.manifest = checkpoint.manifest
        self.processor = Processor(checkpoint.tokenizer, checkpoint.config)

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "weights/default",
        llm: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        modalities: Iterable[Modality | str] | None = None,
    ) -> Pipeline:
        """Load a weights folder or hub id, with the decoder it names or with `llm`. See `checkpoint`."""
        place = choose_device(device)
        kind = choose_dtype(dtype, place)
        return cls(from_pretrained(weights, llm, device=place, dtype=kind, modalities=modalities))

    @property
    def device(self) -> torch.device:
        return self.model.llama.device

    def ask(self, prompt: str | Sequence[dict] | None = None, *, image: Any = None, **options) -> str:
        """The answer to one question about any number of images, or about none.

        `image` is a source, a (source, weight) pair, or a list of either; a source is a path, URL, data URI,
        bytes, PIL image or array. Without a prompt a description is asked for. `options` are those of
        GenerationOptions, `weights` (a factor by modality) and `state` (from `adapt`, in place of media).
        """
        return self.result(prompt, image=image, **options).text

    def result(self, prompt: str | Sequence[dict] | None = None, *, image: Any = None, **options) -> Result:
        """Like `ask`, with the numbers."""
        question, state, options = self._prepare(prompt, options, image=image)
        return self._answer([question], state, [state is not None], options)[0]

    def stream(self, prompt: str | Sequence[dict] | None = None, *, image: Any = None, **options) -> Iterator[str]:
        """Like `ask`, in pieces as they are written. Leaving the loop stops the model."""
        question, state, options = self._prepare(prompt, options, image=image)
        if options.num_beams > 1:
            raise ValueError("beams cannot be streamed: which one wins is known at the end; use ask")

        def work(**kwargs) -> None:
            self._generate([question], state, [state is not None], options, **kwargs)

        return stripped(pieces(work, self.processor.tokenizer))

    def caption(
        self,
        images: Sequence[Any],
        prompt: str | Sequence[str] | None = None,
        *,
        batch_size: int = 8,
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
        chosen = GenerationOptions(**options)
        results: list[Result] = []
        for start in range(0, len(images), batch_size):
            results += self._caption_batch(
                images[start : start + batch_size], prompts[start : start + batch_size], chosen
            )
        return results

    def embed(self, *, image: Any = None, normalized: bool = True) -> Tensor:
        """One vector (E,) for the inputs: the mean over class tokens, of unit length if `normalized`."""
        vector = self.features(image=image).mean(0)
        return F.normalize(vector, dim=-1) if normalized else vector

    def features(self, *, image: Any = None, weights: dict[str, float] | None = None) -> Tensor:
        """What the connector reads of the inputs, mixed by weight: (N, E)."""
        items = media_items(weights, image=image)
        if not items:
            raise ValueError("there is nothing to look at; give image")
        return self._encode([self.processor.load(items)])[0][0]

    @torch.inference_mode()
    def adapt(self, *, image: Any = None, weights: dict[str, float] | None = None) -> AdapterState:
        """The state of one input, to be asked about many times: `ask(question, state=state)`."""
        items = media_items(weights, image=image)
        if not items:
            raise ValueError("there is nothing to look at; give image")
        return self._adapt([self.processor.load(items)])

    def _prepare(
        self, prompt: str | Sequence[dict] | None, options: dict[str, Any], image: Any
    ) -> tuple[str | Sequence[dict], AdapterState | None, GenerationOptions]:
        state, weights = options.pop("state", None), options.pop("weights", None)
        chosen = GenerationOptions(**options)
        items = media_items(weights, image=image)
        if state is not None and items:
            raise ValueError("give either media or a state, not both")
        if prompt is None and state is None and not items:
            raise ValueError("there is neither a prompt nor anything to describe; give one of them")
        if items:
            state = self._adapt([self.processor.load(items)])
        return DESCRIBE if prompt is None else prompt, state, chosen

    @torch.inference_mode()
    def _encode(self, questions: Sequence[Sequence[LoadedItem]]) -> tuple[Tensor, Tensor]:
        return self.model.encode(self.processor.stack(questions, self.device), len(questions))

    @torch.inference_mode()
    def _adapt(self, questions: Sequence[Sequence[LoadedItem]]) -> AdapterState:
        features, present = self._encode(questions)
        return self.model.adapt(features, None if all(questions) else present)

    def _generate(
        self,
        questions: Sequence[str | Sequence[dict]],
        state: AdapterState | None,
        has_media: Sequence[bool],
        options: GenerationOptions,
        **kwargs,
    ) -> Tensor:
        """New token ids (B, T)."""
        input_ids, mask = self.processor.tokenize(questions, has_media, self.device)
        with seeded(options.seed, self.device):
            output = self.model.generate(
                input_ids, mask, state, pad_token_id=self.processor.pad_token_id, **options.to_kwargs(), **kwargs
            )
        return output[:, input_ids.shape[1] :]

    def _answer(
        self,
        questions: Sequence[str | Sequence[dict]],
        state: AdapterState | None,
        has_media: Sequence[bool],
        options: GenerationOptions,
    ) -> list[Result]:
        started = time.perf_counter()
        new_ids = self._generate(questions, state, has_media, options)
        seconds = time.perf_counter() - started
        tokenizer, results = self.processor.tokenizer, []
        ends = self._end_tokens()
        for question, ids in zip(questions, new_ids.tolist(), strict=True):
            length = next((n for n, token in enumerate(ids) if token in ends), None)
            kept = ids if length is None else ids[:length]
            results.append(
                Result(
                    text=tokenizer.decode(kept, skip_special_tokens=True).strip(),
                    prompt=question if isinstance(question, str) else question[-1]["content"],
                    n_tokens=len(kept),
                    finish_reason="length" if length is None else "stop",
                    seconds=seconds,
                )
            )
        return results

    def _end_tokens(self) -> set[int]:
        ends = self.model.llama.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        return {*ends, self.processor.tokenizer.eos_token_id}

    def _caption_batch(
        self, images: Sequence[Any], prompts: Sequence[str], options: GenerationOptions
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
            state = self._adapt(list(loaded.values()))
            answers = self._answer([prompts[row] for row in rows], state, [True] * len(rows), options)
            results |= dict(zip(rows, answers, strict=True))
        return [results[row] for row in range(len(images))]


def media_items(weights: dict[str, float] | None = None, **media: Any) -> list[MediaItem]:
    """Keyword media (`image=...`) as items. Raises ValueError for a negative weight or an unknown keyword."""
    factors = weights or {}
    unknown = [name for name in [*media, *factors] if name not in KEYWORDS]
    if unknown:
        raise ValueError(f"unknown media {', '.join(unknown)}; there are {', '.join(KEYWORDS)}")
    items = []
    for name, given in media.items():
        entries = [] if given is None else given if isinstance(given, list) else [given]
        for entry in entries:
            source, weight = entry if isinstance(entry, tuple) else (entry, 1.0)
            weight = float(weight) * factors.get(name, 1.0)
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of {source!r} is {weight:g}; it must be a number from 0 up")
            items.append(MediaItem(KEYWORDS[name], source, weight))
    return items


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from this seed inside, and leave the program's own random numbers as they were."""
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
