"""Writing `.pth` and `.safetensors` one tensor at a time, so that a job that was stopped can go on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .archive import records
from .reading import WRAPPERS, load_whole, unwrap
from .specs import SAFETENSORS_DTYPES, TensorSpec

SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
NOTE_EVERY = 256 * 2**20  # bytes between two notes of how far a writer has come
Read = Callable[[str], "Tensor | Iterable[Tensor]"]


def write_safetensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    read: Read,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda count: None,
    job: str = "",
) -> None:
    """Write tensors one after the other, each from `read(name)`; a call with the same `job` goes on where one stopped.

    `read` gives the tensor, or blocks of its rows in order, so that no more than a block need be in memory.
    `progress` is told the bytes that are written, those already there too. The file is whole only when this
    returns: give it a temporary name. Raises ValueError for a tensor that is not as `specs` says.
    """
    # widest numbers first keeps every tensor aligned
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset, places = 0, {}
    for name in order:
        if specs[name].dtype not in SAFETENSORS_NAMES:
            raise ValueError(f"{name} is of {specs[name].dtype}, which safetensors files cannot hold")
        end = offset + specs[name].nbytes
        header[name] = {
            "dtype": SAFETENSORS_NAMES[specs[name].dtype],
            "shape": list(specs[name].shape),
            "data_offsets": [offset, end],
        }
        places[name], offset = offset, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def begin() -> None:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)

    places = {name: (8 + len(text) + place, ()) for name, place in places.items()}
    _fill(path, begin, lambda: places, specs, read, progress, job)


def write_pth(
    path: Path,
    specs: Mapping[str, TensorSpec],
    read: Read,
    wrapper: str | None = None,
    extra: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda count: None,
    job: str = "",
) -> None:
    """Like `write_safetensors`, in torch.save's format: a state dict, or {wrapper: state dict, **extra}."""
    if wrapper not in (None, *WRAPPERS):
        raise ValueError(f"a state dict stands under one of {', '.join(WRAPPERS)}, not {wrapper!r}")

    def begin() -> None:
        tensors = _stand_ins(specs)
        content = tensors if wrapper is None else {wrapper: tensors, **(extra or {})}
        try:
            # all but the tensors' bytes, whose places stay holes in the file
            with path.open("wb") as file, torch.serialization.skip_data():
                torch.save(content, file)
        except RuntimeError:
            path.write_bytes(bytes(2**20))  # a full disk, which torch tells in no clear way, is told by this
            raise

    def places() -> dict[str, tuple[int, tuple[int, ...]]]:
        tensors, _, _ = unwrap(path, load_whole(path, "meta"))
        parts = [part for part in records(path) if "/data/" in part.name and "/.data/" not in part.name]
        if len(parts) != len(specs):  # they would be left without their bytes
            raise ValueError(f"{path} is to hold tensors beside its state dict, which cannot be written")
        checksums = {part.offset: part.checksums for part in parts}
        offsets = {name: tensor.untyped_storage()._checkpoint_offset for name, tensor in tensors.items()}
        return {name: (offset, checksums[offset]) for name, offset in offsets.items()}

    _fill(path, begin, places, specs, read, progress, job)


def _stand_ins(specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """Tensors that are right but for their numbers, all of one type in the same memory, which is never touched.

    To torch they are separate; its own way to say so, FakeTensorMode, loads its compiler.
    """
    tensors = {}
    for dtype in {spec.dtype for spec in specs.values()}:
        alike = {name: spec for name, spec in specs.items() if spec.dtype == dtype}
        memory = torch.empty(max(spec.nbytes for spec in alike.values()), dtype=torch.uint8).numpy()
        for name, spec in alike.items():
            flat = torch.frombuffer(memory[: spec.nbytes], dtype=dtype) if spec.nbytes else torch.empty(0, dtype=dtype)
            tensors[name] = flat.view(spec.shape)
    return {name: tensors[name] for name in specs}


def _fill(
    path: Path,
    begin: Callable[[], None],
    places: Callable[[], Mapping[str, tuple[int, tuple[int, ...]]]],
    specs: Mapping[str, TensorSpec],
    read: Read,
    progress: Callable[[int], None],
    job: str,
) -> None:
    """Write the frame of a file unless an earlier run did, then every tensor into its place, with its checksum."""
    note = path.with_name(f"{path.name}.done")
    layout = repr([(name, spec.shape, str(spec.dtype)) for name, spec in specs.items()])
    identity = hashlib.sha256(f"{job}\0{layout}".encode()).hexdigest()
    done = _done(note, identity) if path.is_file() else 0
    if done == 0:
        note.unlink(missing_ok=True)  # it would be believed again if this run were stopped before its first note
        begin()
    pending = 0
    with path.open("r+b") as file:
        for index, (name, (offset, checksums)) in enumerate(places().items()):
            if index < done:
                progress(specs[name].nbytes)
                continue
            file.seek(offset)
            checksum = 0
            for block in _blocks(name, read(name), specs[name]):
                file.write(block)
                checksum = zlib.crc32(block, checksum) if checksums else 0
                progress(len(block))
            for place in checksums:
                file.seek(place)
                file.write(checksum.to_bytes(4, "little"))
            pending += specs[name].nbytes
            if pending >= NOTE_EVERY:
                _sync(file)
                note.write_text(f"{index + 1} {identity}", encoding="ascii")
                pending = 0
        _sync(file)
    note.unlink(missing_ok=True)


def _done(note: Path, identity: str) -> int:
    """Tensors that an earlier run of the same job has surely written. A torn note has no whole identity."""
    try:
        count, found = note.read_text(encoding="ascii").split()
        return int(count) if found == identity else 0
    except (OSError, ValueError):
        return 0


def _blocks(name: str, found: Tensor | Iterable[Tensor], spec: TensorSpec) -> Iterator[memoryview]:
    """The bytes of a tensor in pieces. Raises ValueError unless together they are what `spec` says."""
    whole = isinstance(found, Tensor)
    rows = 0
    for block in [found] if whole else found:
        if block.dtype != spec.dtype or block.shape[1:] != spec.shape[1:] or block.dim() != len(spec.shape):
            raise ValueError(f"{name} was to be {spec.shape} {spec.dtype} and is {tuple(block.shape)} {block.dtype}")
        rows += TensorSpec.of(block).rows
        if block.numel():
            yield memoryview(block.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    if rows != spec.rows:
        raise ValueError(f"{name} was to have {spec.rows} rows and has {rows}")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
