"""What is finished is written down at once, beside the output, so that a job that was killed goes on where it was.

The journal is a text file to which only whole lines are added: first how the vectors are made, then a line a record.
Wherever a process ends, at most the last line is torn; it is cut off, and its input is done again.
"""

from __future__ import annotations

import base64
import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy

from ..words import one_line
from .files import MediaFile
from .records import OutputError, Record

FORMAT = "adapter_llm embedding journal 1"
BEGIN = '{"format": "adapter_llm embedding journal'  # of a journal in whatever version


class Journal:
    """Records of finished inputs, in memory only where they stand in the file."""

    def __init__(self, path: Path, config_hash: str) -> None:
        """Take up the journal of a job of this `config_hash`, or begin it; one of another job is begun anew.

        Raises OutputError if the file is no journal, or cannot be opened.
        """
        self.path = path
        self._places: dict[MediaFile, tuple[int, int]] = {}  # where a record's line begins, and its rows
        try:
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}); give another --output") from error
        self._end = 0
        head = {"format": FORMAT, "config_hash": config_hash}
        if not self._take_up(head):
            self._file.truncate(0)
            self._places.clear()
            self._end = 0
            self._add(json.dumps(head))

    def __contains__(self, file: MediaFile) -> bool:
        return file in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, record: Record) -> None:
        """Written, and handed to the system, when this returns."""
        file, vectors = record.file, numpy.ascontiguousarray(record.vectors, "<f4")
        line = json.dumps({
            "file": [file.path, file.keyword, file.size, file.modified],
            "spans": record.spans,
            "shape": vectors.shape,
            "vectors": base64.b64encode(vectors.data).decode(),
        })  # fmt: skip
        place = self._end
        self._add(line)
        self._places[file] = (place, len(vectors))

    def records(self, files: Sequence[MediaFile]) -> JournalRecords:
        """The records of these files, in this order; those that are not in the journal are left out."""
        return JournalRecords(self, [file for file in files if file in self._places])

    def rows(self, file: MediaFile) -> int:
        return self._places[file][1]

    def record(self, file: MediaFile) -> Record:
        self._file.seek(self._places[file][0])
        return _record_of(self._file.readline())

    def close(self) -> None:
        self._file.close()

    def _take_up(self, head: dict[str, str]) -> bool:
        """Read what is there up to a line that is torn, and cut that off; False for another job's journal."""
        begun = self._file.read(len(BEGIN))
        if begun != BEGIN[: len(begun)].encode():
            self._file.close()
            raise OutputError(f"{self.path} is in the way and is no journal of this command; move it")
        self._file.seek(0)
        while line := self._file.readline():
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("torn")
                if self._end == 0:
                    if json.loads(line) != head:
                        return False
                else:
                    record = _record_of(line)
                    self._places[record.file] = (self._end, len(record.vectors))
            except (ValueError, KeyError, TypeError):
                break
            self._end += len(line)
        self._file.truncate(self._end)
        return self._end > 0

    def _add(self, line: str) -> None:
        try:
            self._file.seek(self._end)
            self._file.write(line.encode("ascii") + b"\n")
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # what came after the last whole line is cut off here, or when it is taken up
                self._file.truncate(self._end)
            raise OutputError(
                f"{self.path} cannot be written ({error.strerror or one_line(error)}); make room and run again, "
                "what is finished is kept"
            ) from error
        self._end += len(line) + 1


class JournalRecords:
    """Records that are read when they are walked through."""

    def __init__(self, journal: Journal, files: Sequence[MediaFile]) -> None:
        self._journal, self._files = journal, files
        self.rows = sum(journal.rows(file) for file in files)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Record]:
        return map(self._journal.record, self._files)


def seed(path: Path, config_hash: str, records: Iterable[Record]) -> None:
    """A journal that begins with the records of a finished output; it is whole, or not there."""
    partial = path.with_name(f"{path.name}.new")
    partial.unlink(missing_ok=True)
    try:
        with closing(Journal(partial, config_hash)) as journal:
            for record in records:
                journal.add(record)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Raise OutputError if another process writes the same output, or if its folder cannot be written to."""
    from filelock import FileLock, Timeout

    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        _check_place(Path(lock.lock_file), output)
        raise OutputError(f"another process is writing {output}; wait for it, or give another --output") from None
    except OSError as error:
        raise _no_place(output, error) from error
    try:
        for stale in output.parent.glob(f".{glob.escape(output.name)}.*.partial"):  # of processes that were killed
            stale.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _check_place(lock: Path, output: Path) -> None:
    """Raise OutputError if a lock was not had since its file cannot be made, which filelock takes for being held."""
    try:
        with lock.open("x"):
            pass
    except FileExistsError:
        pass
    except OSError as error:
        raise _no_place(output, error) from error


def _no_place(output: Path, error: OSError) -> OutputError:
    reason = error.strerror or one_line(error)
    return OutputError(f"{output.parent} cannot be written to ({reason}); give another --output")


def _record_of(line: bytes) -> Record:
    values = json.loads(line)
    vectors = numpy.frombuffer(base64.b64decode(values["vectors"], validate=True), "<f4").reshape(values["shape"])
    path, keyword, size, modified = values["file"]
    return Record(MediaFile(path, keyword, size, modified), tuple((a, b) for a, b in values["spans"]), vectors)
