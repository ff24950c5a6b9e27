"""From the first request to the last answer: serve, and stop in good order."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from .app import build_app
from .port import listen
from .service import Service

FLUSH = 5  # seconds for connections to take their last bytes


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def serve(server: Server, sock: socket.socket) -> None:
    """Answer until a signal comes, finish what was begun, and return. Raises ValueError if the port is in use."""
    try:
        listen(sock)
        server.run(sockets=[sock])
    finally:
        server.service.close()


class Server(uvicorn.Server):
    """Goes on listening while it drains, so that newcomers are told why they are turned away.

    A second signal calls `leave(exit code)` at once; `ready` is called when the first request may come.
    """

    def __init__(
        self,
        service: Service,
        leave: Callable[[int], object] = os._exit,
        ready: Callable[[], object] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            build_app(service), loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None,
            access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=FLUSH,
        )  # fmt: skip
        super().__init__(config)
        self.service, self.leave, self.ready = service, leave, ready
        self.deadline: float | None = None  # until which answers may be finished; None: nobody told it to stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal: the first one drains."""
        if self.deadline is not None:
            self.leave(128 + sig)
        self.service.draining = True
        seconds, left = self.service.config.shutdown_timeout, self.service.under_way
        self.deadline = time.monotonic() + seconds
        if left:
            requests = "a request is" if left == 1 else f"{left} requests are"
            say(f"stopping: {requests} answered first, for {seconds:g} s at most; once more ends it at once")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self.deadline is not None and not self.should_exit:
            late = time.monotonic() >= self.deadline
            if late:
                self.service.close()
            self.should_exit = late or not self.service.under_way
        return await super().on_tick(counter)
