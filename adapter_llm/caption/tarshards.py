"""Shards of webdataset: each sample's medium, its caption as .txt, and its row as .json, in tar files.

`captions.jsonl` in the folder has all rows, and of each where its sample ends in which shard. A sample is written
first and its row then: what a shard holds behind the last row's sample is cut off by the next run.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any

from imagebind_encoder.media.source import MediaError

from .done import Done, OutputOptions
from .logged import JsonLines, check_folder, shard_paths
from .rowlog import cannot_write, write_all
from .rows import CaptionRow, row_key

LOG = "captions.jsonl"
SHARD, END = "shard", "end"  # columns: the tar file's name, and the byte behind the sample
BLOCK = tarfile.BLOCKSIZE
NAME = re.compile(r"(?:s\d{5}-)?\d{6}\.tar")
# how media begin whose names do not tell what they are
BEGINNINGS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


class TarShards(JsonLines):
    """A folder of shards of so many samples, or bytes, each."""

    keeps_media = True
    notes = (SHARD, END)
    settles = True

    def __init__(
        self, path: Path, shard: int | None = None, options: OutputOptions = OutputOptions(), alone: bool = False
    ) -> None:
        check_folder(path, ours=(path / LOG).exists() or bool(shard_paths(path / LOG)))
        self._prefix = "" if shard is None else f"s{shard:05d}-"
        self._sizes: dict[str, int] = {}  # of shards
        self._shard, self._end, self._count = "", 0, 0  # the one that is being written
        self._file: RawIOBase | None = None
        super().__init__(path, shard, options, alone)
        if not self._shard or (path / self._shard).exists():
            self._shard, self._end, self._count = self._next(), 0, 0
        for stale in self._partials():
            if stale != self._partial(self._shard):
                stale.unlink()

    @classmethod
    def log_path(cls, path: Path) -> Path:
        return path / LOG

    def write(self, done: Sequence[Done]) -> Sequence[Done]:
        failed: list[Done] = []
        rows: list[CaptionRow] = []
        notes: list[dict[str, Any]] = []
        for one in done:
            note: dict[str, Any] = {SHARD: None, END: None}
            if one.row.ok:
                try:
                    self._add(one, one.content.data())
                    note = {SHARD: self._shard, END: self._end}
                except MediaError as error:  # a film that was removed meanwhile
                    one = one.failed(str(error))
                    failed.append(one)
            rows.append(one.row)
            notes.append(note)
            if self._count >= self.options.samples_a_tar or self._end >= self.options.bytes_a_tar:
                self._log.append(rows, notes)
                rows, notes = [], []
                self._finish_shard()
        self._log.append(rows, notes)
        return failed

    def close(self) -> None:
        with self._open:
            try:
                if self._count:
                    self._finish_shard()
                else:
                    for stale in self._partials():
                        stale.unlink()
            finally:
                if self._file is not None:
                    self._file.close()
                self._log.close()

    def _add(self, one: Done, data: bytes) -> None:
        """Behind the last sample that counts, whatever is there."""
        key = f"{_cleaned(one.item.name)}-{row_key(one.row.id, one.row.config_hash).hex()[:8]}"
        about = json.dumps(one.row.to_dict(), ensure_ascii=False).encode("utf-8", "surrogateescape")
        text = one.row.caption.encode("utf-8", "surrogateescape")
        members = [(_suffix(one.item.path, data), data), (".txt", text), (".json", about)]
        try:
            if self._file is None:
                partial = self._partial(self._shard)
                self._file = partial.open("r+b" if partial.exists() else "w+b", buffering=0)
            self._file.seek(self._end)
            self._file.truncate()
            for suffix, content in members:
                _write_member(self._file, key + suffix, content)
            self._end, self._count = self._file.tell(), self._count + 1
        except OSError as error:
            raise cannot_write(self.path / self._shard, error) from error

    def _finish_shard(self) -> None:
        """The shard gets its end mark and its name."""
        partial = self._partial(self._shard)
        try:
            with self._file or partial.open("r+b", buffering=0) as file:
                self._file = None
                file.seek(self._end)
                file.truncate()
                write_all(file, bytes(2 * BLOCK))
                os.fsync(file.fileno())
            os.replace(partial, self.path / self._shard)
        except OSError as error:
            raise cannot_write(self.path / self._shard, error) from error
        self._shard, self._end, self._count = self._next(), 0, 0

    def _holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the sample is there: a shard may have been removed, or be shorter after a crash of the machine."""
        shard, end = values[SHARD], values[END]
        if shard is None:
            return True
        if shard not in self._sizes:
            self._sizes[shard] = 0
            for place in (self.path / shard, self._partial(shard)):
                with suppress(OSError):
                    self._sizes[shard] = self._sizes[shard] or place.stat().st_size
        if end > self._sizes[shard]:
            return False
        if self._is_own(shard):
            count = self._count + 1 if shard == self._shard else 1
            self._shard, self._end, self._count = shard, end, count
        return True

    def _next(self) -> str:
        """The name of a shard that is not there yet."""
        there = [entry.name for entry in self.path.iterdir() if NAME.fullmatch(entry.name)]
        there += [self._shard] if self._shard else []
        numbers = [int(name[-10:-4]) for name in there if self._is_own(name)]
        return f"{self._prefix}{max(numbers, default=-1) + 1:06d}.tar"

    def _is_own(self, shard: str) -> bool:
        return shard.startswith(self._prefix) and len(shard) == len(self._prefix) + len("000000.tar")

    def _partial(self, shard: str) -> Path:
        return self.path / f".{shard}.partial"

    def _partials(self) -> list[Path]:
        """Of this process's shards."""
        return sorted(self.path.glob(f".{self._prefix}{'[0-9]' * 6}.tar.partial"))

    @classmethod
    def _discard(cls, path: Path, values: Mapping[str, Any]) -> None:
        if values[SHARD] is not None:
            (path / values[SHARD]).unlink(missing_ok=True)
            (path / f".{values[SHARD]}.partial").unlink(missing_ok=True)


def _write_member(file: RawIOBase, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for data in (member.tobuf(tarfile.PAX_FORMAT), content, bytes(-len(content) % BLOCK)):
        write_all(file, data)


def _cleaned(name: str) -> str:
    """A sample's name without the medium's suffix; no dots, at which readers of webdataset part names."""
    folder, _, last = os.path.splitext(name or "unnamed")[0].rpartition("/")
    return f"{folder}/{last.replace('.', '_')}" if folder else last.replace(".", "_")


def _suffix(path: str, data: bytes) -> str:
    found = os.path.splitext(path.partition("?")[0] if "://" in path else path)[1].lower()
    if found and re.fullmatch(r"\.[a-z0-9]{1,5}", found):
        return found
    return next((suffix for begin, suffix in BEGINNINGS.items() if data.startswith(begin)), ".bin")


