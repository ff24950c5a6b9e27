"""A few threads for what would hold up the event loop, and no more work than they may have waiting."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .errors import busy, stopping

T = TypeVar("T")


class Workers:
    """Used from the event loop alone. Work that has begun goes on if nobody waits for it any more, and counts."""

    def __init__(self, name: str, threads: int, limit: float = math.inf) -> None:
        """`limit`: of what is being done and what waits for that, together."""
        self.limit = limit
        self.pending = 0
        self.closed = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """What `work()` returns. Raises ApiError at once: 429 if too much is waiting, 503 after `close`."""
        if self.closed:
            raise stopping()
        if self.pending >= self.limit:
            raise busy("too many inputs are waiting to be read")
        loop = asyncio.get_running_loop()
        future = self._pool.submit(work)
        self.pending += 1
        future.add_done_callback(lambda _: self._done(loop))
        return await asyncio.wrap_future(future)

    def _done(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called on any thread; a loop that is closed counts no more."""
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._count_down)

    def _count_down(self) -> None:
        self.pending -= 1

    def close(self) -> None:
        """Begin nothing any more. What has begun goes on."""
        self.closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
