"""The bytes of an input, read once: what is hashed is what is captioned.

Readers are called on the threads that read ahead. They can be sent to other processes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from imagebind_encoder.media.source import DEFAULT_LIMITS, MediaError, fetch_url

from ..space.files import is_regular
from ..words import sha256_of

IN_MEMORY = 64 * 2**20  # bytes of a file; larger ones, long films, are read from their place piece by piece


@dataclass(frozen=True)
class Content:
    """What a loader takes, and the hash of it."""

    source: bytes | Path = field(repr=False)
    sha256: str
    size: int

    @classmethod
    def of(cls, data: bytes, name: str) -> Content:
        """Raises MediaError for what is empty or too large."""
        if not data:
            raise MediaError(f"{name!r} is empty; check that it was written or copied completely")
        if len(data) > DEFAULT_LIMITS.max_bytes:
            raise MediaError(f"{name!r} is larger than the limit of {DEFAULT_LIMITS.max_bytes} bytes")
        return cls(data, hashlib.sha256(data).hexdigest(), len(data))

    def data(self) -> bytes:
        """All bytes. Raises MediaError if a file is no longer the one that was hashed."""
        if isinstance(self.source, bytes):
            return self.source
        try:
            data = self.source.read_bytes()
        except OSError as error:
            raise MediaError(f"{str(self.source)!r} cannot be read ({error.strerror}); check it") from error
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise MediaError(f"{str(self.source)!r} was changed while it was captioned; run again")
        return data


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine."""

    path: str

    def __call__(self) -> Content:
        """Raises MediaError."""
        try:
            if os.path.isdir(self.path):
                raise MediaError(f"{self.path!r} is a folder; give the files in it, or the folder itself as an input")
            if not is_regular(self.path):
                raise MediaError(f"{self.path!r} is no regular file; save what it gives in one")
            if os.path.getsize(self.path) > IN_MEMORY:
                # absolute: a loader would take http:/... in a folder for a URL
                place = Path(self.path).absolute()
                return Content(place, sha256_of(place), place.stat().st_size)
            with open(self.path, "rb") as file:
                return Content.of(file.read(), self.path)
        except FileNotFoundError as error:
            raise MediaError(f"there is no file {self.path!r}; check the path") from error
        except PermissionError as error:
            raise MediaError(f"{self.path!r} may not be read by this user; change its permissions") from error
        except (OSError, ValueError) as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{self.path!r} cannot be read ({error}); check the path") from error


@dataclass(frozen=True)
class WebFile:
    """What an http(s) URL gives."""

    url: str

    def __call__(self) -> Content:
        """Raises MediaError."""
        return Content.of(fetch_url(self.url), self.url)


@dataclass(frozen=True)
class Held:
    """Bytes that are in memory already, since they came by in a stream."""

    bytes: bytes = field(repr=False)
    name: str

    def __call__(self) -> Content:
        """Raises MediaError."""
        return Content.of(self.bytes, self.name)
