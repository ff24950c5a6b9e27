"""Whose a request is, and whose a file: names of browsers that nobody can guess or make, and a folder for each."""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path
from typing import Any

KEY = secrets.token_bytes(32)  # of this process; names of visitors that it did not sign are none
HALF = 32  # hexadecimal digits of a name that are random; as many are the signature


def visitor_of(request: Any, cookie: str) -> str | None:
    """The name of a request's browser; None for one that has none, or none that this process gave it."""
    name = dict(request.cookies).get(cookie)
    return name if name and hmac.compare_digest(name.encode(), _signed(name[:HALF]).encode()) else None


def new_name() -> str:
    """A name for a browser, that nobody can guess or make."""
    return _signed(secrets.token_hex(HALF // 2))


def _signed(half: str) -> str:
    return half + hmac.digest(KEY, half.encode(), "sha256").hex()[:HALF]


def new_folder(visitor: Path) -> Path:
    """A new folder among a visitor's, with a name that nobody can guess."""
    folder = visitor / secrets.token_hex(16)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def owned(path: str | Path, folder: Path, visitor: str | None) -> Path:
    """The path, if it is that of a visitor's file. Raises ValueError if it is not."""
    real = Path(path).resolve()
    if visitor is None or not real.is_relative_to((folder / visitor).resolve()) or not real.is_file():
        raise ValueError(f"{real.name} is not here any more; give it once more")
    return real
