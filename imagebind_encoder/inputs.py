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
        if self.rate < 1000:
            raise ConfigError(f"AudioConfig.rate must be at least 1000 samples a second, not {self.rate!r}")
        if self.seconds < 0.025:
            raise ConfigError(f"AudioConfig.seconds must be at least 0.025, a frame's length, not {self.seconds!r}")
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
    """How distances become (1, height, width): disparity, which is baseline * focal length / distance, then scaled.

    ImageBind published no loader for depth. These numbers are of its authors' Omnivore, trained on the same data
    (SUN RGB-D): formula, baselines and depth limits from its tracker, the others from its inference code. The formula
    there reads SUN RGB-D's files as millimetres, which they are not: their bits are rotated by three, so that distances
    come out 8 times too far. Only so does the mean fit (3 pixels of disparity: rooms of 16 m instead of 2 m). That
    ImageBind was trained like that is likely, not known: one user reports the paper's 35 % with true distances,
    without saying what mean and std.
    """

    unit: str = "auto"  # of the values: "millimetres", "metres", "disparity" (pixels); "auto" asks the file's type
    baseline: float = 0.075  # metres: a Kinect; 0.095 for RealSense (and, as the authors guess, for Xtion)
    focal: float = 519.0  # pixels, a Kinect's; of another camera its own times 640 / its picture's width, as if it
    #                       were 640 wide, whatever the file's size: pictures of SUN RGB-D are 560 to 730 wide
    distance_scale: float = 8.0  # all distances are multiplied by it first, see above; 1: as they are
    min_depth: float = 0.01  # metres, multiplied; nearer ones count as that near
    max_depth: float = 50.0  # metres, multiplied; farther ones count as that far
    max_disparity: float = 75.0  # pixels; larger ones are cut, then all are divided by it
    mean: float = 0.0418  # of the divided disparity
    std: float = 0.0295

    def __post_init__(self) -> None:
        _require_choice(self, "unit", "auto", "millimetres", "metres", "disparity")
        _require_numbers(self, "mean")
        for name in ("baseline", "focal", "distance_scale", "min_depth", "max_depth", "max_disparity", "std"):
            _require_numbers(self, name, positive=True)
        if self.min_depth >= self.max_depth:
            raise ConfigError(
                f"DepthConfig.min_depth must be below max_depth, not {self.min_depth!r} and {self.max_depth!r}"
            )


@dataclass(frozen=True)
class ThermalConfig:
    """How a thermal picture becomes (1, height, width): grey from 0 to 1.

    ImageBind published no loader for it. That grey is not normalised any further is what users measured: on LLVIP,
    its data set, 62.4 % against the paper's 63.4 %, and 55.2 % with the mean and std of photos.
    """

    mean: float = 0.0  # of the grey values in [0, 1]
    std: float = 1.0
    deep: str = "stretch"  # 16 bits, floats: the picture's own darkest to brightest, as cameras do; "full": whole range
    clip: float = 0.1  # per cent of the pixels at either end that do not count for "stretch": sensors have dead ones
    colours: str = "refuse"  # false-colour pictures, whose brightness is no temperature; "grey": use it nevertheless

    def __post_init__(self) -> None:
        _require_numbers(self, "mean")
        _require_numbers(self, "std", positive=True)
        _require_choice(self, "deep", "stretch", "full")
        _require_choice(self, "colours", "refuse", "grey")
        if not is_number(self.clip) or not 0 <= self.clip < 50:
            raise ConfigError(f"ThermalConfig.clip must be a number from 0 to below 50, not {self.clip!r}")


@dataclass(frozen=True)
class ImuConfig:
    """How a recording of motion becomes (6, samples): accelerometer x, y, z in m/s^2, gyroscope x, y, z in rad/s.

    ImageBind published no loader for it either. The paper says 6 channels and 5 seconds of Ego4D as 2000 steps;
    order, units and that nothing is normalised are what users take over from IMU2CLIP, which has the same data.
    """

    seconds: float = 5.0  # of a window; the stem's samples are spread over it
    rate: float | None = None  # samples a second of a recording that has no time column; None: it must have one
    acceleration: str = "m/s^2"  # unit of a recording that does not say; or "g"
    rotation: str = "rad/s"  # or "deg/s"
    centre: bool = False  # take each channel's mean over the window off: gravity and the sensor's own offset go

    def __post_init__(self) -> None:
        _require_seconds(self, "seconds")
        _require_choice(self, "acceleration", "m/s^2", "g")
        _require_choice(self, "rotation", "rad/s", "deg/s")
        _require_bool(self, "centre")
        if self.rate is not None and (not is_number(self.rate) or self.rate <= 0):
            raise ConfigError(f"ImuConfig.rate must be a positive number of samples a second, not {self.rate!r}")


def _require_seconds(config: Any, name: str) -> None:
    value = getattr(config, name)
    if not is_number(value) or value <= 0:
        raise ConfigError(f"{type(config).__name__}.{name} must be a positive number of seconds, not {value!r}")


def _require_bool(config: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{type(config).__name__}.{name} must be true or false, not {getattr(config, name)!r}")


def _require_numbers(config: Any, *names: str, positive: bool = False) -> None:
    for name in names:
        value = getattr(config, name)
        if not is_number(value) or (positive and value <= 0):
            kind = "positive number" if positive else "number"
            raise ConfigError(f"{type(config).__name__}.{name} must be a {kind}, not {value!r}")


def _require_choice(config: Any, name: str, *choices: str) -> None:
    if getattr(config, name) not in choices:
        given = " or ".join(map(repr, choices))
        raise ConfigError(f"{type(config).__name__}.{name} must be {given}, not {getattr(config, name)!r}")
