"""What becomes of one input: a row, and the hash of all that its caption depends on beside the input itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

HASH_DIGITS = 16
KEY_BYTES = 15  # Python keeps so many in 48 bytes, and one more in 64


@dataclass(frozen=True)
class CaptionRow:
    """A line of an output. What an error left undone is None."""

    id: str  # of the input; with `config_hash` it tells a row from all others
    path: str
    sha256: str | None  # of the bytes that were captioned
    prompt: str
    caption: str | None
    model: str
    config_hash: str
    generation: Mapping[str, Any]  # the options
    n_tokens: int
    finish_reason: str  # "stop", "length" or "error"
    seconds: float  # from reading to the last word
    status: str = "ok"  # or "error": tried again by the next run
    error: str | None = None  # a sentence

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @cached_property
    def key(self) -> bytes:
        return row_key(self.id, self.config_hash)

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COLUMNS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CaptionRow:
        """Raises ValueError for other columns than ours, and for values that no row has."""
        if set(values) != set(COLUMNS):
            raise ValueError(f"the columns are {', '.join(values)}, not {', '.join(COLUMNS)}")
        row = cls(**values)
        words = (row.id, row.path, row.prompt, row.model, row.config_hash, row.finish_reason)
        if not all(isinstance(word, str) for word in words) or row.status not in ("ok", "error"):
            raise ValueError("a value is not of the kind that its column holds")
        if row.ok and not isinstance(row.caption, str):
            raise ValueError("a row that is finished has no caption")
        return row


COLUMNS = tuple(entry.name for entry in dataclasses.fields(CaptionRow))


def row_key(id: str, config_hash: str) -> bytes:
    """A digest of the two, for sets of millions. Names that are no UTF-8 count as they are spelt out in tables."""
    text = f"{id}\0{config_hash}".encode("utf-8", "backslashreplace")
    return hashlib.blake2b(text, digest_size=KEY_BYTES).digest()


def config_hash(
    fingerprint: str, prompt: str, generation: Mapping[str, Any], reading: Mapping[str, Any], dtype: str
) -> str:
    """Of all that a caption depends on beside the input's bytes: 16 hexadecimal digits, wherever they are taken.

    `fingerprint` is of the weights and their decoder, `generation` the GenerationOptions, and `reading` whatever
    decides what the model sees of an input: its keyword, InputOptions, settings, an index.
    """
    text = json.dumps([fingerprint, prompt, generation, reading, dtype], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
