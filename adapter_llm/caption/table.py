"""Tables of inputs: JSON lines, CSV and parquet, row by row. What is wrong with a row is said of that row alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..space.formats import pyarrow_and_parquet
from ..words import listed, one_line
from .kinds import SourceOptions, suffix_of

# by which columns are known, the likeliest first; image_path counts as path, since its last word does
PATHS = ("path", "filepath", "file", "filename", "image", "img", "video", "audio", "url", "uri")
PATHS += ("depth", "thermal", "imu", "point", "picture", "photo", "media", "key")
ROWS_AT_ONCE = 1024  # of parquet
MEDIA_AT_ONCE = 16  # of them, where they hold the media themselves


class TableError(ValueError):
    """A table that cannot be read, or a row of it."""


class ColumnError(TableError):
    """A table without a column that was asked for by its name."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what."""

    path: str
    id: str | None
    prompt: str | None

    @classmethod
    def of(cls, names: Sequence[str], options: SourceOptions, where: str) -> Columns:
        """Raises TableError if one is missing; `where` says whose they are."""
        for wanted, said in (
            (options.path_column, "path"), (options.id_column, "id"), (options.prompt_column, "prompt"),
        ):  # fmt: skip
            if wanted is not None and wanted not in names:
                there = listed(names) or "none at all"
                raise ColumnError(f"--{said}-column {wanted}: {where} has no such column, but {there}")
        path = options.path_column or next((name for usual in PATHS for name in names if _is(name, usual)), None)
        if path is None:
            raise TableError(
                f"{where} has the columns {listed(names) or '(none)'}, of which none is called as paths and URLs "
                "usually are; name it with --path-column"
            )
        return cls(path, options.id_column, options.prompt_column)

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(filter(None, (self.path, self.id, self.prompt))))


def _is(name: str, usual: str) -> bool:
    words = name.lower().replace("-", "_").split("_")
    return "".join(words) == usual or (len(words) > 1 and words[-1] == usual)


@dataclass(frozen=True)
class Entry:
    """A row: where an input is, or its bytes."""

    where: str  # for messages
    path: str | None
    data: bytes | None
    column: str
    id: str | None
    prompt: str | None

    @classmethod
    def of(cls, values: dict[str, Any], columns: Columns, where: str) -> Entry:
        """Raises TableError for a row without an input."""
        source, data = values.get(columns.path), None
        if isinstance(source, dict):  # as the datasets library stores pictures and sounds
            source, data = source.get("path"), source.get("bytes")
        elif isinstance(source, (bytes, bytearray)):
            source, data = None, bytes(source)
        if not (source is None or isinstance(source, str)) or not (data is None or isinstance(data, bytes)):
            raise TableError(f"{where} has {str(source)!r:.40} in the column {columns.path!r}, which is no path")
        if not source and data is None:
            raise TableError(f"{where} has nothing in the column {columns.path!r}")
        id, prompt = _id(values, columns, where), _prompt(values, columns, where)
        return cls(where, source or None, data, columns.path, id, prompt)


def _id(values: dict[str, Any], columns: Columns, where: str) -> str | None:
    found = None if columns.id is None else values.get(columns.id)
    if columns.id is not None and (isinstance(found, (dict, list, float)) or found in (None, "")):
        raise TableError(f"{where} has no id in the column {columns.id!r}")
    return None if found is None else str(found)


def _prompt(values: dict[str, Any], columns: Columns, where: str) -> str | None:
    found = None if columns.prompt is None else values.get(columns.prompt)
    if not (found is None or isinstance(found, str)):
        raise TableError(f"{where} has {str(found)!r:.40} in the column {columns.prompt!r}, which is no prompt")
    return found if found and found.strip() else None


def read_table(path: str, file: BinaryIO, options: SourceOptions) -> Iterator[Entry | TableError]:
    """Each row, or what is wrong with it. Raises TableError for what is wrong with the table."""
    rows = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv}.get(suffix_of(path), _json_lines)
    columns, whose = None, f"the first row of {path!r}" if rows is _json_lines else f"the table {path!r}"
    try:
        for where, values in rows(path, file, options):
            if isinstance(values, TableError):
                yield values
                continue
            columns = columns or Columns.of(list(values), options, whose)
            try:
                entry: Entry | TableError = Entry.of(values, columns, where)
            except TableError as error:
                entry = error
            yield entry
    except TableError:
        raise
    except (ValueError, OSError, csv.Error) as error:
        raise TableError(f"the table {path!r} cannot be read ({one_line(error)}); check it") from error


def _json_lines(path: str, file: BinaryIO, options: SourceOptions) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"line {number} of {path!r}"
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            values = TableError(f"{where} is not a JSON object ({one_line(error, 80)})")
        yield where, values


def _csv(path: str, file: BinaryIO, options: SourceOptions) -> Iterator[tuple[str, Any]]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        head = text.readline()
        text.seek(0)
        separator = "\t" if suffix_of(path) == ".tsv" or ("\t" in head and "," not in head) else ","
        separator = ";" if ";" in head and "," not in head else separator
        reader = csv.DictReader(text, delimiter=separator, strict=True)
        Columns.of(reader.fieldnames or [], options, f"the table {path!r}")  # also of a table without rows
        while True:
            first = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # a quote that is not closed takes in all lines up to the next one, or the end
                why = "a quote in it is not closed" if "end of data" in str(error) else one_line(error)
                raise TableError(
                    f"the row that begins in line {first} of {path!r} cannot be read ({why}); what comes behind is "
                    "missing"
                ) from error
            where = f"line {reader.line_num} of {path!r}"
            if None in values:
                values = TableError(f"{where} has more values than the table has columns; quote those with commas")
            yield where, values


def _parquet(path: str, file: BinaryIO, options: SourceOptions) -> Iterator[tuple[str, Any]]:
    pyarrow, parquet = pyarrow_and_parquet(TableError, "give JSON lines or CSV")
    try:
        with parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            columns = Columns.of(schema.names, options, f"the table {path!r}")
            kind = schema.field(columns.path).type
            plain = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
            number = 0
            for batch in table.iter_batches(ROWS_AT_ONCE if plain else MEDIA_AT_ONCE, columns=columns.names):
                for values in batch.to_pylist():
                    number += 1
                    yield f"row {number} of {path!r}", values
    except pyarrow.ArrowException as error:
        raise TableError(f"the table {path!r} is no whole parquet file ({one_line(error)}); get it again") from error
