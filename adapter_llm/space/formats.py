"""Files of vectors: .jsonl, .npz and .parquet, written when all is known and read again to go on from.

Every format holds the same columns: id, path, modality, start, end (seconds, nothing for a whole input), size and
modified (of the file, to see whether it has changed), config_hash (how the vectors were made) and embedding.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy

from ..retrieval.files import WholeFile
from ..words import one_line
from .files import MediaFile
from .records import OutputError, Record, Records, Row, records_of, rows_of

COLUMNS = ("id", "path", "modality", "start", "end", "size", "modified", "config_hash")
ROWS_AT_ONCE = 1024  # of vectors, on their way to a file


class Format(Protocol):
    """A way to keep records in a file."""

    def check(self, counts: set[int]) -> None:
        """Raise OutputError, before any work, for inputs of so many vectors each, and if a library is missing."""

    def write(self, path: Path, records: Records, config_hash: str) -> None:
        """Write all records; the file gets its name when it is whole. Raises OutputError."""

    def read(self, path: Path) -> tuple[str, Iterator[Record]]:
        """How the vectors were made, and the records. Raises OutputError for a file that `write` did not write."""


def format_of(path: Path) -> Format:
    """By suffix. Raises OutputError."""
    formats = {".jsonl": JsonLines, ".npz": Npz, ".parquet": Parquet}
    if path.suffix.lower() not in formats:
        raise OutputError(f"{path} ends in none of {', '.join(formats)}; name the output so that it does")
    return formats[path.suffix.lower()]()


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is written. Raises OutputError where the disk does not take it."""
    with WholeFile(path) as file:
        try:
            yield file.file
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or one_line(error)}); make room, or give another path"
            ) from error


def not_ours(path: Path, error: Exception | None = None) -> OutputError:
    reason = f" ({one_line(error, 120)})" if error else ""
    return OutputError(f"{path} is there and was not written by this command{reason}; give another --output")


def cells(row: Row, config_hash: str) -> dict[str, Any]:
    """A row but for its vector, by COLUMNS."""
    file, (start, end) = row.file, row.span or (None, None)
    values = (row.id, file.path, file.keyword, start, end, file.size, file.modified, config_hash)
    return dict(zip(COLUMNS, values, strict=True))


def row_of(values: dict[str, Any], vector: numpy.ndarray) -> Row:
    """The inverse of `cells`. Raises KeyError or TypeError for values that it did not make."""
    file = MediaFile(values["path"], values["modality"], int(values["size"]), int(values["modified"]))
    start, end = values["start"], values["end"]
    whole_input = start is None or start != start  # columns of floats have NaN for nothing
    return Row(file, None if whole_input else (float(start), float(end)), vector)


class JsonLines:
    """A JSON object a line; numbers with the nine digits that give a float32 back."""

    def check(self, counts: set[int]) -> None:
        pass

    def write(self, path: Path, records: Records, config_hash: str) -> None:
        with whole(path) as file:
            for row in rows_of(records):
                # ASCII alone: paths may hold bytes that are no UTF-8
                head = json.dumps(cells(row, config_hash))
                file.write(f'{head[:-1]}, "embedding": {_digits(row.vector)}}}\n'.encode())

    def read(self, path: Path) -> tuple[str, Iterator[Record]]:
        def rows() -> Iterator[Row]:
            with path.open(encoding="ascii") as file:
                for line in file:
                    values = json.loads(line)
                    yield row_of(values, numpy.array(values["embedding"], numpy.float32))

        try:
            with path.open(encoding="ascii") as file:
                first = json.loads(file.readline())
            row_of(first, first["embedding"])
            return first["config_hash"], records_of(rows())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise not_ours(path) from error


def _digits(vector: numpy.ndarray) -> str:
    if vector.ndim > 1:
        return f"[{', '.join(_digits(part) for part in vector)}]"
    return f"[{', '.join(f'{number:.9g}' for number in vector.tolist())}]"


