"""Thermal pictures: 8 or 16 bits of grey, or temperatures -> (1, H, W)."""

from typing import TYPE_CHECKING

from PIL import Image

from ..inputs import ThermalConfig
from .plane import Plane, fit_plane, open_plane
from .source import Fetch, MediaError

if TYPE_CHECKING:
    import numpy
    import torch

    from .plane import PlaneSource

GREY_DIFFERENCE = 24  # between the channels of an 8-bit pixel: JPEG makes so much out of grey
COLOURED = 0.02  # share of the pixels that may differ more: a logo, a crosshair
LUMINANCE = (0.299, 0.587, 0.114)  # of R, G, B; ITU-R BT.601, as Pillow's


def load_thermal(
    source: "PlaneSource",
    config: ThermalConfig = ThermalConfig(),
    size: tuple[int, int] = (224, 224),
    *,
    fetch: Fetch | None = None,
) -> "torch.Tensor":
    """float32 (1, H, W) for `size` (H, W): grey in [0, 1], bright is warm, minus mean, by std.

    Sources as in `open_plane`. 8 bits are divided by 255. Deeper ones and floats are counts or degrees of a sensor,
    most of whose range is empty: `config.deep` "stretch" takes the picture's own range, as thermal cameras do for
    their 8 bits; "full" divides integers by their type's largest value, and wants floats in [0, 1]. Where
    everything is as warm, it is 0. RGB files that look grey are taken as such. Resized as pictures are, bicubic with
    antialias, shorter side first, middle cut out. `fetch(url) -> bytes` replaces the download.
    Raises MediaError: unreadable source, false colours (ironbow and the like) unless `config.colours` allows them,
    values that are not finite.
    """
    grey = _grey(open_plane(source, fetch=fetch), config)
    return fit_plane(grey, size, Image.Resampling.BICUBIC).clamp_(0, 1).sub_(config.mean).div_(config.std)


def _grey(plane: Plane, config: ThermalConfig) -> "numpy.ndarray":
    """(H, W) in [0, 1]."""
    import numpy

    values = plane.values
    if plane.is_colour:
        if config.colours == "refuse":
            _refuse_colours(plane)
        return (values @ numpy.array(LUMINANCE)) / 255
    if values.dtype == numpy.uint8:
        return values / 255
    if not numpy.isfinite(values).all():
        raise MediaError(f"{plane.name} has values that are not finite; fill those pixels first")
    values = values.astype(numpy.float32)
    if config.deep == "stretch":
        low, high = numpy.percentile(values, [config.clip, 100 - config.clip])
        return numpy.clip((values - low) / (high - low), 0, 1) if high > low else numpy.zeros_like(values)
    if plane.is_float:
        highest = 1.0
    else:
        highest = 65535.0 if values.max() <= 65535 else float(numpy.iinfo(plane.values.dtype).max)
    if values.min() < 0 or values.max() > highest:
        raise MediaError(
            f"{plane.name} ({plane.kind}) has values from {values.min():g} to {values.max():g}, outside of "
            f"0 to {highest:g}; stretch them: ThermalConfig(deep='stretch')"
        )
    return values / highest


def _refuse_colours(plane: Plane) -> None:
    difference = plane.values.max(axis=2).astype(int) - plane.values.min(axis=2)
    share = float((difference > GREY_DIFFERENCE).mean())
    if share > COLOURED:
        raise MediaError(
            f"{plane.name} is a false-colour picture ({share:.0%} of it is coloured), whose brightness is no "
            "temperature; save it white-hot (grey), or set ThermalConfig(colours='grey') (the setting thermal.colours) "
            "to use it nevertheless"
        )
