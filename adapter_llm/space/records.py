"""What becomes of one input: which file it was, which stretches of it, and a vector for each. And formats of them.

Shapes: R rows of an input (its windows, or 1), N features, E encoder width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy

from .files import MediaFile

Span = tuple[float, float]  # start and end in seconds


class OutputError(ValueError):
    """A file that cannot be written, or that is there and is not ours to replace."""


@dataclass(frozen=True)
class Record:
    """One input's vectors."""

    file: MediaFile
    spans: tuple[Span, ...]  # one a row; none where the row is the whole input
    vectors: numpy.ndarray  # (R, E) or (R, N, E), float32


@dataclass(frozen=True)
class Row:
    """A row of an output: an input, or one window of it."""

    file: MediaFile
    span: Span | None
    vector: numpy.ndarray  # (E,) or (N, E)

    @property
    def id(self) -> str:
        """The path, and the stretch of it as media fragments write it: film.mp4#t=10,12.

        To the microsecond, since an index needs another id for each window.
        """
        if self.span is None:
            return self.file.path
        start, end = (f"{second:.6f}".rstrip("0").rstrip(".") for second in self.span)
        return f"{self.file.path}#t={start},{end}"


class Records(Protocol):
    """All records of an output, in its order, and how many rows they make; may be walked through again."""

    rows: int

    def __iter__(self) -> Iterator[Record]: ...


def rows_of(records: Iterable[Record]) -> Iterator[Row]:
    for record in records:
        for number, vector in enumerate(record.vectors):
            yield Row(record.file, record.spans[number] if record.spans else None, vector)


def records_of(rows: Iterable[Row]) -> Iterator[Record]:
    """The inverse of `rows_of`."""
    for file, found in groupby(rows, lambda row: row.file):
        group = list(found)
        spans = tuple(row.span for row in group if row.span is not None)
        yield Record(file, spans, numpy.stack([row.vector for row in group]))
