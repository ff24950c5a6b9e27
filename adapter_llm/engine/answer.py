"""An answer on its way from the engine to whoever asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ..results import Result, TokenLogprob
from ..writing import Draft

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True)
class Piece:
    """The next words of an answer, and the log probabilities of its next tokens, if they were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None


Event = Piece | Result | Exception
Tell = Callable[[Event], Any]


class Answer:
    """An answer on its way: pieces, then a Result or an exception. Made by `Engine.submit`."""

    def __init__(self, engine: Engine, draft: Draft, tell: Tell | None) -> None:
        self.draft = draft
        self._engine = engine
        self._events: SimpleQueue[Event] = SimpleQueue()
        self.tell = tell or self._events.put
        self._end: Event | None = None
        self._logged = 0  # tokens whose log probabilities were told

    def __iter__(self) -> Iterator[Piece]:
        """Its pieces, once, while they are written; raises what went wrong. Leaving the loop cancels the rest."""
        try:
            while self._end is None:
                event = self._events.get()
                if isinstance(event, Piece):
                    yield event
                else:
                    self._end = event
        finally:
            self.cancel()
        if isinstance(self._end, Exception):
            raise self._end

    def result(self) -> Result:
        """Wait for the end; raises what went wrong. Not for an answer with a `tell` of its own."""
        for _ in self:
            pass
        return self._end

    def cancel(self) -> None:
        """Stop here; what is written stays. An answer that has ended stays as it is."""
        self._engine.cancel(self)

    @property
    def position(self) -> int:
        """How many places until it is written: 0 while it is, or when it has ended."""
        return self._engine.position(self)

    def say(self) -> None:
        """Tell what is new."""
        text, logprobs = self.draft.take(), self.draft.logprobs(self._logged)
        if text or logprobs:
            self._logged += len(logprobs or ())
            self.tell(Piece(text, logprobs))
