"""Media in the messages of a request: read from data: URIs, or the web where that is allowed, and checked.

What comes out is bytes. Nothing that a request says is ever taken for the name of a file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from imagebind_encoder.media.patience import reading_limits
from imagebind_encoder.media.source import Limits, MediaError, read_source

from ..strangers.headers import check_header
from ..strangers.limits import MediaLimits
from .errors import ApiError, shown
from .fields import Fields

Fetch = Callable[[str, int, float], bytes]  # of a URL, at most so many bytes, in so many seconds

URLS = {"image_url": "image", "video_url": "video", "audio_url": "audio"}  # part types, and the keyword of each
KNOWN = ("text", "image_url", "input_audio", "video_url", "audio_url")
DETAILS = ("auto", "low", "high", "original")  # of a picture; the encoder looks at all of them alike
IGNORED = "prompt_cache_breakpoint"  # about a cache that is not here
PICTURES = 4  # of the largest size allowed: so many pixels may all pictures of a request have together
LONGEST = 3  # characters for a byte in a data: URI that is not base64

_DATA, _HTTP = re.compile("data:", re.IGNORECASE), re.compile("https?://", re.IGNORECASE)


@dataclass(frozen=True)
class MediaPart:
    """A file that a request brings or names."""

    keyword: str  # as in Pipeline: image, audio, video
    source: str  # a data: URI or an http(s) URL; not read yet
    where: str  # the place in the request that says so

    @property
    def remote(self) -> bool:
        """Whether somebody else's server has it."""
        return _HTTP.match(self.source) is not None


def read_part(part: object, where: str) -> str | MediaPart:
    """One part of a message at the place `where`: the words of a text part, or a file. Nothing is read.

    Raises ApiError: an unknown type, fields that are missing or unknown, a source that is no URL.
    """
    fields = Fields(part, where)
    kind = fields.choice("type", KNOWN)
    fields.only(("type", kind, IGNORED))
    if kind == "text":
        return _required(fields, "text")
    inner = Fields(fields.values.get(kind, {}), fields.place(kind))
    if kind == "input_audio":
        inner.only(("data", "format"))
        inner.text("format")  # the file itself tells
        source, place = "data:;base64," + _required(inner, "data"), inner.place("data")
        return MediaPart("audio", source, place)
    inner.only(("url", "detail") if kind == "image_url" else ("url",))
    if kind == "image_url":
        inner.choice("detail", DETAILS, "auto")
    url, place = _required(inner, "url"), inner.place("url")
    if not (_DATA.match(url) or _HTTP.match(url)):
        raise ApiError(
            f"{place} must be a data: URI or an http(s) URL, not {shown(url)}; other addresses and files of this "
            "machine are not read", place,
        )  # fmt: skip
    return MediaPart(URLS[kind], url, place)


def load_parts(
    parts: Sequence[MediaPart],
    limits: MediaLimits,
    *,
    keywords: Collection[str] | None = None,
    fetch: Fetch | None = None,
) -> dict[str, list[bytes]]:
    """The files of a request by keyword, in its order: what `pipe.draft(prompt, **load_parts(...))` takes.

    `keywords` are those that the weights take. `fetch` replaces `fetch_public`; either is used if limits.allow_urls.
    Raises ApiError that names the part: what cannot be read, is not allowed, or beyond the limits. Blocks.
    """
    if len(parts) > limits.max_parts:
        raise ApiError(
            f"the request has {len(parts)} media; give at most {limits.max_parts}", parts[limits.max_parts].where
        )
    for part in parts:
        _check_allowed(part, limits, keywords)
    deadline = time.monotonic() + limits.download_seconds
    found: dict[str, list[bytes]] = {}
    pixels, left = PICTURES * limits.max_pixels, limits.max_bytes
    for part in parts:
        try:
            data = _read(part.source, left, deadline, fetch)
            left -= len(data)
            pixels -= check_header(part.keyword, data, limits)
        except MediaError as error:
            raise ApiError(" ".join(str(error).split()), part.where) from error
        if pixels < 0:
            raise ApiError(
                f"the pictures of the request have more than {PICTURES * limits.max_pixels} pixels together; "
                "give fewer or smaller ones", part.where,
            )  # fmt: skip
        found.setdefault(part.keyword, []).append(data)
    return found


def reading(limits: MediaLimits) -> AbstractContextManager[None]:
    """For the block that decodes what `load_parts` gave: films and recordings that take too long are a MediaError."""
    return reading_limits(limits.reading_seconds, limits.max_frame_pixels)


def _required(fields: Fields, name: str) -> Any:
    value = fields.text(name)
    if value is None:
        raise ApiError(f"{fields.place(name)} is missing", fields.place(name))
    return value


def _check_allowed(part: MediaPart, limits: MediaLimits, keywords: Collection[str] | None) -> None:
    if keywords is not None and part.keyword not in keywords:
        raise ApiError(f"this model takes {', '.join(keywords)}, not {part.keyword}; leave that part out", part.where)
    if not (_DATA.match(part.source) or limits.allow_urls):
        raise ApiError(
            "this server fetches no URLs; send the file itself as a data: URI, or start the server with --allow-urls",
            part.where,
        )


def _read(source: str, max_bytes: int, deadline: float, fetch: Fetch | None) -> bytes:
    """The bytes of a data: URI or an http(s) URL; anything else is a MediaError, whoever made the part."""
    if _HTTP.match(source):
        if fetch is None:
            from ..strangers.fetching import fetch_public as fetch
        return fetch(source, max_bytes, max(0.0, deadline - time.monotonic()))
    if not _DATA.match(source):
        raise MediaError("a medium must be a data: URI or an http(s) URL")
    if len(source) > LONGEST * max_bytes + 1000:
        raise MediaError(f"the media are larger than the limit of {max_bytes} bytes; give smaller files")
    return read_source(source, Limits(max_bytes=max_bytes))
