"""Where converted files are written: begun under another name, gone on with after a stop, whole when they appear.

All work is done in a folder OUTPUT.partial beside the output. It stays when a conversion is interrupted, by Ctrl-C, a
full disk or worse, and the same command goes on in it; it gets its own name when everything in it is on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tensorfiles import TensorSpec, write_pth, write_safetensors
from .errors import ConversionError
from .partial import JOB, discard, partial_folder, sync

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..tensorfiles.writing import Read

FORMAT = 1  # of what is written; to raise it makes older partial folders worthless


def job_of(*sources: Path, **settings: Any) -> str:
    """What makes two conversions the same: paths, sizes and times of the sources, all files of a folder, and settings.

    Unfinished output that lies in a source counts for nothing. Raises OSError for a source that is not there.
    """
    files = []
    for source in (Path(source).resolve() for source in sources):
        found = (file for file in source.rglob("*") if ".partial" not in str(file.relative_to(source)))
        for file in sorted(filter(Path.is_file, found)) if source.is_dir() else [source]:
            state = file.stat()
            files.append((str(file), state.st_size, state.st_mtime_ns))
    identity = [FORMAT, files, sorted((name, repr(value)) for name, value in settings.items())]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def refuse_inside(output: Path, *sources: Path) -> None:
    """Raise ConversionError for an output in one of the folders that are read."""
    for source in sources:
        if Path(output).expanduser().resolve().is_relative_to(Path(source).expanduser().resolve()):
            raise ConversionError(f"{output} is inside of {source}, which is read; give an --output elsewhere")


@dataclass(frozen=True)
class OutputFolder:
    """A folder in the making."""

    path: Path  # where it is now
    job: str
    bar: tqdm
    given: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """Files written or linked so far, in this run or an earlier one."""
        return list(self.given)

    def tensors(
        self, name: str, specs: Mapping[str, TensorSpec], read: Read, metadata: Mapping[str, str] | None = None
    ) -> None:
        """A safetensors file; `read` gives a tensor by its name, or blocks of its rows."""
        with self._unless_done(name, specs) as path:
            if path:
                write_safetensors(path, specs, read, metadata, self.bar.update, self.job)

    def pth(
        self,
        name: str,
        specs: Mapping[str, TensorSpec],
        read: Read,
        wrapper: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """A file in torch.save's format, else like `tensors`."""
        with self._unless_done(name, specs) as path:
            if path:
                write_pth(path, specs, read, wrapper, extra, self.bar.update, self.job)

    def write(self, name: str, content: str | bytes) -> None:
        """A small file."""
        part = self.path / f"{name}.part"
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        self._whole(name, part)

    def link(self, name: str, source: Path) -> None:
        """A file that is `source`: the same bytes on the disk where that can be, else a copy."""
        if (self.path / name).is_file():
            self.given.append(name)
            return
        part = self.path / f"{name}.part"
        part.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), part)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source, part)
        self._whole(name, part)

    @contextlib.contextmanager
    def _unless_done(self, name: str, specs: Mapping[str, TensorSpec]) -> Iterator[Path | None]:
        """The name to write to, or None if an earlier run of this job has written the file."""
        if (self.path / name).is_file():
            self.bar.update(sum(spec.nbytes for spec in specs.values()))
            self.given.append(name)
            yield None
        else:
            yield self.path / f"{name}.part"
            self._whole(name, self.path / f"{name}.part")

    def _whole(self, name: str, part: Path) -> None:
        os.replace(part, self.path / name)
        if name not in self.given:
            self.given.append(name)


@dataclass(frozen=True)
class OutputFile:
    """A single file in the making."""

    path: Path  # where it will be when it is written, until it gets its own place
    folder: OutputFolder

    def pth(
        self,
        specs: Mapping[str, TensorSpec],
        read: Read,
        wrapper: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """See `OutputFolder.pth`."""
        self.folder.pth(self.path.name, specs, read, wrapper, extra)

    def tensors(
        self, specs: Mapping[str, TensorSpec], read: Read, metadata: Mapping[str, str] | None = None
    ) -> None:
        """See `OutputFolder.tensors`."""
        self.folder.tensors(self.path.name, specs, read, metadata)


@contextlib.contextmanager
def output_folder(output: Path, job: str, total_bytes: int, progress: bool = True) -> Iterator[OutputFolder]:
    """A folder to write to, which becomes `output` when the block ends well.

    `total_bytes` are those of the tensors; `progress` shows a bar if stderr is a terminal. Raises ConversionError,
    before any work if it can: `output` holds something, the disk has too little room, another process is at it.
    """
    output = Path(output).expanduser().resolve()
    with _working(output, job, total_bytes, progress) as folder:
        yield folder
        sync(*folder.path.iterdir(), folder.path)
        if output.is_dir():
            output.rmdir()  # Windows puts nothing in the place of a folder
        os.replace(folder.path, output)
        (output / JOB).unlink()
        sync(output, output.parent)


@contextlib.contextmanager
def output_file(output: Path, job: str, total_bytes: int, progress: bool = True) -> Iterator[OutputFile]:
    """Like `output_folder` for a single file."""
    output = Path(output).expanduser().resolve()
    if output.is_dir():
        raise ConversionError(f"{output} is a folder; give --output the name of a file that does not exist yet")
    with _working(output, job, total_bytes, progress) as folder:
        yield OutputFile(folder.path / output.name, folder)
        sync(folder.path / output.name)
        os.replace(folder.path / output.name, output)
        discard(folder.path)
        sync(output.parent)


@contextlib.contextmanager
def _working(output: Path, job: str, total_bytes: int, progress: bool) -> Iterator[OutputFolder]:
    from tqdm import tqdm

    with partial_folder(output, job, total_bytes) as partial:
        shown = None if progress else True  # None leaves it to whether stderr is a terminal
        with tqdm(total=total_bytes, unit="B", unit_scale=True, desc=output.name, disable=shown) as bar:
            yield OutputFolder(partial, job, bar)
