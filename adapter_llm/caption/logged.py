"""Outputs whose rows are in one file of JSON lines: that file alone, or with what it tells of beside it."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..space.journal import only_writer
from ..space.records import OutputError
from .done import Done, OutputOptions
from .items import Input
from .known import KnownRows, LatestRows
from .rowlog import RowLog, rewrite, scan
from .rows import COLUMNS

LARGEST = 2**44  # bytes of a file, so that one number tells a place in several


class JsonLines:
    """A JSON object a line; and what outputs have in common that keep such lines."""

    keeps_media = False
    notes: Sequence[str] = ()  # columns beside the row's
    make_known: type[KnownRows] | type[LatestRows] = KnownRows
    settles = False  # whether a log alone does not tell what a killed process left

    def __init__(
        self, path: Path, shard: int | None = None, options: OutputOptions = OutputOptions(), alone: bool = False
    ) -> None:
        """`alone` leaves out what is finished elsewhere. Raises OutputError."""
        log = self.log_path(path)
        own = log if shard is None else shard_path(log, shard)
        self.path, self.shard, self.options = path, shard, options
        with ExitStack() as stack:
            stack.enter_context(only_writer(own))
            others = [] if alone else [other for other in (log, *shard_paths(log)) if other != own]
            self._log = RowLog(own, others, self.notes, self._holds, self.make_known())
            self._open = stack.pop_all()

    @classmethod
    def log_path(cls, path: Path) -> Path:
        return path

    def finished(self, id: str, config_hash: str) -> bool:
        return self._log.known.finished(id, config_hash)

    def refuses(self, item: Input) -> str | None:
        return None

    def write(self, done: Sequence[Done]) -> Sequence[Done]:
        self._log.append([one.row for one in done])
        return ()

    def close(self) -> None:
        with self._open:
            self._log.close()

    def _holds(self, values: Mapping[str, Any]) -> bool:
        """Whether what a row tells of is still there."""
        return True

    @classmethod
    def merge(cls, path: Path, options: OutputOptions) -> None:
        """First what was there, then the rows of the shards in their order."""
        log = cls.log_path(path)
        columns = {*COLUMNS, *cls.notes}
        if not shard_paths(log):
            return
        for shard in (None, *shard_numbers(log)) if cls.settles else ():
            cls(path, shard, options, alone=True).close()
        with _all_locked(log) as parts:
            known = cls.make_known()
            for number, part in enumerate(parts):
                known.begin()
                for offset, _, values in scan(part, columns):
                    place = number * LARGEST + offset
                    known.add(values["id"], values["config_hash"], values["status"] == "ok", place)
            left_out: dict[Path, set[int]] = {part: set() for part in parts}
            for place in known.stale:
                left_out[parts[place // LARGEST]].add(place % LARGEST)
            rewrite(log, left_out.items(), columns)
            for part in parts:
                if part != log:
                    part.unlink()

    @classmethod
    def discard(cls, path: Path) -> None:
        """Remove all of it. Raises OutputError if it is not ours."""
        log = cls.log_path(path)
        with _all_locked(log) as parts:
            for part in parts:
                for _, _, values in scan(part, {*COLUMNS, *cls.notes}):
                    cls._discard(path, values)
            for part in parts:
                part.unlink()

    @classmethod
    def _discard(cls, path: Path, values: Mapping[str, Any]) -> None:
        """Remove what a row tells of."""


@contextmanager
def _all_locked(log: Path) -> Iterator[list[Path]]:
    """The files of an output, that of all first, while nobody writes any of them."""
    with ExitStack() as locks:
        locks.enter_context(only_writer(log))
        for shard in shard_paths(log):
            locks.enter_context(only_writer(shard))
        yield [*([log] if log.exists() else []), *shard_paths(log)]


def shard_path(path: Path, shard: int) -> Path:
    """out.jsonl -> out.shard-00003.jsonl"""
    return path.with_name(f"{path.stem}.shard-{shard:05d}{path.suffix}")


def shard_paths(path: Path) -> list[Path]:
    """Those that are there, in their order."""
    digits = "[0-9]" * 5
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.shard-{digits}{glob.escape(path.suffix)}"))


def shard_numbers(path: Path) -> list[int]:
    return [int(shard.stem[-5:]) for shard in shard_paths(path)]


def check_folder(path: Path, ours: bool) -> None:
    """Raise OutputError for a file, and for a folder of other things."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, and this output is a folder; give another --output")
    if not ours and path.is_dir() and any(entry.name[:1] != "." for entry in path.iterdir()):
        raise OutputError(f"the folder {path} holds other things than this command's captions; give another --output")
