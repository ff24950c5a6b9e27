"""Every size of an adapter model, as frozen dataclasses and one JSON file that knows no other keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from imagebind_encoder.config import EncoderConfig, ImageConfig, Modality
from imagebind_encoder.schema import ConfigError, as_arguments, as_plain, is_number, require_positive

KEYWORDS = {  # what media are called where people name them, and the trunk that reads them
    "image": Modality.VISION,
    "video": Modality.VISION,
    "audio": Modality.AUDIO,
    "text": Modality.TEXT,
    "depth": Modality.DEPTH,
    "thermal": Modality.THERMAL,
    "imu": Modality.IMU,
    "point": Modality.POINT,
}


@dataclass(frozen=True)
class ClipConfig:
    """CLIP's vision transformer as the encoder: all its tokens, projected, are the features (LLaMA-Adapter V2)."""

    embedding_dim: int = 768  # E
    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch_size: int = 14  # pixels
    image: ImageConfig = field(default_factory=ImageConfig)
    kind: str = "clip"  # tells this config from an EncoderConfig

    def __post_init__(self) -> None:
        require_positive(self, "embedding_dim", "width", "depth", "heads", "patch_size")
        if self.kind != "clip":
            raise ConfigError(f'encoder.kind is "{self.kind}"; it must be "clip", or left out for ImageBind')
        if self.width % self.heads:
            raise ConfigError(f"encoder.width {self.width} is not a multiple of encoder.heads {self.heads}")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return (Modality.VISION,)

    @classmethod
    def from_dict(cls, values: dict) -> ClipConfig:
        values = as_arguments(cls, values, "encoder")
        if "image" in values:
            values["image"] = ImageConfig(**as_arguments(ImageConfig, values["image"], "encoder.image"))
        return cls(**values)


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
        _require_bool(self, "bias")
        if self.kind == "visual_query" and self.width % self.heads:
            raise ConfigError(f"connector.width {self.width} is not a multiple of connector.heads {self.heads}")


@dataclass(frozen=True)
class AdapterConfig:
    """What is injected into the decoder."""

    query_len: int = 10  # adapter tokens a layer (Q)
    query_layer: int = 31  # the last L decoder layers get them
    layer_scale: bool = False  # a learned (L, D) factor on the query tokens; published weights have none
    gate_scale: bool = False  # a learned factor a layer on tanh(gate): `new_gate` of the V2 files with LoRA

    def __post_init__(self) -> None:
        require_positive(self, "query_len", "query_layer")
        _require_bool(self, "layer_scale", "gate_scale")


@dataclass(frozen=True)
class DecoderConfig:
    """What the weights change in the decoder itself, on top of the base model they were trained for."""

    biases: bool = False  # on q_proj, o_proj and the feed-forward; never on k_proj and v_proj
    norms: bool = False  # every RMSNorm of the decoder is replaced
    lora_rank: int = 0  # rank of the update of every linear layer; 0: none

    def __post_init__(self) -> None:
        _require_bool(self, "biases", "norms")
        if isinstance(self.lora_rank, bool) or not isinstance(self.lora_rank, int) or self.lora_rank < 0:
            raise ConfigError(f"DecoderConfig.lora_rank must be an integer, at least 0, not {self.lora_rank!r}")

    def __bool__(self) -> bool:
        return self.biases or self.norms or self.lora_rank > 0


@dataclass(frozen=True)
class PromptConfig:
    """How a question becomes decoder input."""

    template: str = "chat"  # "chat" (the tokenizer's own) or "alpaca" (the published adapters)
    system: str | None = None  # system message of turns with media; None leaves the template's default
    empty_input: bool = False  # alpaca: an empty context still selects the template with one, as in V2

    def __post_init__(self) -> None:
        if self.template not in ("chat", "alpaca"):
            raise ConfigError(f'prompt.template is "{self.template}"; it must be "chat" or "alpaca"')
        if self.system is not None and not isinstance(self.system, str):
            raise ConfigError(f"PromptConfig.system must be a text or null, not {self.system!r}")
        _require_bool(self, "empty_input")


@dataclass(frozen=True)
class AdapterLLMConfig:
    """The whole model but the decoder, whose sizes come from its own config."""

    encoder: EncoderConfig | ClipConfig
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    @classmethod
    def from_dict(cls, values: dict) -> AdapterLLMConfig:
        """Raise ConfigError for a key that does not exist, at any depth."""
        values = as_arguments(cls, values, "the config")
        parts = {
            "connector": ConnectorConfig,
            "adapter": AdapterConfig,
            "prompt": PromptConfig,
            "decoder": DecoderConfig,
        }
        for name, part in parts.items():
            if name in values:
                values[name] = part(**as_arguments(part, values[name], name))
        encoder = values["encoder"]
        family = ClipConfig if isinstance(encoder, dict) and "kind" in encoder else EncoderConfig
        return cls(**{**values, "encoder": family.from_dict(encoder)})

    @classmethod
    def load(cls, path: str | Path) -> AdapterLLMConfig:
        """Read `config.json`; raise ConfigError with the file's name for anything wrong in it."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict:
        return as_plain(self)


def _require_bool(config: object, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{type(config).__name__}.{name} must be true or false, not {getattr(config, name)!r}")
