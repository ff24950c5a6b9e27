"""Sizes of the encoder, as data: no torch here, so a program may read a config for free."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

from .schema import ConfigError, as_arguments, as_plain, is_number, require_positive

NORM_EPS = 1e-6  # blocks, pre-norm and heads
STEM_NORM_EPS = 1e-5  # the norm behind a patch projection; not the same number
MAX_LOGIT_SCALE = 100.0


class Modality(str, Enum):
    """What an input is; equal to, and hashes like, its own name in lower case."""

    VISION = "vision"
    TEXT = "text"
    AUDIO = "audio"
    DEPTH = "depth"
    THERMAL = "thermal"
    IMU = "imu"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def _missing_(cls, value: object) -> None:
        names = ", ".join(modality.value for modality in cls)
        raise ConfigError(f"there is no modality {value!r}; the modalities are {names}")


@dataclass(frozen=True)
class ImageConfig:
    """How a picture becomes a (3, size, size) tensor."""

    size: int = 224  # pixels
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1]
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    crop: str = "center"  # "center": shorter side to size, cut the middle; "squash": keep everything
    orient: bool = True  # turn the picture as its EXIF tag says; the original ignores the tag (False)
    channels: str = "rgb"  # order in the tensor; mean and std are in the same order. "bgr": LLaMA-Adapter V2

    def __post_init__(self) -> None:
        require_positive(self, "size")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != 3 or not all(is_number(value) for value in values):
                raise ConfigError(f"ImageConfig.{name} needs three numbers, one a channel, not {values!r}")
        if min(self.std) <= 0:
            raise ConfigError(f"ImageConfig.std must be positive, not {self.std!r}")
        if self.crop not in ("center", "squash"):
            raise ConfigError(f"ImageConfig.crop must be 'center' or 'squash', not {self.crop!r}")
        if self.channels not in ("rgb", "bgr"):
            raise ConfigError(f"ImageConfig.channels must be 'rgb' or 'bgr', not {self.channels!r}")
        if not isinstance(self.orient, bool):
            raise ConfigError(f"ImageConfig.orient must be true or false, not {self.orient!r}")


@dataclass(frozen=True)
class PatchStemConfig:
    """A stem that cuts its input into patches; `size`, `kernel` and `stride` name the same axes."""

    channels: int
    size: tuple[int, ...]  # (frames, height, width) vision; (mel, frames) audio; (samples,) imu
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    norm: bool = True  # LayerNorm over each projected patch

    def __post_init__(self) -> None:
        require_positive(self, "channels", "size", "kernel", "stride")
        for name in ("size", "kernel", "stride"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                raise ConfigError(f"PatchStemConfig.{name} needs a list, one number an axis, not {value!r}")
        if not len(self.size) == len(self.kernel) == len(self.stride):
            raise ConfigError(
                f"a stem's size {self.size}, kernel {self.kernel} and stride {self.stride} need as many axes each"
            )
        if any(size < kernel for size, kernel in zip(self.size, self.kernel)):
            raise ConfigError(f"a stem's kernel {self.kernel} does not fit into its input size {self.size}")

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis; what does not fill a kernel at the far end is cut."""
        return tuple((size - k) // s + 1 for size, k, s in zip(self.size, self.kernel, self.stride))

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid)


@dataclass(frozen=True)
class TextStemConfig:
    """A stem that looks token ids up."""

    vocab_size: int = 49408
    context_length: int = 77  # always filled; padding is id 0

    def __post_init__(self) -> None:
        require_positive(self, "vocab_size", "context_length")


@dataclass(frozen=True)
class TrunkConfig:
    """One modality's stem and transformer."""

    width: int
    depth: int  # blocks; 0 only with a backbone, whose stem then does all the work
    heads: int
    num_cls_tokens: int = 1  # features an input becomes; the published weights have 1
    mlp_ratio: float = 4.0
    backbone: str | None = None  # vision only: a timm model that takes the place of the patch stem
    stem: PatchStemConfig | TextStemConfig | None = None  # None: the published stem of the modality

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


