"""A .txt for each input: beside it if it lies below the output folder, else where it would lie if it did.

`captions.jsonl` in the folder tells what is done. Its line is written first and the text then, whole or not at all:
where a process ends between the two, the text is written from the line by the next run.
"""

from __future__ import annotations

import glob
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from .done import Done, OutputOptions
from .items import Input
from .known import LatestRows, text_key
from .logged import JsonLines, check_folder, shard_paths
from .rowlog import cannot_write, scan
from .rows import COLUMNS

LOG = "captions.jsonl"
FILE = "file"  # column of the text's path below the folder


class Sidecars(JsonLines):
    """Texts of one caption each; one that is made otherwise takes the place of the last."""

    notes = (FILE,)
    make_known = LatestRows
    settles = True

    def __init__(
        self, path: Path, shard: int | None = None, options: OutputOptions = OutputOptions(), alone: bool = False
    ) -> None:
        check_folder(path, ours=True)
        self._missing: dict[str, str] = {}
        self._claimed: dict[bytes, bytes] = {}  # texts to be written soon, and whose they are
        self._texts: dict[bytes, bytes] | None = None  # by file: whose it is, and what it says
        self._lock = threading.Lock()  # inputs are asked about on other threads than the one that writes
        self._top = os.path.realpath(path)
        super().__init__(path, shard, options, alone)
        for file, caption in self._missing.items():
            for stale in (path / file).parent.glob(f".{glob.escape(Path(file).name)}.*.partial"):
                stale.unlink(missing_ok=True)  # of the process that was killed
            self._write_text(path / file, caption)

    @classmethod
    def log_path(cls, path: Path) -> Path:
        return path / LOG

    def refuses(self, item: Input) -> str | None:
        with self._lock:
            return self._refuses(item, self._file_of(item))

    def _refuses(self, item: Input, file: str) -> str | None:
        if item.place is not None and os.path.realpath(item.place) == os.path.realpath(self.path / file):
            return f"{item.path!r} would be its own caption; give another --output, or --format jsonl"
        if self._claimed.setdefault(text_key(file), text_key(item.id)) != text_key(item.id):
            return f"{self.path / file} will be the caption of another input; rename one of the two"
        try:
            text = (self.path / file).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{self.path / file} is in the way ({error.strerror}); move it"
        owner, digest = self._known_text(file)
        if owner is not None and owner != text_key(item.id):
            return f"{self.path / file} is the caption of another input; rename one of the two"
        if digest != _digest(text) and not self.options.overwrite:
            whose = "was written or changed by somebody else"
            return f"{self.path / file} {whose}; move it, or let it be replaced with --overwrite"
        return None

    def write(self, done: Sequence[Done]) -> Sequence[Done]:
        """An input that is refused by now gets a row that says so. Raises OutputError."""
        with self._lock:
            refused = [self._refuses(one.item, self._file_of(one.item)) if one.row.ok else None for one in done]
            pairs = [(one, why and one.failed(why)) for one, why in zip(done, refused, strict=True)]
            self._write([failed or one for one, failed in pairs])
            for one in done:
                key = text_key(self._file_of(one.item))
                if self._claimed.get(key) == text_key(one.row.id):
                    del self._claimed[key]
        return [failed for _, failed in pairs if failed]

    def _write(self, done: Sequence[Done]) -> None:
        files = [self._file_of(one.item) if one.row.ok else None for one in done]
        for file in filter(None, files):
            with suppress(FileNotFoundError):  # what is there is not of this row: without it the row counts
                (self.path / file).unlink()
        self._log.append([one.row for one in done], [{FILE: file} for file in files])
        for one, file in zip(done, files, strict=True):
            if file is not None:
                self._write_text(self.path / file, one.row.caption)
                if self._texts is not None:
                    self._texts[text_key(file)] = text_key(one.row.id) + _digest(_text(one.row.caption))

    def _holds(self, values: Mapping[str, Any]) -> bool:
        """True: a text that is missing is written again. Empty ones are what a crash of the machine leaves."""
        file = values[FILE]
        if file is not None:
            self._missing.pop(file, None)
            try:
                missing = os.stat(self.path / file).st_size == 0
            except OSError:
                missing = True
            if missing:
                self._missing[file] = values["caption"]
        return True

    def _file_of(self, item: Input) -> str:
        if item.place is not None:
            place = os.path.join(_real(os.path.dirname(item.place)), os.path.basename(item.place))
            if _is_below(place, self._top):
                return os.path.splitext(os.path.relpath(place, self._top))[0] + ".txt"
        return os.path.splitext(item.name or "unnamed")[0] + ".txt"

    def _known_text(self, file: str) -> tuple[bytes | None, bytes]:
        """Whose text a file is by the log, and what it said; looked up once there is a text in the way."""
        if self._texts is None:
            self._texts = {}
            log = self.log_path(self.path)
            for part in (log, *shard_paths(log)):
                for _, _, values in scan(part, {*COLUMNS, FILE}) if part.exists() else ():
                    if values[FILE] is not None:
                        key = text_key(values["id"])
                        self._texts[text_key(values[FILE])] = key + _digest(_text(values["caption"]))
        found = self._texts.get(text_key(file))
        return (None, b"") if found is None else (found[: len(found) // 2], found[len(found) // 2 :])

    def _write_text(self, path: Path, caption: str) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            try:
                partial.write_bytes(_text(caption))
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(_text(caption))
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise cannot_write(path, error) from error

    @classmethod
    def _discard(cls, path: Path, values: Mapping[str, Any]) -> None:
        with suppress(OSError):
            if values[FILE] is not None and (path / values[FILE]).read_bytes() == _text(values["caption"]):
                (path / values[FILE]).unlink()


def _is_below(place: str, top: str) -> bool:
    with suppress(ValueError):  # another drive
        return os.path.commonpath([place, top]) == top
    return False


_real = lru_cache(os.path.realpath)  # of a folder with many files


def _text(caption: str) -> bytes:
    return f"{caption}\n".encode("utf-8", "surrogateescape")


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=15).digest()
