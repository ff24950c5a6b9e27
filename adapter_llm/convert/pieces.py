"""Reads `tokenizer.model`, a sentencepiece model: a protocol buffer whose few fields that matter are read here.

The sentencepiece library keeps to itself how it normalizes, and its generated classes want a library of their own.
Field numbers are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from .errors import ConversionError

LARGEST = 64 * 2**20  # bytes; the published ones have half a megabyte
BPE = 2  # TrainerSpec.model_type; a model that leaves it out is a unigram model, 1
SPACE = "▁"  # what sentencepiece writes for a space


class Kind(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Pieces:
    """A byte-pair vocabulary with byte fallback, and what is done to a text before and after."""

    texts: tuple[str, ...]  # by id
    scores: tuple[float, ...]  # a higher one is merged first
    kinds: tuple[Kind, ...]
    prefix: bool  # a space is put in front of every text, and taken away after decoding
    unknown: str  # the text of the unknown piece

    def of(self, *kinds: Kind) -> dict[str, int]:
        """Ids of the pieces of these kinds."""
        return {text: n for n, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)) if kind in kinds}


def read_pieces(path: Path) -> Pieces:
    """Raise ConversionError for what is no sentencepiece model, or one of a kind that LLaMA's is not."""
    try:
        too_large = path.stat().st_size > LARGEST
        data = b"" if too_large else path.read_bytes()
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror}); check the path") from error
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data):
        raise ConversionError(
            f"{path} is a tiktoken vocabulary, as LLaMA 3 has it, not a sentencepiece model; "
            "give that language model as a Hugging Face folder"
        )
    try:
        if too_large:
            raise ValueError("too large")
        model = _grouped(data)
        pieces = [_grouped(piece) for piece in model.get(1, ())]
        texts = tuple(piece[1][-1].decode("utf-8") for piece in pieces)
        scores = tuple(struct.unpack("<f", piece[2][-1])[0] if 2 in piece else 0.0 for piece in pieces)
        kinds = tuple(Kind(piece[3][-1]) if 3 in piece else Kind.NORMAL for piece in pieces)
        trainer, normalizer = _grouped(model[2][-1]), _grouped(model[3][-1])
        unknown = trainer[44][-1].decode("utf-8") if 44 in trainer else " \u2047 "
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise ConversionError(
            f"{path} is not a complete sentencepiece model, as LLaMA's tokenizer.model is; download it again"
        ) from error
    found = Pieces(texts, scores, kinds, bool(normalizer.get(3, [1])[-1]), unknown)
    _check(path, found, trainer, normalizer)
    return found


def _check(path: Path, pieces: Pieces, trainer: dict[int, list], normalizer: dict[int, list]) -> None:
    def last(message: dict[int, list], field: int, default: object) -> object:
        return message[field][-1] if field in message else default

    wrong = [
        (last(trainer, 3, 1) != BPE, "was not made by byte-pair encoding"),
        (set(pieces.of(Kind.BYTE)) != {f"<0x{byte:02X}>" for byte in range(256)}, "has no pieces for the 256 bytes"),
        (len(set(pieces.texts)) < len(pieces.texts), "has a piece twice"),
        (len(pieces.of(Kind.UNKNOWN)) != 1, "does not have one unknown piece"),
        (bool(pieces.of(Kind.USER_DEFINED, Kind.UNUSED)), "has pieces that its user defined or that are not used"),
        (bool(last(normalizer, 2, b"")), "rewrites characters"),
        (bool(last(normalizer, 4, 1)), "removes spaces"),
        (not last(normalizer, 5, 1) or bool(last(trainer, 24, 0)), "writes spaces in another way"),
    ]
    for found, what in wrong:
        if found:
            raise ConversionError(
                f"{path} {what}, which LLaMA's tokenizer.model does not; give the one that came with the weights"
            )


def _grouped(message: bytes) -> dict[int, list]:
    """The fields of a protocol buffer message by number. Raises ValueError if it breaks off."""
    found: dict[int, list] = {}
    for number, value in _fields(message):
        found.setdefault(number, []).append(value)
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(message) or shift > 63:
                raise ValueError("a number breaks off")
            byte, at = message[at], at + 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        wire = tag & 7
        if wire == 0:
            yield tag >> 3, number()
            continue
        sizes = {1: 8, 5: 4}
        size = number() if wire == 2 else sizes.get(wire)
        if size is None or at + size > len(message):
            raise ValueError("a field breaks off")
        at += size
        yield tag >> 3, message[at - size : at]
