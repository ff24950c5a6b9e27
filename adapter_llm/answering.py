"""Questions and an adapter state in, answers out: the loop around the model's generate, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .adapter import AdapterState
from .device import seeded
from .llama import execution_device
from .model import AdapterLLM
from .processing import Processor, Question
from .results import GenerationOptions, Result


@dataclass(frozen=True)
class Answerer:
    """Draws answers; `max_length` limits prompt and answer together, None does not."""

    model: AdapterLLM
    processor: Processor
    max_length: int | None

    @property
    def device(self) -> torch.device:
        return execution_device(self.model.llama)

    def generate(
        self,
        questions: Sequence[Question],
        state: AdapterState | None,
        has_media: Sequence[bool],
        options: GenerationOptions,
        **kwargs,
    ) -> list[list[int]]:
        """New token ids of each question, never more than there is room for."""
        input_ids, mask = self.processor.tokenize(questions, has_media, self.device)
        rooms = self._rooms(mask.sum(dim=1).tolist(), options.max_new_tokens)
        options = replace(options, max_new_tokens=max(1, *rooms))
        with seeded(options.seed, self.device):
            output = self.model.generate(
                input_ids, mask, state, pad_token_id=self.processor.pad_token_id, **options.to_kwargs(), **kwargs
            )
        new_ids = output[:, input_ids.shape[1] :].tolist()
        return [ids[:room] for ids, room in zip(new_ids, rooms, strict=True)]

    def _rooms(self, lengths: Sequence[int], wanted: int) -> list[int]:
        """How many tokens each answer may have. Raises ValueError for a prompt that is too long by itself."""
        if self.max_length is None:
            return [wanted] * len(lengths)
        if max(lengths) > self.max_length:
            raise ValueError(
                f"a prompt has {max(lengths)} tokens, and prompt and answer together may have {self.max_length}; "
                "shorten it"
            )
        return [min(wanted, self.max_length - length) for length in lengths]

    def answer(
        self,
        questions: Sequence[Question],
        state: AdapterState | None,
        has_media: Sequence[bool],
        options: GenerationOptions,
    ) -> list[Result]:
        started = time.perf_counter()
        new_ids = self.generate(questions, state, has_media, options)
        seconds = time.perf_counter() - started
        tokenizer, results = self.processor.tokenizer, []
        ends = self.end_tokens()
        for question, ids in zip(questions, new_ids, strict=True):
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

    def end_tokens(self) -> set[int]:
        ends = self.model.llama.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        return {*ends, self.processor.tokenizer.eos_token_id}
