"""The folder an unfinished conversion lies in: whose it is, who may write in it, and what becomes of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..fetch.files import say
from .errors import ConversionError

JOB = ".conversion"  # the file in it that names the job it belongs to
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def partial_folder(output: Path, job: str, total_bytes: int) -> Iterator[Path]:
    """The folder beside `output` to work in, for this process alone; what an earlier run of the job did is in it.

    It stays when the system is at fault or the user, so that the job can go on; when the input is, it goes.
    Raises ConversionError.
    """
    partial = output.with_name(f"{output.name}.partial")
    try:
        _refuse_existing(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(output, partial):
            _refuse_existing(output)  # by whoever wrote there a moment ago
            _take_up(output, partial, job)
            _check_room(output, partial, total_bytes)
            try:
                yield partial
            except (OSError, MemoryError):
                raise
            except Exception:
                discard(partial)
                raise
    except OSError as error:
        if error.errno is None:  # one of those that other libraries make up
            raise
        raise ConversionError(_in_words(error, output, partial, total_bytes)) from error


def discard(partial: Path) -> None:
    """Remove the folder, its name of the job last: until then it is known for what it is."""
    for path in [*(path for path in partial.iterdir() if path.name != JOB), partial]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def sync(*paths: Path) -> None:
    """Have the system write files and folders to the disk, and wait until it has."""
    for path in paths:
        if path.is_dir() and os.name == "nt":
            continue  # Windows has no such thing for folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _only_writer(output: Path, partial: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(partial.with_name(f"{partial.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConversionError(f"another process is writing {output}; wait for it, or give another --output") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _refuse_existing(output: Path) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise ConversionError(f"{output} is there already; remove it, or give another --output")
    if output.is_mount():
        raise ConversionError(f"{output} is the root of a disk; give an --output in it")
    if any(output.iterdir()):
        raise ConversionError(f"the folder {output} is not empty; empty it, or give another --output")


def _take_up(output: Path, partial: Path, job: str) -> None:
    """Make the partial folder this job's: go on with its own, begin again in another's."""
    record = partial / JOB
    if record.is_file():
        if record.read_text(encoding="ascii") == job:
            say(f"going on with {output} where it was stopped")
            return
        say(f"{partial} belongs to another conversion, or its source has changed since: beginning again")
        discard(partial)
    elif partial.exists() and (not partial.is_dir() or any(partial.iterdir())):
        raise ConversionError(
            f"{partial} is in the way and is no unfinished conversion; move it, or give another --output"
        )
    partial.mkdir(exist_ok=True)
    record.write_text(job, encoding="ascii")


def _check_room(output: Path, partial: Path, total_bytes: int) -> None:
    done, free = _written(partial), shutil.disk_usage(partial).free
    if total_bytes - done > free:
        if not done:
            discard(partial)
        raise ConversionError(
            f"{output} needs {_in_units(total_bytes - done)} more and the disk has {_in_units(free)} free; make room, "
            "or give an --output on another disk"
        )


def _written(partial: Path) -> int:
    """Bytes that files take on the disk. What is still to be written is holes in them, and links take nothing."""
    states = [file.stat() for file in partial.iterdir() if file.name != JOB]
    return sum(
        min(state.st_size, getattr(state, "st_blocks", state.st_size) * 512) for state in states if state.st_nlink == 1
    )


def _in_words(error: OSError, output: Path, partial: Path, total_bytes: int) -> str:
    begun = os.path.isfile(partial / JOB)  # Path.is_file raises for names that are too long
    again = f"run the same command again: it goes on where it stopped, in {partial}"
    if begun and error.errno in FULL:
        needed = _in_units(max(0, total_bytes - _written(partial)))
        return f"the disk is full; make room for {needed} more for {output}, then {again}"
    reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if begun:
        return f"{output} could not be finished ({reason}); put that right, then {again}"
    return f"{output} cannot be written ({reason}); give another --output"


def _in_units(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
