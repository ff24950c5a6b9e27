"""What messages are made of, and the hash of a file: small things that every module says or does in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

BLOCK = 2**20  # bytes of a file that are hashed at a time


def listed(names: Iterable[str], limit: int = 8, separator: str = ", ") -> str:
    """The first few names, and how many more there are; empty if there are none."""
    names = list(names)
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return separator.join([*names[:limit], *more])


def one_line(error: Exception, limit: int = 200) -> str:
    """What an error says, cut to a length that fits into a sentence; its kind if it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def not_downloaded(head: bytes, wanted: str) -> str | None:
    """What a download that begins with `head` is instead of what was `wanted`, in words; None if it is neither."""
    # a binary file may begin with any bytes, those of a page too, but no text holds a zero byte
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<" and b"\0" not in head[:16]:
        return f"is a web page, not {wanted}; download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "is only a pointer to a file (git-lfs); fetch the file itself with: git lfs pull"
    return None


def sha256_of(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal digits; `progress` is told the bytes of each block. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()
