"""The body of a request: JSON, read no further than it may be long."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_VALUES = 1_000_000  # of some 60 bytes each: a body of nothing but [],[],[] grows to twenty times its size
_SURROGATE = re.compile(rb"\\ud[89a-f]", re.IGNORECASE)  # half a character, alone or with its other half


async def read_body(request: Request, limit: int, take: Callable[[int], object]) -> bytes:
    """The body; `take` is told of bytes as they come, and may raise. Raises ApiError: another content type, more than
    `limit` bytes.

    A web page may send a form or a text to any server without asking it first, but not this content type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            f"the content type is {kind[:60] or 'missing'}; send JSON with Content-Type: application/json", status=415
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError("the body is compressed; send it as it is", status=415)
    return await _read(request, limit, take)


async def _read(request: Request, limit: int, take: Callable[[int], object]) -> bytes:
    too_large = ApiError(
        f"the body is larger than the {limit} bytes that this server takes; send smaller media, or start the server "
        "with a larger --max-body",
        status=413, code="request_too_large",
    )  # fmt: skip
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > limit:
        raise too_large
    chunks, received = [], 0
    async for chunk in request.stream():  # a body in chunks states no length
        received += len(chunk)
        if received > limit:
            raise too_large
        take(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


def parse(body: bytes) -> Any:
    """JSON as it is defined: in UTF-8, without NaN, every character whole. Raises ApiError."""
    if sum(map(body.count, (b"[", b"{", b","))) > MOST_VALUES:
        raise ApiError(f"the body holds more than {MOST_VALUES} values; send less", status=413)
    try:
        values = json.loads(body.decode("utf-8"), parse_constant=_refuse)
        if _SURROGATE.search(body):
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"{error}"[:100]
        raise ApiError(f"the body is not JSON in UTF-8 ({reason})") from None
    return values


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
