"""Depth: distances in any unit -> disparity (1, H, W), as ImageBind's authors made it for RGB-D data."""

from typing import TYPE_CHECKING

from PIL import Image

from ..inputs import DepthConfig
from .plane import Plane, fit_plane, open_plane
from .source import Fetch, MediaError

if TYPE_CHECKING:
    import numpy
    import torch

    from .plane import PlaneSource

MIN_DISPARITY = 0.01  # pixels; Omnivore's
NEAREST_SENSOR = 100  # millimetres: where everything is nearer, these are no millimetres
FARTHEST_SENSOR = 200.0  # metres: where anything is farther, these are no metres
_SAY = "say which: DepthConfig(unit='millimetres'), 'metres' or 'disparity' (the setting depth.unit)"


def load_depth(
    source: "PlaneSource",
    config: DepthConfig = DepthConfig(),
    size: tuple[int, int] = (224, 224),
    *,
    fetch: Fetch | None = None,
) -> "torch.Tensor":
    """float32 (1, H, W) for `size` (H, W): disparity over `config.max_disparity`, minus mean, by std.

    Sources as in `open_plane`. With unit "auto", 16-bit and other integers are millimetres and floats are metres,
    where their values allow it; the files of SUN RGB-D itself are neither, turn their bits back first:
    `(value >> 3) | (value << 13)`. Disparity is in pixels, of the config's camera. Holes (0, NaN, infinite; in
    disparity, where 0 is far away, NaN and infinite only) take the farther of the measured values left and right
    of them: the original saw filled pictures only, and would have taken a hole for something at the lens. Resizing
    is bilinear with antialias, so that no distances appear that nobody measured; what ImageBind did is not known.
    `fetch(url) -> bytes` replaces the download.
    Raises MediaError: unreadable source, a colour picture, a unit that cannot be told, negative values, only holes.
    """
    import numpy

    plane = open_plane(source, fetch=fetch)
    if plane.is_colour:
        raise MediaError(
            f"{plane.name} is a colour picture ({plane.kind}), whose colours are no distances; give what it was "
            "made of, as 16-bit PNG in millimetres or floats in metres"
        )
    unit = _told_unit(plane) if config.unit == "auto" else config.unit
    values = plane.values.astype(numpy.float32)
    measured = numpy.isfinite(values) & ((values != 0) | (unit == "disparity"))
    if not measured.any():
        raise MediaError(f"{plane.name} has no measured distance, only holes (0 or NaN); give another picture")
    if (lowest := values[measured].min()) < 0:
        raise MediaError(f"{plane.name} has negative values, down to {lowest:g}; distances are positive: check it")
    if unit != "disparity":
        scale = config.distance_scale * (1e-3 if unit == "millimetres" else 1.0)
        distances = numpy.clip(numpy.where(measured, values, 1.0) * scale, config.min_depth, config.max_depth)
        values = config.baseline * config.focal / distances
    else:
        values = values / config.distance_scale
    scaled = numpy.clip(fill_holes(values, measured), MIN_DISPARITY, config.max_disparity) / config.max_disparity
    return fit_plane(scaled, size, Image.Resampling.BILINEAR).sub_(config.mean).div_(config.std)


def fill_holes(values: "numpy.ndarray", measured: "numpy.ndarray") -> "numpy.ndarray":
    """Disparity (H, W) where everything is measured: holes take the smaller of the nearest values in their row.

    Rows without any take the nearest row that has some; at least one value must be measured.
    """
    import numpy

    if measured.all():
        return values
    columns = numpy.arange(values.shape[1])
    left = numpy.maximum.accumulate(numpy.where(measured, columns, -1), axis=1)
    right = numpy.minimum.accumulate(numpy.where(measured, columns, values.shape[1])[:, ::-1], axis=1)[:, ::-1]
    left, right = numpy.where(left < 0, right, left), numpy.where(right == values.shape[1], left, right)
    rows = numpy.flatnonzero(measured.any(axis=1))
    nearest = rows[numpy.interp(numpy.arange(len(values)), rows, numpy.arange(len(rows))).round().astype(int)]
    found = [numpy.take_along_axis(values[rows], side[rows], axis=1) for side in (left, right)]
    filled = numpy.empty_like(values)
    filled[rows] = numpy.where(measured[rows], values[rows], numpy.minimum(*found))
    return filled[nearest]


def _told_unit(plane: Plane) -> str:
    """Millimetres or metres, if type and values leave no doubt."""
    import numpy

    values = plane.values
    finite = values[numpy.isfinite(values)]
    highest = float(finite.max()) if finite.size else 0.0
    if values.dtype.itemsize == 1:
        raise MediaError(f"{plane.name} is an {plane.kind} picture, which can hold depth in any unit; {_SAY}")
    if not plane.is_float:
        if 0 < highest < NEAREST_SENSOR:
            raise MediaError(f"{plane.name} ({plane.kind}) ends at {highest:g}, too near for millimetres; {_SAY}")
        return "millimetres"
    if highest > FARTHEST_SENSOR:
        raise MediaError(f"{plane.name} ({plane.kind}) has values up to {highest:g}, too far for metres; {_SAY}")
    if 0 < highest <= 1:
        raise MediaError(f"{plane.name} ({plane.kind}) ends at {highest:g}, so it may be scaled to [0, 1]; {_SAY}")
    return "metres"
