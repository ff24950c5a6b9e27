"""Which stretch of its recording each window is: noted while the loaders cut it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from imagebind_encoder.media.windows import Windows

from ..processing import InputOptions
from .records import Span


@dataclass(frozen=True)
class NotedWindows(Windows):
    """Windows that write down where they are as a loader asks for them."""

    noted: list[Span] = field(default_factory=list, compare=False)

    def starts(self, duration: float) -> Iterator[float]:
        self.noted.clear()
        for start in super().starts(duration):
            self.noted.append((float(start), float(min(start + self.seconds, duration))))
            yield start


@dataclass(frozen=True)
class NotingOptions(InputOptions):
    """Options for one input; `spans` are complete when its last window was read."""

    spans: list[Span] = field(default_factory=list, compare=False)

    @classmethod
    def of(cls, options: InputOptions) -> NotingOptions:
        return cls(**{entry.name: getattr(options, entry.name) for entry in fields(InputOptions)})

    def windows(self, clip: float) -> Windows | None:
        plain = super().windows(clip)
        return plain and NotedWindows(plain.seconds, plain.hop, plain.pool, self.spans)
