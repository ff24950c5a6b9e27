"""How long files may take to read, for whoever reads those of strangers; without `reading_limits` there is no end.

Limits hold for the thread that sets them, so that they need no place in the arguments of every loader. Small files
can hold films of days: what they cost is known only while they are decoded.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .source import MediaError

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
_frame_pixels: ContextVar[int | None] = ContextVar("frame_pixels", default=None)


@contextmanager
def reading_limits(seconds: float, frame_pixels: int | None = None) -> Iterator[None]:
    """In the block, films and recordings are a MediaError once `seconds` are over for all of them together.

    So are films with a frame of more than `frame_pixels`, wherever it is. Single pictures are not interrupted.
    """
    before = _deadline.set(time.monotonic() + seconds), _frame_pixels.set(frame_pixels)
    try:
        yield
    finally:
        _deadline.reset(before[0])
        _frame_pixels.reset(before[1])


def check_time(name: str) -> None:
    """Raise MediaError if the time for reading is over."""
    deadline = _deadline.get()
    if deadline is not None and time.monotonic() > deadline:
        raise MediaError(f"{name} takes too long to decode; give a shorter or smaller one")


def frame_pixels(most: int) -> int:
    """How many pixels a frame of a film may have: `most`, or less."""
    limit = _frame_pixels.get()
    return most if limit is None else min(most, limit)
