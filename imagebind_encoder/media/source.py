"""Bytes of a media source: a path, an http(s) URL, a data: URI, or bytes themselves.

Every failure is a MediaError of one sentence that names the source and what to do.
Which addresses may be fetched is for the caller to decide: whoever reads sources that
strangers send passes a `fetch` of their own.
"""

import base64
import binascii
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    import httpx

Source = str | os.PathLike[str] | bytes
Fetch = Callable[[str], bytes]

_URL = re.compile(r"(https?):/+", re.IGNORECASE)
_SHOWN = 80  # characters of a source in a message


class MediaError(ValueError):
    """A media source that cannot be read, with the reason and the remedy in one sentence."""


@dataclass(frozen=True)
class Limits:
    """How much, and how long, a source may take."""

    max_bytes: int = 256 * 2**20
    timeout: float = 30.0  # seconds for a whole download


DEFAULT_LIMITS = Limits()


def describe(source: object) -> str:
    """A name for `source` that is short enough for a message."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if len(text) > _SHOWN:  # a file's name is at the end, what a data: URI is at the beginning
            text = f"{text[: _SHOWN // 4]}...{text[-3 * _SHOWN // 4 :]}"
        return repr(text)
    return type(source).__name__


def read_source(source: Source, limits: Limits = DEFAULT_LIMITS, fetch: Fetch | None = None) -> bytes:
    """The bytes of `source`, never empty.

    A str or path that starts with http:// or https:// is fetched, one that starts with data: is
    decoded, any other is a file. `fetch` replaces `fetch_url`. Raises MediaError.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if not isinstance(text, str):
            raise MediaError(f"the path {text!r} is made of bytes; give it as text")
        if _URL.match(text):
            # A Path folds the two slashes of a URL into one.
            url = _URL.sub(r"\1://", text, count=1)
            data = fetch(url) if fetch else fetch_url(url, limits)
        elif text[:5].lower() == "data:":
            data = _decode_data_uri(text)
        else:
            data = _read_file(text, limits)
    else:
        kind = type(source).__name__
        raise MediaError(f"an object of type {kind} is no media source; give a path, a URL, a data: URI or bytes")
    if not data:
        raise MediaError(f"{describe(source)} is empty; check that it was written or copied completely")
    if len(data) > limits.max_bytes:
        raise _too_large(describe(source), limits)
    return data


def _too_large(name: str, limits: Limits) -> MediaError:
    return MediaError(f"{name} is larger than the limit of {limits.max_bytes} bytes; give a smaller file")


def _read_file(text: str, limits: Limits) -> bytes:
    name = describe(text)
    try:
        path = Path(text)
        if path.is_dir():
            raise MediaError(f"{name} is a directory; give the files in it one by one")
        if not path.exists():
            raise MediaError(f"there is no file {name}; check the path")
        if not path.is_file():
            raise MediaError(f"{name} is not a regular file; copy it into one first")
        with path.open("rb") as file:
            # One byte more than allowed tells a file that is too large, whatever its stated size.
            return file.read(limits.max_bytes + 1)
    except PermissionError as error:
        raise MediaError(f"{name} may not be read by this user; change its permissions") from error
    except (OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{name} cannot be read as a file ({error}); check the path") from error


def _decode_data_uri(text: str) -> bytes:
    header, comma, payload = text.partition(",")
    if not comma:
        raise MediaError(f"the data URI {describe(text)} has no comma; write data:image/png;base64,...")
    data = unquote_to_bytes(payload)
    if not header.lower().rstrip().endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise MediaError(f"the data URI {describe(text)} is not valid base64 ({error}); encode it again") from error


def fetch_url(
    url: str, limits: Limits = DEFAULT_LIMITS, transport: "httpx.BaseTransport | None" = None
) -> bytes:
    """The body of an http(s) URL, redirects followed. `transport` replaces the network, for tests.

    Raises MediaError when the host cannot be reached, on an error status, on a web page (HTML),
    and beyond the limits.
    """
    import httpx

    name = describe(url)
    deadline = time.monotonic() + limits.timeout
    too_slow = MediaError(f"{name} took longer than {limits.timeout:g} s; try again or download it first")
    chunks, received = [], 0
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=limits.timeout, transport=transport) as client,
            client.stream("GET", url) as response,
        ):
            if not response.is_success:
                raise MediaError(f"{name} answered with status {response.status_code}; check the address")
            if response.headers.get("content-type", "").lower().startswith("text/html"):
                raise MediaError(f"{name} is a web page, not a media file; give the address of the file itself")
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                received += len(chunk)
                if received > limits.max_bytes:
                    raise _too_large(name, limits)
                # The client's own timeout restarts with every chunk.
                if time.monotonic() > deadline:
                    raise too_slow
    except httpx.TimeoutException as error:
        raise too_slow from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise MediaError(f"{name} cannot be reached ({reason}); check the address and the connection") from error
    return b"".join(chunks)
