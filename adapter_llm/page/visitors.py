"""Who may read which file: a layer before Gradio's own server.

Gradio gives a file to whoever knows its path, two people who upload the same file share one, and what an event names
as a file may be an address that Gradio fetches. Here each browser is known by a signed cookie, its files lie in a
folder of its own, each upload in one that nobody can guess, and are given to that browser alone; events may name these
files and no others. Whatever of Gradio's interface the page does not need is not there.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradio.route_utils import MultiPartException, file_fetch, upload_fn
from gradio.routes import API_PREFIX, file_upload_statuses
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .attachments import MOST
from .owners import new_folder, new_name, visitor_of
from .sessions import Sessions
from .settings import in_bytes

PAGES = re.compile(r"/(|config|theme\.css|favicon\.ico|robots\.txt|login/?|logout|manifest\.json)")
PARTS = re.compile(r"/(assets|static|svelte)/.+")
CALLS = re.compile(
    API_PREFIX + r"/(queue/join|queue/data|heartbeat/[^/]+|upload_progress|startup-events|login_check/?|user/?|app_id/?"
    r"|info/?|run/[^/]+/?|cancel|reset/?|theme\.css)"
)
EVENTS = re.compile(API_PREFIX + r"/(queue/join|run/[^/]+/?)")
LARGEST_EVENT = 2**20  # bytes; files come by another way
UPLOAD, FILE = f"{API_PREFIX}/upload", f"{API_PREFIX}/file="
HEADERS = {  # the browser itself keeps to this machine, whatever an answer or a file says
    "content-security-policy": "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
ROOM = MOST + 4  # files of the largest size that one browser may have here at a time
SPARE = 0.1  # of the disk that is never filled


async def _read(request: Request) -> bytes | None:
    """The body of an event; None for one that is too long."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_EVENT:
                return None
    except ClientDisconnect:
        return None
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive`, with the body that was read from it before it once more."""
    told = False

    async def receiving() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _with(send: Send, headers: dict[str, str]) -> Send:
    """`send`, and these headers with an answer's own."""
    more = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sending


class Visitors:
    """ASGI middleware. The visitors' folders are those of `sessions`; `cookie` is the name of their cookie.

    `hosts` are the names that the page goes by; None: any. A page elsewhere whose own name was made to point at this
    machine would be let in by the browser, but for these.
    """

    def __init__(
        self, app: ASGIApp, sessions: Sessions, cookie: str, max_file_size: int, hosts: Collection[str] | None = None
    ) -> None:
        self.app, self.sessions, self.cookie, self.max_file_size = app, sessions, cookie, max_file_size
        self.hosts = hosts
        self.folder = sessions.folder.resolve()
        self._coming: Counter[str] = Counter()  # bytes of each visitor's that are on their way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, request = scope["path"], Request(scope, receive)
        if self.hosts is not None and _host(request) not in self.hosts:
            words = f"This page does not go by this name; open it as http://{min(self.hosts)}."
            return await PlainTextResponse(words, 421)(scope, receive, _with(send, HEADERS))
        if path == UPLOAD or path.startswith(FILE):
            if not _signed_in(scope["app"], request):
                answer: Response = PlainTextResponse("Sign in first.", 401)
            elif path == UPLOAD:
                answer = await self._upload(request)
            else:
                answer = self._file(request, path.removeprefix(FILE))
            return await answer(scope, receive, _with(send, HEADERS))
        if not (PAGES.fullmatch(path) or PARTS.fullmatch(path) or CALLS.fullmatch(path)):
            return await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
        if EVENTS.fullmatch(path):
            body = self._harmless(await _read(request), visitor_of(request, self.cookie))
            if body is None:
                return await PlainTextResponse("This is not what the page asks for.", 400)(scope, receive, send)
            receive = _again(body, receive)
        headers = dict(HEADERS)
        if path == "/" and visitor_of(request, self.cookie) is None:
            headers["set-cookie"] = f"{self.cookie}={new_name()}; Path=/; HttpOnly; SameSite=Lax"
        await self.app(scope, receive, _with(send, headers))

    def _harmless(self, body: bytes | None, visitor: str | None) -> bytes | None:
        """An event without addresses; None for one that names files other than this visitor's and the page's own."""
        try:
            event = json.loads(body or b"")
        except (ValueError, RecursionError):
            return None
        waiting = [event]
        while waiting:
            found = waiting.pop()
            if isinstance(found, dict):
                if isinstance(path := found.get("path"), str) and not self._reachable(path, visitor):
                    return None
                if "path" in found:
                    found.pop("url", None)
                waiting += found.values()
            elif isinstance(found, list):
                waiting += found
        return json.dumps(event).encode()

    def _reachable(self, path: str, visitor: str | None) -> bool:
        """Whether a path is a visitor's file, or one that the page shows to everybody."""
        try:
            real = Path(path).resolve()
        except (OSError, ValueError):
            return False
        if real.is_relative_to(self.folder):
            return visitor is not None and real.is_relative_to(self.folder / visitor)
        return real.is_relative_to(self.folder.parent)

    async def _upload(self, request: Request) -> Response:
        """Put the request's files into a new folder of this visitor's; their paths, as Gradio's own upload answers."""
        visitor = visitor_of(request, self.cookie)
        if request.method != "POST":
            return PlainTextResponse("Files are sent with POST.", 405)
        if visitor is None:
            return PlainTextResponse("This page keeps people's files apart by a cookie: allow it, and reload.", 403)
        for _ in range(50):  # a page that has just appeared opens its session about now
            if self.sessions.has(visitor):
                break
            await asyncio.sleep(0.1)
        else:
            return PlainTextResponse("The connection to this page was lost; reload it.", 403)
        if not (length := request.headers.get("content-length", "")).isdigit():
            return PlainTextResponse("The size of the files has to be said before they come.", 411)
        own, length = self.folder / visitor, int(length)
        used = sum(file.stat().st_size for file in own.rglob("*") if file.is_file()) if own.exists() else 0
        if used + self._coming[visitor] + length > ROOM * self.max_file_size:
            return PlainTextResponse("Your files are too many or too large together; start a new conversation.", 413)
        disk = shutil.disk_usage(self.folder)
        if disk.free - self._coming.total() - length < SPARE * disk.total:
            return PlainTextResponse("There is no room for more files at the moment; try again later.", 413)
        self._coming[visitor] += length
        try:
            return await self._received(request, visitor, new_folder(own))
        finally:
            self._coming[visitor] -= length
            self._coming += Counter()  # those that are 0 go

    async def _received(self, request: Request, visitor: str, folder: Path) -> Response:
        kept = False
        upload_id = request.query_params.get("upload_id")
        try:
            files, _, _ = await upload_fn(
                request,
                folder,
                self.max_file_size or math.inf,
                upload_id,
                upload_progress=file_upload_statuses if upload_id else None,
            )
            if not self.sessions.has(visitor):  # any more
                return PlainTextResponse("The page was closed.", 403)
            kept = True
            return JSONResponse([str(file) for file in files])
        except MultiPartException as error:
            if "maximum allowed size" in error.message:
                return PlainTextResponse(f"A file may have at most {in_bytes(self.max_file_size)}.", 413)
            return PlainTextResponse(error.message, 400)
        except HTTPException as error:
            return PlainTextResponse(str(error.detail), error.status_code)
        except ClientDisconnect:
            return PlainTextResponse("The connection broke.", 400)
        finally:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):
                    folder.parent.rmdir()  # if nothing else is there

    def _file(self, request: Request, path: str) -> Response:
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("Files are read with GET.", 405)
        blocks, visitor = request.scope["app"].get_blocks(), visitor_of(request, self.cookie)
        try:
            if not self._reachable(path, visitor):
                raise HTTPException(403)
            return file_fetch(str(Path(path).resolve()), request, blocks, request.scope["app"].uploaded_file_dir)
        except (HTTPException, OSError, ValueError):
            return PlainTextResponse("This file is not here, or not yours.", 403)


def _host(request: Request) -> str:
    """The name that a request calls this machine by, whatever is in it; Starlette's own gives up where it is odd."""
    name = request.headers.get("host", "").strip().lower()
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0].rstrip(".")


def _signed_in(app: Any, request: Request) -> bool:
    """What Gradio's own `login_check` asks."""
    if app.auth is None and app.auth_dependency is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(app.tokens.get(request.cookies.get(name)) is not None for name in names)
