"""torch.save's zip archives: what their parts are and where they lie."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .specs import TensorFileError, TensorSpec, read_at, read_rows_at

_LOCAL, _CENTRAL = 30, 46  # bytes of a zip's headers before the names in them


@dataclass(frozen=True)
class Record:
    """One part of an archive."""

    name: str
    offset: int  # of its bytes
    nbytes: int
    packed: bool
    checksums: tuple[int, ...]  # where its CRC-32 stands in the file


def records(path: Path) -> list[Record]:
    """The parts of an archive in order. Raises zipfile.BadZipFile, and other errors for damaged ones."""
    found = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entry = archive.start_dir
        for info in archive.infolist():
            file.seek(info.header_offset)
            offset = info.header_offset + _LOCAL + sum(struct.unpack("<26x2H", file.read(_LOCAL)))
            # torch writes the checksum behind the bytes, others write it before them
            behind = info.flag_bits & 8
            checksums = (entry + 16, offset + info.compress_size + 4 if behind else info.header_offset + 14)
            packed = info.compress_type != zipfile.ZIP_STORED
            found.append(Record(info.filename, offset, info.file_size, packed, checksums))
            file.seek(entry)
            entry += _CENTRAL + sum(struct.unpack("<28x3H12x", file.read(_CENTRAL)))
    return found


class ArchiveReader:
    """Reads the tensors that torch.load put on the meta device, from the places it noted for them."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], parts: list[Record]) -> None:
        self.path = path
        self.tensors = tensors
        by_offset = {part.offset: part for part in parts if part.nbytes}
        self.starts = {name: self._start(name, tensor, by_offset) for name, tensor in tensors.items()}

    def _start(self, name: str, tensor: Tensor, by_offset: Mapping[int, Record]) -> int:
        """Where a tensor's storage begins. What torch worked out must be what the archive says."""
        if tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
            raise TensorFileError(f"{self.path} holds {name} in a special form; save it as an ordinary tensor")
        if not tensor.numel():
            return 0
        start = tensor.untyped_storage()._checkpoint_offset
        part = by_offset.get(start)
        if part is None or part.packed or part.nbytes < tensor.untyped_storage().nbytes():
            raise TensorFileError(f"{self.path} has no bytes of its own for {name}; save it again with torch.save")
        return start

    def rows(self, name: str, first: int, last: int) -> Tensor:
        tensor, start = self.tensors[name], self.starts[name]
        if tensor.is_contiguous():
            offset = start + tensor.storage_offset() * tensor.dtype.itemsize
            return read_rows_at(self.path, offset, TensorSpec.of(tensor), first, last)
        wanted = tensor[first:last]
        span = 1 + sum((size - 1) * stride for size, stride in zip(wanted.shape, wanted.stride(), strict=True))
        offset = start + wanted.storage_offset() * wanted.dtype.itemsize
        flat = read_at(self.path, offset, TensorSpec((span,), wanted.dtype))
        return flat.as_strided(wanted.shape, wanted.stride()).contiguous()
