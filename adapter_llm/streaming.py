"""Text while it is being written: generation runs in a thread, its pieces come out of an iterator."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pieces(generate: Callable[..., object], tokenizer: PreTrainedTokenizerBase) -> Generator[str]:
    """What `generate(streamer=..., stopping_criteria=...)` writes. Closing the iterator stops it.

    An exception in the thread is raised here.
    """
    streamer, stop = _QueueStreamer(tokenizer), Event()

    def work() -> None:
        try:
            generate(streamer=streamer, stopping_criteria=StoppingCriteriaList([_StopOn(stop)]))
        except BaseException as error:  # it belongs to whoever reads the stream
            streamer.pieces.put(error)
        else:
            streamer.pieces.put(None)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (piece := streamer.pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        stop.set()
        thread.join()


def stripped(texts: Generator[str]) -> Generator[str]:
    """The same text without the blanks at its ends: those within are held back until a word follows them."""
    begun, held = False, ""
    with closing(texts):
        for text in texts:
            text = held + text if begun else text.lstrip()
            held = text[len(text.rstrip()) :]
            text = text.rstrip()
            if text:
                begun = True
                yield text


class _QueueStreamer(BaseStreamer):
    """Puts finished pieces of text into a queue; the prompt is not among them.

    A token's text depends on the one before it (a space is dropped where a text begins) and a character may take
    several tokens. So text is what a few tokens say more than the tokens of the last piece do by themselves.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self.ids: list[int] | None = None  # from the last piece on; None: the prompt is still to come
        self.said = 0  # how many of them that piece is made of

    def put(self, value: Tensor) -> None:
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        self._say(unfinished=False)

    def end(self) -> None:
        self._say(unfinished=True)

    def _say(self, unfinished: bool) -> None:
        parts = self.ids[: self.said], self.ids
        before, now = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in parts)
        if len(now) > len(before) and (unfinished or not now.endswith("\ufffd")):
            self.pieces.put(now[len(before) :])
            self.ids, self.said = self.ids[self.said :], len(self.ids) - self.said


class _StopOn(StoppingCriteria):
    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)
