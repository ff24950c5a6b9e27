"""Run: the answers to one chat request, from its media to their last words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial

from ..adapter import AdapterState
from ..engine import Answer, Piece
from ..pipeline import Pipeline
from ..prompts import describe
from ..results import Result
from ..words import one_line
from ..writing import Draft
from .errors import stopping, too_long, too_slow
from .failures import mistakes
from .media import fetch, look
from .schema import ChatRequest
from .service import Service
from .waiting import in_time

QUIET = 15.0  # seconds after which a stream that waits gives a sign of life


class Run:
    """Made and used on the event loop; `arrived` is when the request did, by time.monotonic()."""

    def __init__(self, service: Service, request: ChatRequest, arrived: float) -> None:
        self.service, self.request, self.arrived = service, request, arrived
        self.prompt_tokens = 0
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Piece | Result | Exception]] = asyncio.Queue()
        self._answers: list[Answer] = []
        self._begun = False

    async def start(self) -> None:
        """Read the media, and queue the answers. Raises ApiError, EngineBusy or EngineClosed."""
        drafts = await in_time(self._drafts(), self.arrived, self.service.config.timeout)
        self.prompt_tokens = drafts[0].prompt_tokens
        for choice, draft in enumerate(drafts):
            self._answers.append(self.service.engine.submit(draft, partial(self._tell, choice)))
        self.service.metrics.tokens.labels("prompt").inc(self.prompt_tokens)

    async def _drafts(self) -> list[Draft]:
        service, request = self.service, self.request
        found = await fetch(service, request.media)
        state = await look(service, request.media, found)
        return await service.clerks.run(partial(make_drafts, service.pipe, request, list(found), state))

    async def events(self) -> AsyncIterator[tuple[int, Piece | Result | None]]:
        """Pieces of each answer, by its number, and its Result last; None when nothing has happened for a while.

        Raises ApiError, or what broke the model.
        """
        unfinished = len(self._answers)
        while unfinished:
            try:
                choice, event = await asyncio.wait_for(self._events.get(), min(QUIET, self._remaining))
            except asyncio.TimeoutError:
                if not self._remaining:
                    raise too_slow(self.service.config.timeout) from None
                choice, event = 0, None
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Result):
                if event.finish_reason == "cancelled":
                    raise stopping()
                unfinished -= 1
            elif event is not None and not self._begun:
                self._begun = True
                self.service.metrics.first_token.observe(time.monotonic() - self.arrived)
            yield choice, event

    def close(self) -> None:
        """Take what is unfinished out of the batch."""
        for answer in self._answers:
            answer.cancel()

    @property
    def _remaining(self) -> float:
        """Seconds."""
        return max(0.0, self.arrived + self.service.config.timeout - time.monotonic())

    def _tell(self, choice: int, event: Piece | Result | Exception) -> None:
        """On the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: the program is ending
            self._loop.call_soon_threadsafe(self._hear, choice, event)

    def _hear(self, choice: int, event: Piece | Result | Exception) -> None:
        if isinstance(event, Result):
            self.service.metrics.tokens.labels("completion").inc(event.n_tokens)
        self._events.put_nowait((choice, event))


def make_drafts(
    pipe: Pipeline, request: ChatRequest, kinds: Sequence[str], state: AdapterState | None
) -> list[Draft]:
    """The n answers of a request, about one state of media of these kinds. Raises ApiError."""
    messages = list(request.messages)
    if not messages[-1]["content"].strip():
        messages[-1] = {**messages[-1], "content": describe(kinds)}
    with mistakes("messages"):
        try:
            return [pipe.draft(messages, state=state, **request.options_of(choice)) for choice in range(request.n)]
        except ValueError as error:
            room = pipe.answerer.max_length
            if room is not None and len(pipe.processor.prompt_ids(messages, state is not None)) > room:
                raise too_long(one_line(error)) from error
            raise
