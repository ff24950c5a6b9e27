"""Every size of an adapter model, as frozen dataclasses and one JSON file that knows no other keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from imagebind_encoder.config import EncoderConfig
from imagebind_encoder.schema import ConfigError, as_arguments, as_plain, is_number, require_positive


@dataclass(frozen=True)
class ConnectorConfig:
    """How features (B, N, E) become query tokens (B, Q, D)."""

    kind: str = "visual_query"  # "visual_query" (LLaMA-Adapter V2) or "bridge" (ImageBind-LLM)
    width: int = 768  # visual_query: width of its blocks
    depth: int = 8  # visual_query: number of blocks; bridge: number of gated feed-forwards
    heads: int = 16  # visual_query only
    mlp_ratio: float = 4.0  # hidden width of the feed-forward over its input width
    norm_eps: float = 1e-5  # timm's own default is 1e-6; the published V2 weights were trained with 1e-5
    bias: bool = False  # bridge only: LayerNorm and biases, the layout of its first published files

    def __post_init__(self) -> None:
        if self.kind not in ("visual_query", "bridge"):
            raise ConfigError(f'connector.kind is "{self.kind}"; it must be "visual_query" or "bridge"')
        require_positive(self, "width", "depth", "heads")
        for name in ("mlp_ratio", "norm_eps"):
            value = getattr(self, name)
            if not is_number(value) or value <= 0:
                raise ConfigError(f"ConnectorConfig.{name} must be a positive number, not {value!r}")
        if not isinstance(self.bias, bool):
            raise ConfigError(f"ConnectorConfig.bias must be true or false, not {self.bias!r}")
        if self.kind == "visual_query" and self.width % self.heads:
            raise ConfigError(f"connector.width {self.width} is not a multiple of connector.heads {self.heads}")


@dataclass(frozen=True)
class AdapterConfig:
    """What is injected into the decoder."""

    query_len: int = 10  # adapter tokens a layer (Q)
    query_layer: int = 31  # the last L decoder layers get them
    layer_scale: bool = False  # a learned (L, D) factor on the query tokens; published weights have none

    def __post_init__(self) -> None:
        require_positive(self, "query_len", "query_layer")
        if not isinstance(self.layer_scale, bool):
            raise ConfigError(f"AdapterConfig.layer_scale must be true or false, not {self.layer_scale!r}")


@dataclass(frozen=True)
class PromptConfig:
    """How a question becomes decoder input."""

    template: str = "chat"  # "chat" (the tokenizer's own) or "alpaca" (the published adapters)
    system: str | None = None  # system message of turns with media; None leaves the template's default

    def __post_init__(self) -> None:
        if self.template not in ("chat", "alpaca"):
            raise ConfigError(f'prompt.template is "{self.template}"; it must be "chat" or "alpaca"')
        if self.system is not None and not isinstance(self.system, str):
            raise ConfigError(f"PromptConfig.system must be a text or null, not {self.system!r}")


@dataclass(frozen=True)
class AdapterLLMConfig:
    """The whole model but the decoder, whose sizes come from its own config."""

    encoder: EncoderConfig
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)

    @classmethod
    def from_dict(cls, values: dict) -> AdapterLLMConfig:
        """Raise ConfigError for a key that does not exist, at any depth."""
        values = as_arguments(cls, values, "the config")
        parts = {"connector": ConnectorConfig, "adapter": AdapterConfig, "prompt": PromptConfig}
        for name, part in parts.items():
            if name in values:
                values[name] = part(**as_arguments(part, values[name], name))
        return cls(**{**values, "encoder": EncoderConfig.from_dict(values["encoder"])})

    @classmethod
    def load(cls, path: str | Path) -> AdapterLLMConfig:
        """Read `config.json`; raise ConfigError with the file's name for anything wrong in it."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict:
        return as_plain(self)
