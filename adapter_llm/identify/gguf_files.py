"""GGUF files, by their header: the gguf package reads every token of the vocabulary, which takes seconds."""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from .found import GGUF, Found, IdentifyError, known

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by type
MOST_AXES = 8
ALIGNMENT = 32  # of the data behind the header, unless a field says otherwise


def identify_gguf(path: Path) -> Found:
    """Raises IdentifyError for a file that is damaged or shorter than its header says."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        with path.open("rb") as file:
            header = _Header(file)
            kinds = [GGMLQuantizationType(kind) for _, kind, _ in header.tensors]
            start = header.end + -header.end % header.fields.get("general.alignment", ALIGNMENT)
            ends = [start + offset + math.prod(shape) // GGML_QUANT_SIZES[kind][0] * GGML_QUANT_SIZES[kind][1]
                    for kind, (shape, _, offset) in zip(kinds, header.tensors, strict=True)]  # fmt: skip
            if (size := path.stat().st_size) < max(ends, default=0):
                raise ValueError(f"{size} bytes instead of {max(ends)}")
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise IdentifyError(f"{path} is GGUF, but damaged or cut off ({error}); download it again") from error
    fields = header.fields
    name = fields.get("general.architecture")
    sizes = known(
        layers=fields.get(f"{name}.block_count"),
        hidden_size=fields.get(f"{name}.embedding_length"),
        heads=fields.get(f"{name}.attention.head_count"),
        kv_heads=fields.get(f"{name}.attention.head_count_kv"),
        intermediate_size=fields.get(f"{name}.feed_forward_length"),
        vocab_size=fields.get(f"{name}.vocab_size") or fields.get("tokenizer.ggml.tokens"),
    )
    called = fields.get("general.name")
    return Found.of(
        path, GGUF, {}, (path,), variant=name, sizes=sizes, dtypes=dict(Counter(kind.name for kind in kinds)),
        tensors=len(kinds), notes=[f"it calls itself {called}"] if called else (),
    )  # fmt: skip


class _Header:
    """Everything before the data: fields by name (an array is told by its length alone) and tensors.

    A tensor is its shape, type and offset. Raises ValueError or LookupError for what is not a header.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.seek(len(MAGIC))
        version, tensors, fields = self._number("I"), self._number("Q"), self._number("Q")
        if version not in VERSIONS:
            raise ValueError(f"version {version}, which is not known here")
        self.fields = {self._text(): self._value(self._number("I")) for _ in range(fields)}
        self.tensors = [self._tensor() for _ in range(tensors)]
        self.end = file.tell()

    def _number(self, code: str) -> Any:
        data = self._file.read(struct.calcsize(code))
        if len(data) != struct.calcsize(code):
            raise ValueError("it ends within its header")
        return struct.unpack(f"<{code}", data)[0]

    def _text(self) -> str:
        length = self._number("Q")
        data = self._file.read(min(length, 2**20))
        if len(data) != length:
            raise ValueError("it ends within its header")
        return data.decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            return self._number(NUMBERS[kind])
        kind, length = self._number("I"), self._number("Q")
        if kind in NUMBERS:
            self._file.seek(length * struct.calcsize(NUMBERS[kind]), 1)
        else:
            for _ in range(length):
                self._value(kind)
        return length

    def _tensor(self) -> tuple[tuple[int, ...], int, int]:
        self._text()
        axes = self._number("I")
        if axes > MOST_AXES:
            raise ValueError(f"a tensor of {axes} axes")
        shape = tuple(self._number("Q") for _ in range(axes))
        return shape, self._number("I"), self._number("Q")