@dataclass(frozen=True)
class ModalityFacts:
    """What sets a modality apart from the others and is not a matter of size."""

    stem: PatchStemConfig | TextStemConfig
    bias_kv: bool  # attention has one learned extra key and value
    pre_norm: bool  # a LayerNorm between stem and blocks
    logit_scale: float | None  # factor on the unit-length embedding at the start; None: no factor
    logit_scale_learned: bool = False


_PLANE = PatchStemConfig(channels=1, size=(224, 224), kernel=(16, 16), stride=(16, 16))

FACTS: Mapping[Modality, ModalityFacts] = MappingProxyType({
    Modality.VISION: ModalityFacts(
        PatchStemConfig(channels=3, size=(2, 224, 224), kernel=(2, 14, 14), stride=(2, 14, 14), norm=False),
        bias_kv=False, pre_norm=True, logit_scale=None,
    ),
    Modality.TEXT: ModalityFacts(
        TextStemConfig(), bias_kv=False, pre_norm=False, logit_scale=1 / 0.07, logit_scale_learned=True
    ),
    Modality.AUDIO: ModalityFacts(
        PatchStemConfig(channels=1, size=(128, 204), kernel=(16, 16), stride=(10, 10)),
        bias_kv=True, pre_norm=False, logit_scale=20.0,
    ),
    Modality.DEPTH: ModalityFacts(_PLANE, bias_kv=True, pre_norm=False, logit_scale=5.0),
    Modality.THERMAL: ModalityFacts(_PLANE, bias_kv=True, pre_norm=False, logit_scale=10.0),
    Modality.IMU: ModalityFacts(
        PatchStemConfig(channels=6, size=(2000,), kernel=(8,), stride=(8,)),
        bias_kv=True, pre_norm=False, logit_scale=5.0,
    ),
})  # fmt: skip


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of every trunk. Stems left out are filled in, so a config always says everything.

    A vision stem left out takes its height and width from `image.size`.
    """

    embedding_dim: int  # E, shared by all modalities
    trunks: Mapping[Modality, TrunkConfig]
    image: ImageConfig = field(default_factory=ImageConfig)

    def __post_init__(self) -> None:
        require_positive(self, "embedding_dim")
        if not isinstance(self.trunks, Mapping) or not self.trunks:
            raise ConfigError("EncoderConfig.trunks needs at least one modality")
        trunks = {Modality(name): trunk for name, trunk in self.trunks.items()}
        complete = {name: self._with_stem(name, trunks[name]) for name in Modality if name in trunks}
        object.__setattr__(self, "trunks", MappingProxyType(complete))

    def __hash__(self) -> int:
        return hash((self.embedding_dim, tuple(self.trunks.items()), self.image))

    def __reduce__(self):
        return EncoderConfig.from_dict, (self.to_dict(),)  # a read-only view cannot be pickled

    def _with_stem(self, modality: Modality, trunk: TrunkConfig) -> TrunkConfig:
        published = FACTS[modality].stem
        if trunk.backbone is not None and modality is not Modality.VISION:
            raise ConfigError(f"only the vision trunk can have a backbone, {modality} has {trunk.backbone!r}")
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
        if "image" in values:
            values["image"] = ImageConfig(**as_arguments(ImageConfig, values["image"], "image"))
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
        """A named config. "huge" has the sizes of the published weights.

        Pictures are turned upright by their EXIF tag; for exactly the original's
        pixels use `replace(config, image=replace(config.image, orient=False))`.
        """
        if name not in _PRESETS:
            raise ConfigError(f"there is no preset {name!r}; the presets are {', '.join(sorted(_PRESETS))}")
        embedding_dim, sizes = _PRESETS[name]
        return cls(embedding_dim, {modality: TrunkConfig(*size) for modality, size in sizes.items()})


# name: (embedding_dim, {modality: (width, depth, heads)})
_PRESETS = {
    "huge": (1024, {
        Modality.VISION: (1280, 32, 16),
        Modality.TEXT: (1024, 24, 16),
        Modality.AUDIO: (768, 12, 12),
        Modality.DEPTH: (384, 12, 8),
        Modality.THERMAL: (768, 12, 12),
        Modality.IMU: (512, 6, 8),
    }),
}  # fmt: skip
