"""What is known of tensors in a file before they are read, and how their bytes are had."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
BLOCK = 16 * 2**20  # bytes of a tensor that is passed on without being looked at


class TensorFileError(ValueError):
    """A file that does not hold tensors, or not all of them, in one sentence."""


@dataclass(frozen=True)
class TensorSpec:
    """All that is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Entries of the first dimension; a single number counts as one."""
        return self.shape[0] if self.shape else 1

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(tuple(tensor.shape), tensor.dtype)

    def part(self, first: int, last: int) -> TensorSpec:
        """The spec of rows `first` to `last`."""
        return TensorSpec((last - first, *self.shape[1:]), self.dtype) if self.shape else self

    def steps(self, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """All rows as first, last of blocks of about 16 MB, each but the last a multiple of `multiple` rows."""
        row = max(1, self.nbytes // max(1, self.rows))
        step = max(1, BLOCK // (row * multiple)) * multiple
        for first in range(0, self.rows, step):
            yield first, min(first + step, self.rows)

    def empty(self) -> Tensor:
        """A tensor of this kind on the meta device."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file by name, whatever its format, each read when it is asked for."""

    path: Path
    specs: Mapping[str, TensorSpec]
    rows: Callable[[str, int, int], Tensor]  # by name, first and last row; contiguous
    wrapper: str | None = None  # the key that the tensors stood under, as in {"model": {...}, "config": {...}}
    extra: Mapping[str, Any] = field(default_factory=dict)  # what stood beside them

    def read(self, name: str) -> Tensor:
        return self.rows(name, 0, self.specs[name].rows)

    def blocks(self, name: str) -> Iterator[Tensor]:
        """A tensor in pieces of about 16 MB along its first dimension: for those who only pass it on."""
        for first, last in self.specs[name].steps():
            yield self.rows(name, first, last)

    def empty(self) -> dict[str, Tensor]:
        """Every tensor on the meta device: enough to work out names and sizes."""
        return {name: spec.empty() for name, spec in self.specs.items()}


def read_at(path: Path, offset: int, spec: TensorSpec) -> Tensor:
    """A tensor whose bytes begin at `offset`. Raises TensorFileError if the file ends before they do."""
    buffer = torch.empty(spec.nbytes, dtype=torch.uint8)
    if spec.nbytes:
        with path.open("rb") as file:
            file.seek(offset)
            if file.readinto(memoryview(buffer.numpy())) != spec.nbytes:
                raise TensorFileError(f"{path} is cut off; download it again")
    return buffer.view(spec.dtype).view(spec.shape)


def read_rows_at(path: Path, offset: int, spec: TensorSpec, first: int, last: int) -> Tensor:
    """Some rows of a tensor whose bytes begin at `offset`."""
    return read_at(path, offset + first * (spec.nbytes // max(1, spec.rows)), spec.part(first, last))
