"""Sizes of the encoder, as data: no torch here, so a program may read a config for free."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from .inputs import (
    AudioConfig,
    DepthConfig,
    ImageConfig,
    ImuConfig,
    TextConfig,
    ThermalConfig,
    VideoConfig,
)
from .modalities import FACTS, Modality, PatchStemConfig, PointStemConfig, StemConfig, TextStemConfig
from .schema import ConfigError, as_arguments, as_plain, is_number, require_positive

__all__ = [
    "FACTS",
    "INPUTS",
    "AudioConfig",
    "ConfigError",
    "DepthConfig",
    "EncoderConfig",
    "ImageConfig",
    "ImuConfig",
    "Modality",
    "PatchStemConfig",
    "PointStemConfig",
    "TextConfig",
    "TextStemConfig",
    "ThermalConfig",
    "TrunkConfig",
    "VideoConfig",
]

INPUTS = {  # how each kind of file becomes a tensor, by its field of EncoderConfig
    "image": ImageConfig,
    "video": VideoConfig,
    "audio": AudioConfig,
    "text": TextConfig,
    "depth": DepthConfig,
    "thermal": ThermalConfig,
    "imu": ImuConfig,
}


@dataclass(frozen=True)
class TrunkConfig:
    """One modality's stem and transformer."""

    width: int
    depth: int  # blocks; 0 only with a backbone, whose stem then does all the work
    heads: int
    num_cls_tokens: int = 1  # features an input becomes; the published weights have 1
    mlp_ratio: float = 4.0
    backbone: str | None = None  # vision and audio only: a timm model that takes the place of the patch stem
    backbone_classes: int | None = None  # that it tells apart; None: as many as its published weights
    stem: StemConfig | None = None  # None: the published stem of the modality

    def __post_init__(self) -> None:
        require_positive(self, "width", "heads", "num_cls_tokens", *(["depth"] if self.backbone is None else []))
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 0:
            raise ConfigError(f"TrunkConfig.depth must be an integer, at least 0, not {self.depth!r}")
        if self.width % self.heads:
            raise ConfigError(f"a trunk's width {self.width} must be a multiple of its heads, {self.heads}")
        if not is_number(self.mlp_ratio) or self.mlp_ratio <= 0:
            raise ConfigError(f"TrunkConfig.mlp_ratio must be a positive number, not {self.mlp_ratio!r}")
        if self.backbone is not None and not (isinstance(self.backbone, str) and self.backbone):
            raise ConfigError(f"TrunkConfig.backbone must be a timm model's name or null, not {self.backbone!r}")
        if self.backbone_classes is not None:
            require_positive(self, "backbone_classes")


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of every trunk. Stems left out are filled in, so a config always says everything.

    A vision stem left out takes its height and width from `image.size`.
    """

    embedding_dim: int  # E, shared by all modalities
    trunks: Mapping[Modality, TrunkConfig]
    image: ImageConfig = field(default_factory=ImageConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    thermal: ThermalConfig = field(default_factory=ThermalConfig)
    imu: ImuConfig = field(default_factory=ImuConfig)

    def __post_init__(self) -> None:
        require_positive(self, "embedding_dim")
        if not isinstance(self.trunks, Mapping) or not self.trunks:
            raise ConfigError("EncoderConfig.trunks needs at least one modality")
        trunks = {Modality(name): trunk for name, trunk in self.trunks.items()}
        complete = {name: self._with_stem(name, trunks[name]) for name in Modality if name in trunks}
        object.__setattr__(self, "trunks", MappingProxyType(complete))

    def __hash__(self) -> int:
        inputs = (getattr(self, name) for name in INPUTS)
        return hash((self.embedding_dim, tuple(self.trunks.items()), *inputs))

    def __reduce__(self):
        return EncoderConfig.from_dict, (self.to_dict(),)  # a read-only view cannot be pickled

    def _with_stem(self, modality: Modality, trunk: TrunkConfig) -> TrunkConfig:
        published = FACTS[modality].stem
        if trunk.backbone is not None and modality not in (Modality.VISION, Modality.AUDIO):
            raise ConfigError(f"only vision and audio trunks can have a backbone, {modality} has {trunk.backbone!r}")
        if trunk.stem is None:
            if modality is Modality.VISION:
                published = replace(published, size=(published.size[0], self.image.size, self.image.size))
            return replace(trunk, stem=published)
        if type(trunk.stem) is not type(published):
            raise ConfigError(f"{modality} needs a {type(published).__name__}, not a {type(trunk.stem).__name__}")
        if isinstance(published, PatchStemConfig) and len(trunk.stem.size) != len(published.size):
            raise ConfigError(f"a {modality} stem has {len(published.size)} axes, not {len(trunk.stem.size)}")
        return trunk

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(self.trunks)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON; `from_dict` gives the config back."""
        return as_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EncoderConfig":
        """Inverse of `to_dict`. Raises ConfigError on an unknown or missing key or a bad value."""
        values = as_arguments(cls, data, "the encoder config")
        for name, kind in INPUTS.items():
            if name in values:
                values[name] = kind(**as_arguments(kind, values[name], name))
        if not isinstance(values["trunks"], Mapping):
            raise ConfigError("trunks must map modalities to their sizes")
        trunks = {}
        for name, entry in values["trunks"].items():
            modality = Modality(name)
            trunk = as_arguments(TrunkConfig, entry, f"trunks.{name}")
            if trunk.get("stem") is not None:
                kind = type(FACTS[modality].stem)
                trunk["stem"] = kind(**as_arguments(kind, trunk["stem"], f"trunks.{name}.stem"))
            trunks[modality] = TrunkConfig(**trunk)
        return cls(**{**values, "trunks": trunks})

    @classmethod
    def preset(cls, name: str) -> "EncoderConfig":
        """A named config: "huge" has the sizes of the published weights, "w3d" a point-cloud trunk beside them.

        Pictures and films are turned upright by their tags; for exactly the original's
        pixels use `replace(config, image=replace(config.image, orient=False))`.
        """
        if name not in _PRESETS:
            raise ConfigError(f"there is no preset {name!r}; the presets are {', '.join(sorted(_PRESETS))}")
        embedding_dim, sizes = _PRESETS[name]
        return cls(embedding_dim, {modality: TrunkConfig(*size) for modality, size in sizes.items()})


_HUGE = {  # modality: (width, depth, heads)
    Modality.VISION: (1280, 32, 16),
    Modality.TEXT: (1024, 24, 16),
    Modality.AUDIO: (768, 12, 12),
    Modality.DEPTH: (384, 12, 8),
    Modality.THERMAL: (768, 12, 12),
    Modality.IMU: (512, 6, 8),
}
_PRESETS = {  # name: (embedding_dim, sizes)
    "huge": (1024, _HUGE),
    "w3d": (1024, {**_HUGE, Modality.POINT: (384, 12, 6)}),
}
