"""Rows as lines of JSON, of which at most the last is torn wherever a process ends; what is finished is known at once.

A row that another one replaces, as one with an error when its input is tried again, stays where it is until the file
is closed: the next row is appended like any other, and the earlier line taken out then, in one step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any

from ..space.formats import not_ours, whole
from ..space.records import OutputError
from ..words import one_line
from .known import KnownRows, LatestRows
from .rows import COLUMNS, CaptionRow

BEGIN = b'{"id": '  # of every line


class RowLog:
    """The rows of one file, which is appended to. Memory holds a digest a row."""

    def __init__(
        self,
        path: Path,
        others: Iterable[Path] = (),
        notes: Sequence[str] = (),
        holds: Callable[[Mapping[str, Any]], bool] = lambda values: True,
        known: KnownRows[int] | LatestRows | None = None,
    ) -> None:
        """Take up a file, or begin it; what is finished in `others` counts too.

        `notes` are columns beside the row's. Rows for which `holds` is false have lost what they tell of: they are
        taken out. Raises OutputError for a file that is not ours, and for one that is damaged or cannot be opened.
        """
        self.path = path
        self.known = KnownRows() if known is None else known
        self._columns = {*COLUMNS, *notes}
        self._end = 0
        if path.exists():
            for offset, line, values in scan(path, self._columns):
                if holds(values):
                    self.known.add(values["id"], values["config_hash"], values["status"] == "ok", offset)
                else:
                    self.known.stale.append(offset)
                self._end = offset + len(line)
        for other in others:
            with suppress(FileNotFoundError):  # it was merged just now
                for _, _, values in scan(other, self._columns):
                    self.known.add_elsewhere(values["id"], values["config_hash"], values["status"] == "ok")
        self.known.begin()
        try:
            self._file = path.open("ab", buffering=0)
            if self._file.tell() != self._end:
                self._file.truncate(self._end)  # a torn line
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}); give another --output") from error

    def append(self, rows: Sequence[CaptionRow], notes: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Handed to the system when this returns. Raises OutputError, with none of the rows written."""
        lines = [as_line(row, {} if notes is None else notes[number]) for number, row in enumerate(rows)]
        try:
            write_all(self._file, b"".join(lines))
        except OSError as error:
            with suppress(OSError):  # what came after the last whole line is cut off here, or when it is taken up
                self._file.truncate(self._end)
            raise cannot_write(self.path, error) from error
        for row, line in zip(rows, lines, strict=True):
            self.known.add(row.id, row.config_hash, row.ok, self._end)
            self._end += len(line)

    def rows(self) -> Iterator[CaptionRow]:
        """All that is in the file now, in its order, but for what is to be taken out."""
        stale = set(self.known.stale)
        for offset, _, values in scan(self.path, self._columns):
            if offset not in stale:
                yield CaptionRow(**{name: values[name] for name in COLUMNS})

    def close(self) -> None:
        """Raises OutputError if replaced rows cannot be taken out; the next run does it then."""
        self._file.close()
        if self.known.stale:
            rewrite(self.path, [(self.path, set(self.known.stale))], self._columns)

    def remove(self) -> None:
        """The rows are somewhere else now."""
        self.release()
        self.path.unlink()

    def release(self) -> None:
        """Leave the file as it is."""
        self._file.close()


def write_all(file: RawIOBase, data: bytes) -> None:
    """To a file without a buffer: after an error nothing is left that would be written later."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({error.strerror or one_line(error)}); make room and run again, what is finished "
        "is kept"
    )


def read_rows(path: Path) -> Iterator[CaptionRow]:
    """The rows of a file of JSON lines, up to a last line that is torn. Raises OutputError for another file."""
    return (CaptionRow(**values) for _, _, values in scan(path, set(COLUMNS)))


def rewrite(path: Path, parts: Iterable[tuple[Path, set[int]]], columns: set[str]) -> None:
    """Make one file, in one step, of the lines of several but for those that begin at the places to leave out."""
    with whole(path) as file:
        for part, left_out in parts:
            file.writelines(line for offset, line, _ in scan(part, columns) if offset not in left_out)


def scan(path: Path, columns: set[str]) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Where each line begins, the line, and its values; up to a last line that is torn.

    Raises OutputError for a file of other lines, and FileNotFoundError.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            while line := file.readline():
                try:
                    values = json.loads(line)
                    is_row = line.endswith(b"\n") and values.keys() == columns
                except (ValueError, AttributeError):
                    is_row = False
                if not is_row:
                    if offset == 0 and line[: len(BEGIN)] != BEGIN[: len(line)]:
                        raise not_ours(path)
                    if line.endswith(b"\n") and (b"\0" not in line or file.read(1)):  # no crash leaves this
                        raise OutputError(
                            f"{path} is damaged, or not of this command, at byte {offset} ({line[:40]!r}); "
                            "take that line out, or give another --output"
                        )
                    return
                yield offset, line, values
                offset += len(line)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror}); give another --output") from error


def as_line(row: CaptionRow, notes: Mapping[str, Any]) -> bytes:
    """Letters of all alphabets as they are; in a row with a name that is no UTF-8, all of them as ASCII."""
    values = {**row.to_dict(), **notes}
    try:
        return json.dumps(values, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(values).encode() + b"\n"
