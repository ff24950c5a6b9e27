"""Who may read which file: a layer before Gradio's own server.

Gradio gives a file to whoever knows its path, and two people who upload the same file share one. Here each browser
is known by a random cookie, its files lie in a folder of its own, each upload in one that nobody can guess, and are
given to that browser alone. Whatever of Gradio's interface the page does not need is not there.
"""

from __future__ import annotations

import math
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from gradio.route_utils import MultiPartException, file_fetch, upload_fn
from gradio.routes import API_PREFIX, file_upload_statuses
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .attachments import MOST
from .settings import in_bytes

PAGES = re.compile(r"/(|config|theme\.css|favicon\.ico|robots\.txt|login/?|logout|manifest\.json)")
PARTS = re.compile(r"/(assets|static|svelte)/.+")
CALLS = re.compile(
    API_PREFIX + r"/(queue/join|queue/data|heartbeat/[^/]+|upload_progress|startup-events|login_check/?|user/?|app_id/?"
    r"|info/?|run/[^/]+/?|cancel|reset/?|theme\.css)"
)
UPLOAD, FILE = f"{API_PREFIX}/upload", f"{API_PREFIX}/file="
HEADERS = {  # the browser itself keeps to this machine, whatever an answer or a file says
    "content-security-policy": "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
NAME = re.compile(r"[0-9a-f]{32}")
ROOM = MOST + 4  # files of the largest size that one browser may have here at a time


def _with(send: Send, headers: dict[str, str]) -> Send:
    """`send`, and these headers with an answer's own."""
    more = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sending


def new_folder(visitor: Path) -> Path:
    """A new folder among a visitor's, with a name that nobody can guess."""
    folder = visitor / secrets.token_hex(16)
    folder.mkdir(mode=0o700, parents=True)
    return folder


class Visitors:
    """ASGI middleware. `folder` is the parent of the visitors' folders, `cookie` the name of the cookie."""

    def __init__(self, app: ASGIApp, folder: Path, cookie: str, max_file_size: int) -> None:
        self.app, self.folder, self.cookie, self.max_file_size = app, folder.resolve(), cookie, max_file_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, request = scope["path"], Request(scope, receive)
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
        headers = dict(HEADERS)
        if path == "/" and visitor_of(request, self.cookie) is None:
            headers["set-cookie"] = f"{self.cookie}={secrets.token_hex(16)}; Path=/; HttpOnly; SameSite=Lax"
        await self.app(scope, receive, _with(send, headers))

    async def _upload(self, request: Request) -> Response:
        """Put the request's files into a new folder of this visitor's; their paths, as Gradio's own upload answers."""
        visitor = visitor_of(request, self.cookie)
        if request.method != "POST":
            return PlainTextResponse("Files are sent with POST.", 405)
        if visitor is None:
            return PlainTextResponse("This page keeps people's files apart by a cookie: allow it, and reload.", 403)
        own = self.folder / visitor
        used = sum(file.stat().st_size for file in own.rglob("*") if file.is_file()) if own.exists() else 0
        if used + int(request.headers.get("content-length") or 0) > ROOM * self.max_file_size:
            return PlainTextResponse("Your files are too many or too large together; start a new conversation.", 413)
        folder, kept = new_folder(own), False
        upload_id = request.query_params.get("upload_id")
        try:
            files, _, _ = await upload_fn(
                request,
                folder,
                self.max_file_size or math.inf,
                upload_id,
                upload_progress=file_upload_statuses if upload_id else None,
            )
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

    def _file(self, request: Request, path: str) -> Response:
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("Files are read with GET.", 405)
        blocks, visitor = request.scope["app"].get_blocks(), visitor_of(request, self.cookie)
        try:
            real = Path(path).resolve()
            if real.is_relative_to(self.folder) and not (visitor and real.is_relative_to(self.folder / visitor)):
                raise HTTPException(403)
            return file_fetch(str(real), request, blocks, request.scope["app"].uploaded_file_dir)
        except (HTTPException, OSError, ValueError):
            return PlainTextResponse("This file is not here, or not yours.", 403)


def visitor_of(request: Any, cookie: str) -> str | None:
    """The name of a request's browser; None for one that has none (any more), or an impossible one."""
    name = dict(request.cookies).get(cookie)
    return name if name and NAME.fullmatch(name) else None


def owned(path: str | Path, folder: Path, visitor: str | None) -> Path:
    """The path, if it is that of a visitor's file. Raises ValueError if it is not."""
    real = Path(path).resolve()
    if visitor is None or not real.is_relative_to((folder / visitor).resolve()) or not real.is_file():
        raise ValueError(f"{real.name} is not here any more; give it once more")
    return real


def _signed_in(app: Any, request: Request) -> bool:
    """What Gradio's own `login_check` asks."""
    if app.auth is None and app.auth_dependency is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(app.tokens.get(request.cookies.get(name)) is not None for name in names)
