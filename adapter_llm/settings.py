"""Settings of a weights folder that a run may change: how files are read, by name or as the originals did it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from imagebind_encoder.config import INPUTS, EncoderConfig
from imagebind_encoder.schema import ConfigError

from .config import AdapterLLMConfig


def with_settings(config: AdapterLLMConfig, settings: Mapping[str, Any]) -> AdapterLLMConfig:
    """A config with some of its input settings changed, {"imu.rate": 50, "depth.unit": "millimetres"}.

    What there is to set stands in imagebind_encoder/inputs.py. Raises ConfigError for another name or a bad value.
    """
    encoder = config.encoder
    for name, value in settings.items():
        kind, _, field = name.partition(".")
        current = getattr(encoder, kind, None) if kind in INPUTS else None
        known = [] if current is None else [one.name for one in fields(current)]
        if field not in known:
            names = [f"{kind}.{one}" for one in known] or [f"{one}..." for one in INPUTS if hasattr(encoder, one)]
            raise ConfigError(f"there is no setting {name!r}; there are {', '.join(names)}")
        encoder = replace(encoder, **{kind: replace(current, **{field: value})})
    return replace(config, encoder=encoder)


def as_published(config: AdapterLLMConfig) -> AdapterLLMConfig:
    """What the originals did at run time, as settings.

    ImageBind ignored how a picture is to be turned (the library that V2 read its pictures with did not), changed
    overlapping clips of a sound in place, and ImageBind-LLM's tokenizer cut the end of long texts off.
    """
    encoder = config.encoder
    if not isinstance(encoder, EncoderConfig):
        return config
    encoder = replace(
        encoder,
        image=replace(encoder.image, orient=False),
        audio=replace(encoder.audio, overlap="shared"),
        text=replace(encoder.text, keep_end=False),
    )
    return replace(config, encoder=encoder)