class Npz:
    """Arrays `embedding` (M, E) or (M, N, E) and a column each (M,), for numpy.load; nothing in it is pickled."""

    def check(self, counts: set[int]) -> None:
        _check_alike(counts, "array")

    def write(self, path: Path, records: Records, config_hash: str) -> None:
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for row in rows_of(records):
            for name, value in cells(row, config_hash).items():
                columns[name].append(numpy.nan if value is None else value)
        shape = next(iter(records)).vectors.shape[1:]
        with whole(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, values in columns.items():
                with archive.open(f"{'ids' if name == 'id' else name}.npy", "w") as entry:
                    numpy.lib.format.write_array(entry, numpy.array(values), allow_pickle=False)
            with archive.open("embedding.npy", "w", force_zip64=True) as entry:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(columns["id"]), *shape)}
                numpy.lib.format.write_array_header_1_0(entry, header)
                for record in records:
                    entry.write(numpy.ascontiguousarray(record.vectors, "<f4").data)

    def read(self, path: Path) -> tuple[str, Iterator[Record]]:
        try:
            with path.open("rb") as file, numpy.load(file, allow_pickle=False) as arrays:
                found = {name: arrays["ids" if name == "id" else name] for name in COLUMNS}
                embedding = arrays["embedding"]
            plain = {name: column.tolist() for name, column in found.items()}
            rows = [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]
            pairs = zip(rows, embedding, strict=True)
            return rows[0]["config_hash"], records_of(row_of(values, vector) for values, vector in pairs)
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
            raise not_ours(path) from error


class Parquet:
    """A table with `embedding` as list<float>, or list<list<float>> with all class tokens."""

    def check(self, counts: set[int]) -> None:
        _check_alike(counts, "table")
        _pyarrow()

    def write(self, path: Path, records: Records, config_hash: str) -> None:
        pyarrow, parquet = _pyarrow()
        depth = next(iter(records)).vectors.ndim - 1
        schema = _schema(pyarrow, depth)
        with whole(path) as file, parquet.ParquetWriter(file, schema) as writer:
            for rows in _batches(rows_of(records)):
                columns = [cells(row, config_hash) for row in rows]
                table = {name: [_text(values[name]) for values in columns] for name in COLUMNS}
                vectors = _nested(pyarrow, numpy.stack([row.vector for row in rows]))
                arrays = [pyarrow.array(table[name], schema.field(name).type) for name in COLUMNS]
                writer.write_batch(pyarrow.record_batch([*arrays, vectors], schema=schema))

    def read(self, path: Path) -> tuple[str, Iterator[Record]]:
        pyarrow, parquet = _pyarrow()

        def rows() -> Iterator[Row]:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE):
                    for values in batch.to_pylist():
                        yield row_of(values, numpy.array(values["embedding"], numpy.float32))

        try:
            with parquet.ParquetFile(path) as file:
                if set(file.schema_arrow.names) != {*COLUMNS, "embedding"}:
                    raise not_ours(path)
                first = next(file.iter_batches(1, columns=["config_hash"])).to_pylist()[0]
            return first["config_hash"], records_of(rows())
        except (OSError, ValueError, StopIteration, IndexError, pyarrow.ArrowException) as error:
            raise error if isinstance(error, OutputError) else not_ours(path) from error


def _check_alike(counts: set[int], kind: str) -> None:
    if len(counts) > 1:
        numbers = " and ".join(map(str, sorted(counts)))
        raise OutputError(f"these inputs have {numbers} class tokens, and one {kind} holds one number; use .jsonl")


def _pyarrow() -> tuple[Any, Any]:
    return pyarrow_and_parquet(OutputError, "write .npz or .jsonl")


def pyarrow_and_parquet(error: type[ValueError], instead: str) -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises `error`, with what may be done instead, where they are not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as missing:
        raise error(f'parquet needs pyarrow; pip install "adapter-llm[parquet]", or {instead}') from missing
    return pyarrow, parquet


def _text(value: Any) -> Any:
    """Names that are no UTF-8, as some other systems' are, with their bytes spelt out: parquet takes no others."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _schema(pyarrow: Any, depth: int) -> Any:
    kinds = {"start": pyarrow.float64(), "end": pyarrow.float64(), "size": pyarrow.int64(), "modified": pyarrow.int64()}
    vector = pyarrow.float32()
    for _ in range(depth):
        vector = pyarrow.list_(vector)
    return pyarrow.schema([*((name, kinds.get(name, pyarrow.string())) for name in COLUMNS), ("embedding", vector)])


def _nested(pyarrow: Any, vectors: numpy.ndarray) -> Any:
    """An arrow array of lists (of lists), without a Python number for each number."""
    array, total = pyarrow.array(vectors.reshape(-1)), vectors.size
    for length in reversed(vectors.shape[1:]):
        starts = numpy.arange(0, total + 1, length, dtype=numpy.int32)
        array = pyarrow.ListArray.from_arrays(pyarrow.array(starts), array)
        total //= length
    return array


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
