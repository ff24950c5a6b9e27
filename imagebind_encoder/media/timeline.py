"""When the frames of a film are shown, and which of them a clip looks at. Numbers only: no film is opened here."""

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

JITTER = 0.1  # of a frame: times that are off by less, and by less than a tick, are rounded ones
ROUNDING = 1e-6  # of a frame: a window that starts so much after a frame still has it


@dataclass(frozen=True)
class Timeline:
    """Frames of a film, at a constant rate or each at its own time."""

    count: int  # frames
    duration: float  # seconds from the start of the first frame to the end of the last
    rate: float | None = None  # frames a second; None: it varies
    times: Sequence[float] = ()  # starts of the frames in seconds from the first, if the rate varies

    @classmethod
    def at(cls, ticks: "numpy.ndarray", tick: float, rate: float, shown: int) -> "Timeline":
        """Of frames that begin at rising `ticks` of `tick` seconds, at `rate` frames a second if that fits them.

        `shown` is how many ticks the last frame is shown; 0: as long as the others on average. So is a `rate` of 0.
        """
        import numpy

        offsets = ticks - ticks[0]
        count, average = len(offsets), float(offsets[-1]) / max(len(offsets) - 1, 1)
        if count == 1:
            return cls.constant(1, rate or 1 / (shown * tick or 1.0))
        step = 1 / (rate * tick) if rate else average
        if abs(offsets - numpy.arange(count) * step).max() <= min(1.0, JITTER * step):
            return cls.constant(count, rate or 1 / (step * tick))
        duration = (float(offsets[-1]) + (shown or average)) * tick
        return cls(count, duration, None, array("d", offsets * tick))

    @classmethod
    def constant(cls, count: int, rate: float) -> "Timeline":
        return cls(count, count / rate, rate)

    def span(self, start: float, end: float, slack: float = 0.0) -> range:
        """The frames that begin from second `start` up to, not including, `end`; if none does, the one on display.

        At a constant rate these are ceil(rate * start) up to ceil(rate * end), products in double
        precision, as in the original, which takes every rate for constant. A frame that begins up to
        `slack` of a frame too early counts, too.
        """
        first, last = self._index(start, slack), self._index(end, slack)
        return range(first, last) if first < last else range(max(0, first - 1), max(1, first))

    def _index(self, second: float, slack: float) -> int:
        """The first frame that begins at `second` or later, or the number of frames."""
        if self.rate is None:
            return bisect_left(self.times, second - slack * self.duration / self.count)
        return min(max(0, math.ceil(self.rate * second - slack)), self.count)

    def window(self, start: float, seconds: float) -> range:
        """The frames of a window; what rounding has moved by less than ROUNDING is where it should be."""
        return self.span(start, start + seconds, ROUNDING)

    def part(self, frames: range) -> "Timeline":
        """Of a film that holds just these frames."""
        if self.rate is not None:
            return Timeline.constant(len(frames), self.rate)
        start = self.times[frames.start]
        end = self.times[frames.stop] if frames.stop < self.count else self.duration
        return Timeline(len(frames), end - start, None, [self.times[index] - start for index in frames])

    def choose(self, clips: int, seconds: float, frames: int) -> list[list[int]]:
        """Indices (clips, frames): clips spread evenly over the film, frames evenly over each clip.

        Clip i starts at i * max(duration - seconds, 0) / (clips - 1). Of its n frames those at
        linspace(0, n - 1, frames), truncated, are taken: of fewer than wanted some come twice.
        """
        import torch

        latest = Fraction(max(self.duration - seconds, 0.0))
        chosen = []
        for number in range(clips):
            start = latest * number / max(clips - 1, 1)
            span = self.span(float(start), float(start + Fraction(seconds)))
            chosen.append([span[place] for place in torch.linspace(0, len(span) - 1, frames).long().tolist()])
        return chosen
