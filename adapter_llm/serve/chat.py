"""/v1/chat/completions: an answer as one object, or as server-sent events while it is written."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ..results import Result
from .completions import Envelope
from .failures import as_api_error
from .messages import check_messages
from .run import Run
from .schema import chat_request
from .service import Service
from .waiting import read_in_time, unless_gone

GRACE = 5.0  # seconds that a client has to read the end of a stream whose time is up


async def chat(service: Service, request: Request) -> Response:
    """Raises ApiError and whatever else goes wrong before the answer begins, and ClientGone."""
    with ExitStack() as held:
        arrived = time.monotonic()
        take = held.enter_context(service.request())
        body = await read_in_time(request, service, take)
        wanted = chat_request(body, service.defaults, service.config.name)
        check_messages(wanted.messages, service.pipe)
        held.enter_context(service.reserve(wanted.n))
        run = Run(service, wanted, arrived)
        held.callback(run.close)
        await unless_gone(request, run.start())
        envelope = Envelope(service.config.name, service.fingerprint)
        if not wanted.stream:
            return JSONResponse(await unless_gone(request, _complete(run, envelope)))
        return EventStream(_stream(run, envelope), held.pop_all(), service.config.timeout + GRACE)


async def _complete(run: Run, envelope: Envelope) -> dict[str, Any]:
    results = {choice: event async for choice, event in run.events() if isinstance(event, Result)}
    return envelope.completion([results[choice] for choice in sorted(results)], run.prompt_tokens)


async def _stream(run: Run, envelope: Envelope) -> AsyncIterator[bytes]:
    """The role of each choice, its text as it comes, its finish reason; a mistake half-way is an event, too."""
    more = {"usage": None} if run.request.include_usage else {}
    results = {}
    try:
        for choice in range(run.request.n):
            yield _event(envelope.chunk(choice, {"role": "assistant", "content": "", "refusal": None}, **more))
        async for choice, event in run.events():
            if event is None:
                yield b": waiting\n\n"  # a comment: proxies cut connections that say nothing
            elif isinstance(event, Result):
                results[choice] = event
                yield _event(envelope.chunk(choice, {}, event.finish_reason, **more))
            else:
                yield _event(envelope.chunk(choice, {"content": event.text}, logprobs=event.logprobs, **more))
        if run.request.include_usage:
            yield _event(envelope.usage_chunk(list(results.values()), run.prompt_tokens))
    except Exception as error:
        yield _event(as_api_error(error, run.service.draining).to_dict())
    else:
        yield b"data: [DONE]\n\n"


def _event(values: dict[str, Any]) -> bytes:
    """ASCII: readers that split lines where Unicode does would break at other characters."""
    return b"data: " + json.dumps(values, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n\n"


class EventStream(StreamingResponse):
    """Keeps what is `held` until the last event is sent, the client is gone, or `seconds` are over."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], held: ExitStack, seconds: float) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.held, self.seconds = held, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.held, anyio.move_on_after(self.seconds):
            await super().__call__(scope, receive, send)
