"""Waiting for clients: not for ever for their bodies, and not at all for those that are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from .body import parse, read_body
from .errors import ApiError, too_slow
from .failures import ClientGone
from .service import Service

T = TypeVar("T")
LARGE = 2**20  # bytes of a body: to read so many takes as long as to send some tokens


async def read_in_time(request: Request, service: Service, take: Callable[[int], object]) -> Any:
    """What the body says. Raises ApiError for what is wrong with it, 408 if it does not come, and ClientGone."""
    config = service.config
    try:
        body = await asyncio.wait_for(read_body(request, config.max_body, take), config.timeout)
    except asyncio.TimeoutError:
        raise ApiError(f"the body did not arrive within {config.timeout:g} s", status=408, code="timeout") from None
    except ClientDisconnect:
        raise ClientGone from None
    return await service.clerks.run(lambda: parse(body)) if len(body) > LARGE else parse(body)


async def in_time(work: Awaitable[T], arrived: float, limit: float) -> T:
    """What the work returns. Raises ApiError, and cancels it, `limit` seconds after the request `arrived`."""
    try:
        return await asyncio.wait_for(work, max(0.0, arrived + limit - time.monotonic()))
    except asyncio.TimeoutError:
        raise too_slow(limit) from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; it is cancelled, and ClientGone raised, as soon as the client closes the connection."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
