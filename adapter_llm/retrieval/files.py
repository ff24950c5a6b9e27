"""The index's own file: vectors written as they come, and mapped from the file when they are searched.

It is a safetensors file of `vectors` (N, E) float32 and, if there are any, `ids`: UTF-8, each ended by a zero byte.
What a vector is of may stand beside them, in `entries`: a line of JSON each time another id begins.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..words import listed, not_downloaded, one_line

FORMAT = "adapter_llm feature index 1"
DATA_START = 1024  # room for the header, which is written last: only then is the number of vectors known
FLOAT_BYTES = 4


class FeatureIndexError(ValueError):
    """An index that cannot be read, written or used as it was asked to be."""


def checked(
    batches: Iterable[tuple[Sequence[str] | None, Tensor]],
) -> Iterator[tuple[list[str] | None, Tensor]]:
    """The batches, ids and vectors (b, E), as float32 on the CPU. Raises FeatureIndexError for what does not fit."""
    width = named = None
    for ids, vectors in batches:
        if isinstance(ids, str) or vectors.ndim != 2 or 0 in vectors.shape:
            raise FeatureIndexError(
                f"an index is built from lists of ids and vectors (b, E), not from {ids!r:.40} and vectors "
                f"{tuple(vectors.shape)}"
            )
        if ids is not None:
            ids = list(ids)
            if len(ids) != len(vectors) or not all(isinstance(entry, str) and "\0" not in entry for entry in ids):
                raise FeatureIndexError(
                    f"each of the {len(vectors)} vectors of a batch needs an id that is a string without zero bytes, "
                    f"or none has one; there are {len(ids)} ids"
                )
        if width is None:
            width, named = vectors.shape[1], ids is not None
        if (vectors.shape[1], ids is not None) != (width, named):
            raise FeatureIndexError(
                f"the first batch has vectors of {width} numbers {'with' if named else 'without'} ids, a later one of "
                f"{vectors.shape[1]} {'without' if ids is None else 'with'} ids; they must be alike to be one index"
            )
        vectors = vectors.detach().to("cpu", torch.float32).contiguous()
        if not vectors.isfinite().all():
            row = int((~vectors.isfinite().all(dim=1)).nonzero()[0])
            raise FeatureIndexError(f"the vector of {ids[row] if ids else f'row {row}'} is not finite; leave it out")
        yield ids, vectors
    if width is None:
        raise FeatureIndexError("an index needs at least one vector")


class WholeFile:
    """A file that gets its name when all of it is written, and else leaves nothing; disk problems are one sentence."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")

    def __enter__(self) -> WholeFile:
        with self._naming():
            self.file: BinaryIO = self.partial.open("wb")
        return self

    def write(self, data: bytes | bytearray | Tensor, at: int | None = None) -> None:
        """Bytes, or the bytes of a tensor, behind what is there or `at` a place."""
        with self._naming():
            if at is not None:
                self.file.seek(at)
            self.file.write(memoryview(data.view(torch.uint8).numpy()) if isinstance(data, Tensor) else data)

    def __exit__(self, kind: type | None, *rest) -> None:
        try:
            if kind is None:
                with self._naming():
                    self.file.flush()
                    os.fsync(self.file.fileno())
                    self.file.close()
                    os.replace(self.partial, self.path)
        finally:
            with suppress(OSError):
                self.file.close()
            self.partial.unlink(missing_ok=True)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FeatureIndexError(
                f"{self.path} cannot be written ({error.strerror or error}); make room, or give another path"
            ) from error


