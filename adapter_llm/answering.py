"""Questions and an adapter state in, answers out: written side by side, each until its own end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from .adapter import AdapterState
from .batch import RunningBatch
from .device import seeded
from .llama import execution_device
from .model import AdapterLLM
from .processing import Processor, Question
from .results import GenerationOptions, NoNumbers, Result
from .writing import Draft


@dataclass(frozen=True)
class Answerer:
    """Draws answers; `max_length` limits prompt and answer together, None does not."""

    model: AdapterLLM
    processor: Processor
    max_length: int | None

    @property
    def device(self) -> torch.device:
        return execution_device(self.model.llama)

    def batch(self) -> RunningBatch:
        """An empty batch, for drafts to join."""
        return RunningBatch(self.model, self.processor.pad_token_id, self.device)

    def drafts(
        self,
        questions: Sequence[Question],
        state: AdapterState | None,
        has_media: Sequence[bool],
        options: GenerationOptions,
    ) -> list[Draft]:
        """An answer to each question, about its row of the state, of which nothing is written yet.

        Raises ValueError for a prompt that is empty or too long.
        """
        ids = [self.processor.prompt_ids(question, media) for question, media in zip(questions, has_media, strict=True)]
        rooms = self._rooms(list(map(len, ids)), options.max_new_tokens)
        ends = self.end_tokens()
        return [
            Draft(
                prompt=_asked(question),
                input_ids=ids[row],
                state=state[row : row + 1] if has_media[row] and state is not None else None,
                options=options,
                room=rooms[row],
                tokenizer=self.processor.tokenizer,
                ends=ends,
                device=self.device,
            )
            for row, question in enumerate(questions)
        ]

    def generate(
        self,
        questions: Sequence[Question],
        state: AdapterState | None,
        has_media: Sequence[bool],
        options: GenerationOptions,
    ) -> list[list[int]]:
        """New token ids of each question, without the token that ends an answer."""
        if options.num_beams > 1:
            return [ids for ids, _ in self._beams(questions, state, has_media, options)]
        return [draft.ids for draft in self.write(self.drafts(questions, state, has_media, options))]

    def write(self, drafts: Sequence[Draft]) -> Sequence[Draft]:
        """The same drafts, finished."""
        batch = self.batch()
        batch.join(drafts)
        while batch:
            batch.step()
        return drafts

    def pieces(self, draft: Draft) -> Iterator[str]:
        """Its text while it is written; who stops reading stops the model."""
        batch = self.batch()
        batch.join([draft])
        while batch:
            if piece := draft.take():
                yield piece
            batch.step()
        if piece := draft.take():
            yield piece
        if draft.error:
            raise NoNumbers

    def answer(
        self,
        questions: Sequence[Question],
        state: AdapterState | None,
        has_media: Sequence[bool],
        options: GenerationOptions,
    ) -> list[Result]:
        if options.num_beams == 1:
            return [draft.result() for draft in self.write(self.drafts(questions, state, has_media, options))]
        started, tokenizer = time.perf_counter(), self.processor.tokenizer
        found = self._beams(questions, state, has_media, options)
        seconds = time.perf_counter() - started
        return [
            Result(
                text=tokenizer.decode(ids, skip_special_tokens=True).strip(),
                prompt=_asked(question),
                n_tokens=len(ids),
                finish_reason=reason,
                seconds=seconds,
            )
            for question, (ids, reason) in zip(questions, found, strict=True)
        ]

    def end_tokens(self) -> set[int]:
        ends = self.model.llama.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        return {*ends, self.processor.tokenizer.eos_token_id}

    def _beams(
        self,
        questions: Sequence[Question],
        state: AdapterState | None,
        has_media: Sequence[bool],
        options: GenerationOptions,
    ) -> list[tuple[list[int], str]]:
        """New ids and the reason of their end, by transformers' search."""
        input_ids, mask = self.processor.tokenize(questions, has_media, self.device)
        rooms = self._rooms(mask.sum(dim=1).tolist(), options.max_new_tokens)
        options = replace(options, max_new_tokens=max(1, *rooms))
        with seeded(options.seed, self.device):
            output = self.model.generate(
                input_ids, mask, state, pad_token_id=self.processor.pad_token_id, **options.to_kwargs()
            )
        found, ends = [], self.end_tokens()
        for ids, room in zip(output[:, input_ids.shape[1] :].tolist(), rooms, strict=True):
            length = next((n for n, token in enumerate(ids[:room]) if token in ends), None)
            found.append((ids[:room], "length") if length is None else (ids[:length], "stop"))
        return found

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


def check_no_beams(options: GenerationOptions) -> None:
    """Raise ValueError for a search, which knows its answer at the end alone."""
    if options.num_beams > 1:
        raise ValueError("beams cannot be streamed: which one wins is known at the end; use ask")


def _asked(question: Question) -> str:
    return question if isinstance(question, str) else question[-1]["content"]
