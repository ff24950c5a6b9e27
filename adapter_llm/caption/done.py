"""What an output is given, and how it may be cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .content import Content
from .items import Input
from .rows import CaptionRow


@dataclass(frozen=True)
class Done:
    """A row, and what it is of: `item` for all but JSON lines and parquet, `content` for outputs that keep media."""

    row: CaptionRow
    item: Input | None = None
    content: Content | None = None

    def failed(self, error: str) -> Done:
        """The same with a row that says why there is no caption after all."""
        row = replace(self.row, caption=None, finish_reason="error", status="error", error=error)
        return replace(self, row=row)


@dataclass(frozen=True)
class OutputOptions:
    """How outputs of several files are cut, and what may be replaced."""

    rows_a_part: int = 10_000  # of parquet, about
    samples_a_tar: int = 1_000
    bytes_a_tar: int = 2**30  # about
    overwrite: bool = False  # also .txt files that were there before

    def __post_init__(self) -> None:
        if min(self.rows_a_part, self.samples_a_tar, self.bytes_a_tar) < 1:
            raise ValueError("parts and shards hold at least one row, sample or byte")