def write_index(
    path: str | Path,
    batches: Iterable[tuple[Sequence[str] | None, Tensor]],
    entries: Iterable[str] = (),
    about: Mapping[str, str] | None = None,
) -> None:
    """Write batches one after the other; memory holds one batch and all ids.

    `entries` are walked through behind the batches, and `about` is kept beside the format's name.
    """
    rows, width, names = 0, 0, bytearray()
    with WholeFile(path) as file:
        file.write(bytes(DATA_START))
        for ids, vectors in checked(batches):
            file.write(vectors)
            rows, width = rows + len(vectors), vectors.shape[1]
            for entry in ids or ():
                names += entry.encode("utf-8", "surrogateescape") + b"\0"  # paths may hold bytes that are no UTF-8
        end = rows * width * FLOAT_BYTES
        header = {
            "__metadata__": {"format": FORMAT, **(about or {})},
            "vectors": {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, end]},
        }
        lines = "".join(f"{entry}\n" for entry in entries).encode("ascii")
        for name, content in (("ids", names), ("entries", lines)):
            if content:
                file.write(content)
                header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [end, end + len(content)]}
                end += len(content)
        length = DATA_START - 8
        file.write(length.to_bytes(8, "little") + json.dumps(header).encode().ljust(length), at=0)


def read_index(path: str | Path) -> tuple[Tensor, list[str] | None]:
    """The vectors' bytes (N, 4 E), mapped, and the ids. Raises FeatureIndexError for any other file."""
    path = Path(path).expanduser()
    if is_faiss(first_bytes(path)):
        raise FeatureIndexError(f"{path} is an index of faiss; read it with FeatureIndex.from_faiss")
    try:
        # numpy's side of the library maps read-only; torch's reserves memory for the whole file
        with safe_open(path, framework="numpy") as file:
            keys, metadata = set(file.keys()), file.metadata() or {}
            names = file.get_tensor("ids").tobytes() if "ids" in keys else None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(length)).get("vectors", {})
    except (SafetensorError, OSError) as error:
        raise FeatureIndexError(
            f"{path} is cut off or no feature index ({one_line(error, 120)}); build it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise FeatureIndexError(f"{path} holds tensors and is no feature index; build one from features")
    if not {"vectors"} <= keys <= {"vectors", "ids", "entries"} or entry["dtype"] != "F32" or len(entry["shape"]) != 2:
        raise FeatureIndexError(
            f"{path} holds {listed(sorted(keys))} where vectors (N, E) in float32 and ids are wanted; build it again"
        )
    rows, width = entry["shape"]
    ids = None if names is None else names.decode("utf-8", "surrogateescape").split("\0")[:-1]
    if not rows or not width or (ids is not None and len(ids) != rows):
        raise FeatureIndexError(
            f"{path} has {rows} vectors of {width} numbers and {len(ids or ())} ids; build it again"
        )
    return map_rows(path, 8 + length + entry["data_offsets"][0], rows, width), ids


def read_entries(path: str | Path) -> tuple[list[str] | None, dict[str, str]]:
    """The lines of `entries`, if there are any, and what is said `about` an index that `read_index` can read."""
    with safe_open(Path(path).expanduser(), framework="numpy") as file:
        about = {name: value for name, value in (file.metadata() or {}).items() if name != "format"}
        lines = file.get_tensor("entries").tobytes().decode("ascii") if "entries" in file.keys() else None  # noqa: SIM118
    return None if lines is None else lines.splitlines(), about


def first_bytes(path: Path) -> bytes:
    """How a file begins. Raises FeatureIndexError where there is none, and for what downloads often are instead."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise FeatureIndexError(f"{path} cannot be read ({error.strerror}); check the path") from error
    if problem := not_downloaded(head, "an index"):
        raise FeatureIndexError(f"{path} {problem}")
    return head


def is_faiss(head: bytes) -> bool:
    """Whether a file that begins so is an index of faiss: four letters or digits name its kind, I is the first."""
    return len(head) >= 4 and head[:1] == b"I" and head[:4].isalnum()


def map_rows(path: Path, start: int, rows: int, width: int) -> Tensor:
    """Bytes (rows, 4 width) of a file. Read-only, so it may be larger than memory; never hand it out to be changed."""
    mapped = np.memmap(path, np.uint8, mode="r", offset=start, shape=(rows, width * FLOAT_BYTES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the memory cannot be written, which is what we want
        return torch.from_numpy(mapped)
