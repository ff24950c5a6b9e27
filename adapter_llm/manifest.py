"""What a weights folder says of itself: which decoder it was trained for, what its files are, where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagebind_encoder.schema import ConfigError, as_arguments, as_plain

from .parts import WheelPart

FORMAT = 1


@dataclass(frozen=True)
class DecoderRecord:
    """The decoder the adapter was trained for; its sizes are checked before anything is loaded."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    part: WheelPart | None = None  # where the default one comes from
    source: str | None = None  # or a hub id, or a folder; a relative one starts at the weights folder
    fingerprint: str | None = None  # of its weights, if they must be exactly those
    tokenizer: str | None = None  # fingerprint of its tokenizer, likewise

    @classmethod
    def of(
        cls,
        config: Any,
        name: str,
        part: WheelPart | None = None,
        source: str | None = None,
        fingerprint: str | None = None,
        tokenizer: str | None = None,
    ) -> DecoderRecord:
        """The record of a transformers config."""
        heads = config.num_attention_heads
        return cls(
            name=name,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            vocab_size=config.vocab_size,
            part=part,
            source=source,
            fingerprint=fingerprint,
            tokenizer=tokenizer,
        )

    def differences(self, other: DecoderRecord) -> list[str]:
        """Sizes in which another decoder is not this one, in words."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
        pairs = [(name, getattr(other, name), getattr(self, name)) for name in names]
        return [f"{name} {found} instead of {wanted}" for name, found, wanted in pairs if found != wanted]


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Origin:
    """The published file that weights were converted from, and what the way back needs to know of it."""

    family: str
    name: str  # of the file
    file: FileRecord
    layers: int | None = None  # of the decoder
    wrapper: str | None = None  # the key its tensors stood under
    extra: Mapping[str, Any] = field(default_factory=dict)  # what stood beside them
    dtypes: Mapping[str, str] = field(default_factory=dict)  # of the tensors whose type is another here


@dataclass(frozen=True)
class Manifest:
    """`manifest.json` beside the weights."""

    decoder: DecoderRecord | None = None  # None: an encoder alone
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    origin: Origin | None = None
    backbone: WheelPart | None = None  # weights of the vision backbone, if the encoder has one
    licence: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)  # data, splits, settings
    quality: Mapping[str, Any] = field(default_factory=dict)  # what was measured, on what
    format: int = FORMAT

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Raise ConfigError for an unknown key, at any depth, and for a newer format."""
        values = as_arguments(cls, data, "the manifest")
        if values.get("format", FORMAT) != FORMAT:
            raise ConfigError(f"the manifest has format {values['format']}, this version reads {FORMAT}; update it")
        if values.get("decoder") is not None:
            decoder = as_arguments(DecoderRecord, values["decoder"], "decoder")
            decoder["part"] = _part(decoder.get("part"), "decoder.part")
            values["decoder"] = DecoderRecord(**decoder)
        if values.get("origin") is not None:
            origin = as_arguments(Origin, values["origin"], "origin")
            origin["file"] = FileRecord(**as_arguments(FileRecord, origin["file"], "origin.file"))
            values["origin"] = Origin(**origin)
        files = values.get("files", {})
        if not isinstance(files, Mapping):
            raise ConfigError(f"files must map names to sizes and hashes, not be {files!r}")
        files = {n: FileRecord(**as_arguments(FileRecord, record, f"files.{n}")) for n, record in files.items()}
        backbone = _part(values.get("backbone"), "backbone")
        return cls(**{**values, "files": files, "backbone": backbone})

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read the file; raise ConfigError with its name for anything wrong in it."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return as_plain(self)


def _part(data: Any, where: str) -> WheelPart | None:
    return None if data is None else WheelPart(**as_arguments(WheelPart, data, where))
