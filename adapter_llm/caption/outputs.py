"""Where rows go: `open_output` by the name's suffix or a format, `merge` for what several processes wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..space.records import OutputError
from .done import Done, OutputOptions
from .items import Input
from .logged import JsonLines, shard_path
from .parts import ParquetParts
from .sidecars import Sidecars
from .tarshards import TarShards

__all__ = ["FORMATS", "Done", "Output", "OutputError", "OutputOptions"]
__all__ += ["discard", "format_of", "merge", "open_output", "written_place"]

FORMATS = {"jsonl": JsonLines, "parquet": ParquetParts, "txt": Sidecars, "webdataset": TarShards}
SUFFIXES = {".jsonl": "jsonl", ".parquet": "parquet"}


class Output(Protocol):
    """An output that is being written, by one process."""

    keeps_media: bool  # whether `write` needs the content

    def finished(self, id: str, config_hash: str) -> bool:
        """Whether there is a row with status ok, in this output or in what its sister processes wrote.

        If there is, errors that earlier runs met with this id are taken out, too.
        """

    def refuses(self, item: Input) -> str | None:
        """Why this input's caption could not be kept here, in a sentence, before it is made; None: it can."""

    def write(self, done: Sequence[Done]) -> Sequence[Done]:
        """On its way to the disk, whatever happens to this process, when this returns.

        Those whose captions could not be kept after all come back with rows that say why, as they were written.
        Raises OutputError.
        """

    def close(self) -> None:
        """Take replaced rows out, finish parts, and let others write. Raises OutputError."""


def format_of(path: Path, form: str | None = None) -> str:
    """A key of FORMATS. Raises OutputError for a suffix that tells nothing."""
    if form is not None and form not in FORMATS:
        raise OutputError(f"there is no format {form!r}; there are {', '.join(FORMATS)}")
    found = form or SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise OutputError(
            f"{path} ends in none of {', '.join(SUFFIXES)}; name the output so that it does, or, for a folder, say "
            "--format txt, webdataset or parquet"
        )
    return found


def open_output(
    path: str | Path,
    form: str | None = None,
    *,
    shard: int | None = None,
    resume: bool = True,
    options: OutputOptions = OutputOptions(),
) -> Output:
    """Take up an output, or begin it; without `resume` what was there is removed.

    `shard` is the number of this process where several write the same output: their rows lie apart until `merge`.
    Raises OutputError if the output is not ours, is being written by another process, or cannot be written.
    """
    path = _place(path)
    kind = FORMATS[format_of(path, form)]
    if not resume:
        if shard is not None:
            raise ValueError("an output of several processes is discarded before the first of them opens it")
        discard(path, form)
    try:
        return kind(path, shard, options)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); give another --output") from error


def written_place(path: str | Path, form: str | None, shard: int | None) -> Path:
    """What `open_output` writes: a file, or, of a shard in a folder, too, the folder."""
    alone = shard is None or FORMATS[format_of(path := Path(path), form)] is not JsonLines
    return path if alone else shard_path(_place(path), shard)


def merge(path: str | Path, form: str | None = None, options: OutputOptions = OutputOptions()) -> None:
    """Make what several processes wrote one output: first what was there, then the shards' rows in their order.

    Nothing is done where there are no shards. Raises OutputError, also while a process writes one of them.
    """
    path = _place(path)
    kind = FORMATS[format_of(path, form)]
    if path.exists() or path.parent.is_dir():
        kind.merge(path, options)


def discard(path: str | Path, form: str | None = None) -> None:
    """Remove an output with all its shards, if there is one; files that texts or rows are of stay.

    Raises OutputError if it is not ours, or is being written.
    """
    path = _place(path)
    kind = FORMATS[format_of(path, form)]
    if kind is JsonLines or path.exists():
        kind.discard(path)


def _place(path: str | Path) -> Path:
    path = Path(path).expanduser()
    return path.resolve() if path.is_symlink() else path
