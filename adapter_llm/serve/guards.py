"""What every request passes before it reaches a route: who asks, by what name, and how it is counted."""

from __future__ import annotations

import hmac
import time

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, shown
from .metrics import Metrics
from .service import ServeConfig

OPEN = ("/health",)  # to everybody
ROUTES = ("/v1/chat/completions", "/v1/embeddings", "/v1/models", "/health", "/metrics")


def error_response(error: ApiError) -> Response:
    return Response(error.to_json(), error.status, error.headers, "application/json")


class Doorman:
    """Refuses requests that call the server by another's name, and those without the key."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self.app, self.config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = host_name(headers.get("host", ""))
        # a page whose own name was made to point here would be let through by the browser, but for this
        if self.config.hosts is not None and host and host not in self.config.hosts:
            raise ApiError(
                f"this server does not go by the name {shown(host)}; ask 127.0.0.1 or localhost, or start it with "
                "--allow-host",
                status=403, code="unknown_host",
            )  # fmt: skip
        if self.config.api_key is None or scope["path"] in OPEN:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        wrong = not hmac.compare_digest(key.strip().encode(), self.config.api_key.encode())
        if scheme.lower() != "bearer" or wrong:
            raise ApiError(
                "the API key is missing or wrong; send it in a header: Authorization: Bearer KEY",
                status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


def host_name(header: str) -> str:
    """The name in a Host header, without its port and in small letters."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


class Counter:
    """Counts requests by route and status, and their seconds until the last byte."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.monotonic(), 499  # of a client that was gone before there was one

        async def listen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, listen)
        finally:
            route = route_of(scope["path"])
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - started)


def route_of(path: str) -> str:
    """One of a few names: paths that strangers make up would fill the registry."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return path if path in ROUTES else "other"
