"""What an input can be: the modalities, their stems' sizes, and how their published trunks differ. No torch here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from .schema import ConfigError, require_positive

NORM_EPS = 1e-6  # blocks, pre-norm and heads
STEM_NORM_EPS = 1e-5  # the norm behind a patch projection; not the same number
POINT_NORM_EPS = 1e-5  # blocks and final norm of the point-cloud trunk, batch norm of its stem
MAX_LOGIT_SCALE = 100.0


class Modality(str, Enum):
    """What an input is; equal to, and hashes like, its own name in lower case."""

    VISION = "vision"
    TEXT = "text"
    AUDIO = "audio"
    DEPTH = "depth"
    THERMAL = "thermal"
    IMU = "imu"
    POINT = "point"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def _missing_(cls, value: object) -> None:
        names = ", ".join(modality.value for modality in cls)
        raise ConfigError(f"there is no modality {value!r}; the modalities are {names}")


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
        if any(size < kernel for size, kernel in zip(self.size, self.kernel, strict=True)):
            raise ConfigError(f"a stem's kernel {self.kernel} does not fit into its input size {self.size}")

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis; what does not fill a kernel at the far end is cut."""
        return tuple((size - k) // s + 1 for size, k, s in zip(self.size, self.kernel, self.stride, strict=True))

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
class PointStemConfig:
    """A stem that groups the points of a cloud around sampled centres; `points` and `unit_sphere` are the loader's."""

    groups: int = 512  # patches: as many points are sampled as centres
    group_size: int = 32  # points nearest to a centre, itself among them
    channels: int = 256  # of a group, before it is projected to the trunk's width
    output_width: int = 512  # of what the trunk hands to the head
    start: int = 0  # index of the first centre; the original draws one, so that its answers differ
    points: int = 8192  # a file of more is thinned to so many
    unit_sphere: bool = True  # a file is centred and scaled to radius 1; the original takes files as they are

    def __post_init__(self) -> None:
        require_positive(self, "groups", "group_size", "channels", "output_width", "points")
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 0:
            raise ConfigError(f"PointStemConfig.start must be an integer, at least 0, not {self.start!r}")
        if not isinstance(self.unit_sphere, bool):
            raise ConfigError(f"PointStemConfig.unit_sphere must be true or false, not {self.unit_sphere!r}")
        if self.points < self.least_points:
            raise ConfigError(
                f"PointStemConfig.points is {self.points}, but {self.groups} groups of {self.group_size} points "
                f"that start at index {self.start} need {self.least_points}"
            )

    @property
    def least_points(self) -> int:
        """Points a cloud must have."""
        return max(self.groups, self.group_size, self.start + 1)

    @property
    def num_patches(self) -> int:
        return self.groups


StemConfig = PatchStemConfig | TextStemConfig | PointStemConfig


@dataclass(frozen=True)
class ModalityFacts:
    """What sets a modality apart from the others and is not a matter of size."""

    stem: StemConfig
    bias_kv: bool  # attention has one learned extra key and value
    pre_norm: bool  # a LayerNorm between stem and blocks
    logit_scale: float | None  # factor on the unit-length embedding at the start; None: no factor
    logit_scale_learned: bool = False
    qkv_bias: bool = True  # attention adds a bias to queries, keys and values
    norm_eps: float = NORM_EPS  # of the blocks


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
    Modality.POINT: ModalityFacts(
        PointStemConfig(), bias_kv=False, pre_norm=False, logit_scale=1.0, qkv_bias=False, norm_eps=POINT_NORM_EPS
    ),
})  # fmt: skip
