"""An answer while it is being written: tokens go in one by one, text comes out as soon as it is certain."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .adapter import AdapterState
from .results import GenerationOptions, NoNumbers, Result, TokenLogprob
from .sampling import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_BEFORE = 6  # that a token's text is read after: what it says can depend on them


class Draft:
    """One answer: what it is drawn from, the tokens so far, and their text.

    `state` is of one row, or None; `room` is the most new tokens it may have, `ends` are the tokens that end it.
    """

    def __init__(
        self,
        prompt: str,
        input_ids: Sequence[int],
        state: AdapterState | None,
        options: GenerationOptions,
        room: int,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        device: torch.device,
    ) -> None:
        self.prompt, self.input_ids, self.state = prompt, list(input_ids), state
        self.options, self.room = options, room
        self.generator = generator(options.seed, device)
        self.ids: list[int] = []  # of the answer, without the token that ended it
        self.finish_reason: str | None = None  # None while it is being written
        self.error: str | None = None
        self._ends = ends
        self._likely: list[tuple[float, list[tuple[int, float]]]] = []  # of each id, if asked for
        self._text = _GrowingText(tokenizer, options.stop)
        self._tokenizer = tokenizer
        self._started = self._seconds = 0.0

    @property
    def prompt_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def begin(self) -> None:
        """Time runs from here, the first time that this is called. Without room for a token it is the end."""
        self._started = self._started or time.perf_counter()
        if self.room < 1:
            self.end("length")

    def add(self, token: int | None, logits: Tensor) -> None:
        """The next token, and the logits (V,) that it was drawn from; None if they are no numbers."""
        if token is None:
            self.error = str(NoNumbers())
            return self.end("error")
        if token in self._ends:
            return self.end("stop")
        self.ids.append(token)
        if self.options.top_logprobs is not None:
            shares = torch.log_softmax(logits, dim=-1)
            best = shares.topk(min(self.options.top_logprobs, len(shares)))
            top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            self._likely.append((float(shares[token]), top))
        if self.options.stop:
            self._text.read(self.ids)
            if self._text.stopped:
                return self.end("stop")
        if len(self.ids) >= self.room:
            self.end("length")

    def end(self, reason: str) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason
            self._seconds = time.perf_counter() - self._started if self._started else 0.0

    def take(self) -> str:
        """The text that is certain by now and was not taken before. Blanks at both ends of the answer never are."""
        self._text.read(self.ids, whole=self.finish_reason is not None)
        return self._text.take()

    def logprobs(self, start: int = 0) -> tuple[TokenLogprob, ...] | None:
        """Of the tokens from number `start` on; None if they were not asked for."""
        if self.options.top_logprobs is None:
            return None
        found = []
        for place in range(start, len(self.ids)):
            logprob, top = self._likely[place]
            before = self.ids[max(0, place - TOKENS_BEFORE) : place]
            texts = tuple((token_text(self._tokenizer, before, token), value) for token, value in top)
            found.append(TokenLogprob(token_text(self._tokenizer, before, self.ids[place]), logprob, texts))
        return tuple(found)

    def result(self) -> Result:
        """The finished answer. Raises ValueError while it is being written."""
        if self.finish_reason is None:
            raise ValueError("the answer is still being written")
        text = self._text.text if self._text.stopped else self._tokenizer.decode(self.ids, skip_special_tokens=True)
        return Result(
            text=text.strip(),
            prompt=self.prompt,
            n_tokens=self.n_tokens,
            finish_reason=self.finish_reason,
            seconds=self._seconds,
            error=self.error,
            prompt_tokens=self.prompt_tokens,
            logprobs=self.logprobs(),
        )


class _GrowingText:
    """The text of tokens that become more.

    A token's text depends on the one before it (a space is dropped where a text begins) and a character may take
    several tokens. So text is what a few tokens say more than the tokens of the last piece do by themselves.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.text = ""
        self.stopped = False
        self._start = self._said = 0  # tokens: where the last piece begins and ends
        self._read = 0  # tokens that were looked at
        self._whole = False
        self._taken = 0  # characters

    def read(self, ids: Sequence[int], whole: bool = False) -> None:
        """All tokens so far; `whole`: no more will come."""
        if self.stopped or (len(ids), whole) == (self._read, self._whole):
            return
        for end in range(self._read + 1, len(ids) + 1):
            self._add(ids, end, unfinished=False)
            if self.stopped:
                break
        else:
            if whole:
                self._add(ids, len(ids), unfinished=True)
        self._read, self._whole = len(ids), whole

    def take(self) -> str:
        """What is certain: not what may be a blank at the end, nor the beginning of a stop text."""
        end = len(self.text)
        if not (self.stopped or self._whole):
            end -= max((_overlap(self.text, stop) for stop in self.stop), default=0)
        begin = self._taken or len(self.text) - len(self.text.lstrip())
        end = len(self.text[:end].rstrip())
        if end <= begin:
            return ""
        self._taken = end
        return self.text[begin:end]

    def _add(self, ids: Sequence[int], end: int, unfinished: bool) -> None:
        before, now = (
            self.tokenizer.decode(ids[self._start : stop], skip_special_tokens=True) for stop in (self._said, end)
        )
        if len(now) > len(before) and (unfinished or not now.endswith("\ufffd")):
            old = len(self.text)
            self.text += now[len(before) :]
            self._start, self._said = self._said, end
            self._cut(old)

    def _cut(self, old: int) -> None:
        places = [self.text.find(stop, max(0, old - len(stop) + 1)) for stop in self.stop]
        if found := [place for place in places if place >= 0]:
            self.text, self.stopped = self.text[: min(found)], True


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text may be the beginning of a stop text."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


def token_text(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], token: int) -> str:
    """What a token adds to the text of those before it; a character of several tokens is the last one's."""
    old, new = (tokenizer.decode(ids) for ids in (before, [*before, token]))
    return new[len(list(takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))) :]
