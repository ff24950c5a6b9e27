"""A folder of parquet files, each whole; rows that wait for the next one are in a file of JSON lines beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from ..space.formats import not_ours, pyarrow_and_parquet, whole
from ..space.journal import only_writer
from ..space.records import OutputError
from ..words import one_line
from .done import Done, OutputOptions
from .items import Input
from .known import KnownRows
from .logged import check_folder
from .rowlog import RowLog, scan
from .rows import COLUMNS, CaptionRow

ROWS_AT_ONCE = 4096
PART = re.compile(r"part-(s\d{5}-)?(\d{5})\.parquet")
WAITING = re.compile(r"\.rows-(s\d{5}-)?(\d{5})\.jsonl")
PARTIAL = re.compile(r"\.part-(s\d{5}-)?(\d{5})\.parquet\.\d+\.partial")
NUMBERS = {"n_tokens": "int64", "seconds": "float64"}  # the other columns are text


class ParquetParts:
    """Parts of about so many rows; that of rows number 3 is written, whole, before the rows are removed."""

    keeps_media = False

    def __init__(self, path: Path, shard: int | None = None, options: OutputOptions = OutputOptions()) -> None:
        """Raises OutputError, also if pyarrow is missing."""
        _pyarrow()
        check_folder(path, ours=path.is_dir() and any(map(_ours, path.iterdir())))
        self.path, self.options = path, options
        self._prefix = "" if shard is None else f"s{shard:05d}-"
        self._known: KnownRows[tuple[Path, int]] = KnownRows()
        with ExitStack() as stack:
            stack.enter_context(only_writer(path / f"part-{self._prefix}"))
            self._take_up()
            self._open = stack.pop_all()

    def finished(self, id: str, config_hash: str) -> bool:
        return any([known.finished(id, config_hash) for known in (self._known, self._log.known)])

    def refuses(self, item: Input) -> str | None:
        return None

    def write(self, done: Sequence[Done]) -> Sequence[Done]:
        self._log.append([one.row for one in done])
        if len(self._log.known) >= self.options.rows_a_part:
            self._finish_part()
            self._begin(self._number + 1)
        return ()

    def close(self) -> None:
        with self._open:
            try:
                self._finish_part()
                take_out(self._known.stale)
            finally:
                self._log.release()

    def _take_up(self) -> None:
        waiting: dict[int, Path] = {}
        last = -1
        for entry in sorted(self.path.iterdir()):
            part, rows, partial = (kind.fullmatch(entry.name) for kind in (PART, WAITING, PARTIAL))
            own = ((part or rows or partial or [None, None])[1] or "") == self._prefix
            if part and own:
                last = int(part[2])
                for row, (id, config_hash, ok) in enumerate(part_keys(entry)):
                    self._known.add(id, config_hash, ok, (entry, row))
            elif rows and own:
                waiting[int(rows[2])] = entry
            elif partial and own:
                entry.unlink()  # of a process that was killed
            elif part or rows:
                with suppress(FileNotFoundError):  # became a part, or was merged, just now
                    for id, config_hash, ok in part_keys(entry) if part else waiting_keys(entry):
                        self._known.add_elsewhere(id, config_hash, ok)
        self._known.begin()
        for number, entry in waiting.items():
            if (self.path / self._name(number)).exists():  # killed when the part had its name already
                entry.unlink()
            else:
                last = number - 1
        self._begin(last + 1)

    def _name(self, number: int) -> str:
        return f"part-{self._prefix}{number:05d}.parquet"

    def _begin(self, number: int) -> None:
        self._number = number
        self._log = RowLog(self.path / f".rows-{self._prefix}{number:05d}.jsonl")

    def _finish_part(self) -> None:
        """What waits becomes a part."""
        if len(self._log.known):
            path, places = self.path / self._name(self._number), []

            def noted() -> Iterator[CaptionRow]:
                for number, row in enumerate(self._log.rows()):
                    places.append((row.id, row.config_hash, row.ok, (path, number)))
                    yield row

            write_part(path, noted())
            for place in places:
                self._known.add(*place)
        self._log.remove()

    @classmethod
    def merge(cls, path: Path, options: OutputOptions) -> None:
        """The parts of the shards, which lie in the folder already, are numbered on."""
        there = [found for entry in path.iterdir() if (found := _ours(entry))] if path.is_dir() else []
        shards = sorted({int(found[1][1:6]) for found in there if found[1]})
        if not shards:
            return
        for shard in (None, *shards):
            cls(path, shard, options).close()  # makes a part of what waits
        with ExitStack() as locks:
            for prefix in ("", *(f"s{shard:05d}-" for shard in shards)):
                locks.enter_context(only_writer(path / f"part-{prefix}"))
            parts = sorted((entry.name, entry) for entry in path.iterdir() if PART.fullmatch(entry.name))
            number = max([int(PART.fullmatch(name)[2]) for name, _ in parts if not PART.fullmatch(name)[1]], default=-1)
            known, last = KnownRows(), None
            for name, entry in parts:  # those that were there first
                shard, place = PART.fullmatch(name)[1], entry
                if shard:
                    number += 1
                    place = entry.rename(path / f"part-{number:05d}.parquet")
                if shard != last:
                    known.begin()
                last = shard
                for row, key in enumerate(part_keys(place)):
                    known.add(*key, (place, row))
            take_out(known.stale)

    @classmethod
    def discard(cls, path: Path) -> None:
        """Remove all parts. Raises OutputError if they are not ours."""
        entries = [entry for entry in path.iterdir() if _ours(entry)]
        for entry in entries:
            if PART.fullmatch(entry.name):
                next(part_keys(entry), None)
        for entry in entries:
            entry.unlink()


def _ours(entry: Path) -> re.Match[str] | None:
    return PART.fullmatch(entry.name) or WAITING.fullmatch(entry.name) or PARTIAL.fullmatch(entry.name)


def part_keys(path: Path) -> Iterator[tuple[str, str, bool]]:
    """What tells the rows of a part apart, and which are finished. Raises OutputError for a file that is not ours."""
    pyarrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            if tuple(file.schema_arrow.names) != COLUMNS:
                raise not_ours(path)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=["id", "config_hash", "status"]):
                ids, hashes, status = (column.to_pylist() for column in batch.columns)
                yield from zip(ids, hashes, (one == "ok" for one in status), strict=True)
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise OutputError(f"{path} is damaged ({one_line(error)}); remove it, its rows are made again") from error


def waiting_keys(path: Path) -> Iterator[tuple[str, str, bool]]:
    """The same of rows that wait for a part."""
    for _, _, values in scan(path, set(COLUMNS)):
        yield values["id"], values["config_hash"], values["status"] == "ok"


def write_part(path: Path, rows: Iterable[CaptionRow]) -> None:
    """The file gets its name when it is whole. Raises OutputError."""
    pyarrow, parquet = _pyarrow()
    kinds = [(name, getattr(pyarrow, NUMBERS.get(name, "string"))()) for name in COLUMNS]
    schema = pyarrow.schema(kinds)
    rows = iter(rows)
    with whole(path) as file, parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            columns = [[_cell(getattr(row, name)) for row in batch] for name in COLUMNS]
            arrays = [pyarrow.array(column, kind) for column, (_, kind) in zip(columns, kinds, strict=True)]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))


def take_out(places: Iterable[tuple[Path, int]]) -> None:
    """Write the parts again without these rows."""
    pyarrow, parquet = _pyarrow()
    stale: dict[Path, set[int]] = {}
    for path, row in places:
        stale.setdefault(path, set()).add(row)
    for path, rows in stale.items():
        table = parquet.read_table(path, partitioning=None)
        kept = pyarrow.array([number not in rows for number in range(len(table))])
        table = table.filter(kept)
        if not len(table):
            path.unlink()
            continue
        with whole(path) as file:
            parquet.write_table(table, file)


def _cell(value: Any) -> Any:
    """Text that parquet takes: names that are no UTF-8 spelt out, and options as JSON."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _pyarrow() -> tuple[Any, Any]:
    return pyarrow_and_parquet(OutputError, "write .jsonl")
