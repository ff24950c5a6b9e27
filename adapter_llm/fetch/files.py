"""The cache folder: who may write in it, and nothing in it half-written.

Files are written under a name that ends in .part and renamed when they are whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

CHUNK = 2**20


class FetchError(RuntimeError):
    """A part that cannot be had, with the reason and the remedy in one sentence."""


def cache_dir() -> Path:
    """$ADAPTER_LLM_CACHE, else adapter_llm in the user's cache folder. It need not exist yet."""
    if own := os.environ.get("ADAPTER_LLM_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "adapter_llm"


@contextlib.contextmanager
def writing(target: Path, needed: int) -> Iterator[None]:
    """The only writer of `target`, with `needed` bytes of room; problems of the file system as FetchError."""
    from filelock import FileLock, Timeout

    cache = cache_dir()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that prepares {target}")
            lock.acquire()
        try:
            free = shutil.disk_usage(cache).free
            if free < needed and not target.exists():
                raise FetchError(
                    f"the cache folder {cache} has {free / 1e6:.0f} MB of free disk space and {target.name} needs "
                    f"{needed / 1e6:.0f}; make room, or set ADAPTER_LLM_CACHE to a folder on another disk"
                )
            yield
        finally:
            lock.release()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full; make room, or set ADAPTER_LLM_CACHE to a folder on another disk"
        else:
            remedy = f"{error.strerror or error}; set ADAPTER_LLM_CACHE to a folder that can be written"
        raise FetchError(f"the cache folder {cache} cannot be used ({remedy})") from error


@contextlib.contextmanager
def partial_name(target: Path) -> Iterator[Path]:
    """A name beside `target` to write to; it becomes `target` if all goes well, and nothing if not."""
    partial = target.with_name(target.name + ".part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)  # of a process that was killed
    try:
        yield partial
        os.replace(partial, target)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(file: Path) -> None:
    """Give back the room of a file that is needed no more; if that fails, the room is all that is lost."""
    with contextlib.suppress(OSError):
        file.unlink()
        file.parent.rmdir()  # refused unless it is empty


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
