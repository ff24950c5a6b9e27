"""How files become tensors: rates, lengths and norms of each kind of input, as data. No torch here.

The defaults are those of the published weights. Sizes of the tensors are the stem's (modalities.py).
"""

from dataclasses import dataclass
from typing import Any

from .schema import ConfigError, is_number, require_positive


@dataclass(frozen=True)
class ImageConfig:
    """How a picture becomes a (3, size, size) tensor."""

    size: int = 224  # pixels
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1]
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    crop: str = "center"  # "center": shorter side to size, cut the middle; "squash": keep everything
    orient: bool = True  # turn the picture as its EXIF tag says; the original ignores the tag (False)
    channels: str = "rgb"  # order in the tensor; mean and std are in the same order. "bgr": LLaMA-Adapter V2
    convert: str = "first"  # to RGB, before resizing; "last": after the crop, as CLIP does (palettes, alpha differ)

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
        if self.convert not in ("first", "last"):
            raise ConfigError(f"ImageConfig.convert must be 'first' or 'last', not {self.convert!r}")
        if not isinstance(self.orient, bool):
            raise ConfigError(f"ImageConfig.orient must be true or false, not {self.orient!r}")


@dataclass(frozen=True)
class VideoConfig:
    """How a film becomes (clips * crops, 3, frames, size, size); size, mean and std are those of the pictures."""

    clips: int = 5  # spread evenly from the first to the last second
    seconds: float = 2.0  # of a clip
    crops: int = 3  # squares along the longer side: 3 are left, middle, right (or top to bottom); 1 is the middle
    orient: bool = True  # turn the film as its rotation flag says

    def __post_init__(self) -> None:
        require_positive(self, "clips", "crops")
        _require_seconds(self, "seconds")
        _require_bool(self, "orient")
        if self.crops not in (1, 3):
            raise ConfigError(f"VideoConfig.crops must be 1 or 3, not {self.crops!r}")


@dataclass(frozen=True)
class AudioConfig:
    """How a recording becomes (clips, 1, mel bins, frames)."""

    rate: int = 16000  # samples a second
    clips: int = 3  # spread evenly from the first to the last second
    seconds: float = 2.0  # of a clip
    overlap: str = "shared"  # the original's clips are changed in place and contaminate each other; or "separate"
    mean: float = -4.268  # of the natural log of a mel bin's power
    std: float = 9.138

    def __post_init__(self) -> None:
        require_positive(self, "rate", "clips")
        _require_seconds(self, "seconds")
        if self.overlap not in ("shared", "separate"):
            raise ConfigError(f"AudioConfig.overlap must be 'shared' or 'separate', not {self.overlap!r}")
        if not is_number(self.mean):
            raise ConfigError(f"AudioConfig.mean must be a number, not {self.mean!r}")
        if not is_number(self.std) or self.std <= 0:
            raise ConfigError(f"AudioConfig.std must be a positive number, not {self.std!r}")


@dataclass(frozen=True)
class TextConfig:
    """How words become token ids."""

    keep_end: bool = True  # a text that is too long keeps its end token; ImageBind-LLM's copy of the tokenizer cuts it

    def __post_init__(self) -> None:
        _require_bool(self, "keep_end")


@dataclass(frozen=True)
class DepthConfig:
    """How distances become (1, height, width)."""


@dataclass(frozen=True)
class ThermalConfig:
    """How a thermal picture becomes (1, height, width)."""


@dataclass(frozen=True)
class ImuConfig:
    """How a recording of motion becomes (6, samples): accelerometer x, y, z, gyroscope x, y, z."""

    seconds: float = 5.0  # of a window; the stem's samples are spread over it

    def __post_init__(self) -> None:
        _require_seconds(self, "seconds")


def _require_seconds(config: Any, name: str) -> None:
    value = getattr(config, name)
    if not is_number(value) or value <= 0:
        raise ConfigError(f"{type(config).__name__}.{name} must be a positive number of seconds, not {value!r}")


def _require_bool(config: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{type(config).__name__}.{name} must be true or false, not {getattr(config, name)!r}")
