"""Recordings longer than a model's input: which stretches of them are looked at, and how they become one again."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..schema import is_number
from .source import MediaError

POOLS = ("mean", "max", "none")


@dataclass(frozen=True)
class Windows:
    """Cut a recording into windows, each of which is treated as if it were a file of its own.

    Raises ValueError for a length or a hop that is not positive, or an unknown pool.
    """

    seconds: float
    hop: float | None = None  # seconds from the start of one window to that of the next; None: as long as a window
    pool: str = "mean"  # of the windows' features: their mean, the largest of each number, or "none": keep them all

    def __post_init__(self) -> None:
        for name in ("seconds", "hop"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0 or name == "hop" and value is None):
                raise ValueError(f"a window's {name} must be a positive number of seconds, not {value!r}")
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {self.pool!r}")

    @property
    def step(self) -> float:
        return self.seconds if self.hop is None else self.hop

    @property
    def nearest(self) -> float:
        """Seconds: a window that begins no more than this before the last one is left out, as it would see the same."""
        return min(0.001, self.step / 100)

    def starts(self, duration: float) -> Iterator[float]:
        """Starts of the windows of a recording, in seconds.

        All are whole: the last one is moved back to end with the recording, and a recording
        shorter than a window is one window. Raises MediaError for a duration that is not positive.
        """
        if not duration > 0:
            raise MediaError(f"a recording of {duration:g} seconds has no windows; give a longer one")
        last = duration - self.seconds
        count = max(0, math.ceil((last - self.nearest) / self.step))  # windows that start before the last one
        yield from (number * self.step for number in range(count))
        yield max(0.0, last)
