"""Motion: any recording of an accelerometer and a gyroscope -> windows (6, samples) at an even rate."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ..inputs import ImuConfig
from ..schema import is_number
from .imu_table import Chunk, chunks_of, read_table, required_rate
from .source import Fetch, MediaError, Source, describe
from .windows import Windows

if TYPE_CHECKING:
    import numpy
    import torch

    MotionSource = Source | "Motion" | numpy.ndarray | torch.Tensor

SLACK = 1e-9  # of a sample's duration, so that rounding makes none


@dataclass(frozen=True, eq=False)
class Motion:
    """A recording in memory: an array or tensor (6, T) or (T, 6), and how many samples make a second.

    Accelerometer x, y, z, gyroscope x, y, z, in the units of the config. Raises MediaError for a rate that is not
    positive.
    """

    samples: "numpy.ndarray | torch.Tensor"
    rate: float

    def __post_init__(self) -> None:
        if not is_number(self.rate) or self.rate <= 0:
            raise MediaError(f"motion needs a positive number of samples a second, not {self.rate!r}")


def load_imu(
    source: "MotionSource", config: ImuConfig = ImuConfig(), samples: int = 2000, *, fetch: Fetch | None = None
) -> "torch.Tensor":
    """float32 (6, samples): the first `config.seconds` of a recording. Sources and errors as in `imu_windows`."""
    windows = imu_windows(source, None, config, samples, fetch=fetch)
    try:
        return next(windows)
    finally:
        windows.close()


def imu_windows(
    source: "MotionSource",
    windows: Windows | None = None,
    config: ImuConfig = ImuConfig(),
    samples: int = 2000,
    *,
    fetch: Fetch | None = None,
) -> Iterator["torch.Tensor"]:
    """float32 (6, samples) of each window, as the recording is read: memory does not grow with its length.

    A source is the path, bytes, http(s) URL or data: URI of a .npy file (6, T) or of a table, one row a sample
    (CSV; semicolons, tabs and blanks, too); or a `Motion`, an array or a tensor. The order of a table's columns
    is told by their names, as are the units and the time column; six columns without names are taken in the order
    of `imu_columns.CHANNELS`, and need `config.rate`, as arrays do. `windows` None: windows of `config.seconds`
    that follow each other; the last one ends with the recording. Other windows are resampled to `samples`, too.

    In between samples the recording is taken to go straight. Where they get fewer, each is the mean over what it
    stands for beyond one sample of the recording, so that fast shaking does not turn into slow. A recording
    shorter than a window is followed by zeros, as in IMU2CLIP.
    Raises MediaError, some of them only when the bad place is reached: unreadable source, columns missing or
    there twice, no rate, times that do not increase or are too far apart, cells that are no numbers, NaN, no rows,
    windows shorter than the time from one sample to the next.
    """
    import torch

    windows = windows or Windows(config.seconds)
    name = describe(source)
    margin = windows.seconds / samples  # before a window, for the mean that its first sample is
    for start, times, channels in _cut(_chunks(source, config, name, fetch), windows, margin, name):
        values = _spread(times - start, channels, windows.seconds, samples, config.centre)
        yield torch.from_numpy(values).float()


def _chunks(source: "MotionSource", config: ImuConfig, name: str, fetch: Fetch | None) -> Iterator[Chunk]:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")  # who holds an array has imported its library
    rate = source.rate if isinstance(source, Motion) else None
    values = source.samples if isinstance(source, Motion) else source
    if torch and isinstance(values, torch.Tensor):
        if values.layout is not torch.strided or values.is_complex():
            raise MediaError(f"{name} holds a tensor of {values.dtype}, {values.layout}; give a dense one of numbers")
        values = values.detach().cpu().to(torch.float64).numpy()
    if numpy and isinstance(values, numpy.ndarray):
        return chunks_of(values, rate or required_rate(config, name), config, name)
    if isinstance(source, Motion):
        raise MediaError(f"motion needs an array or a tensor (6, T), not {describe(values)}")
    return read_table(source, config, fetch)


def _cut(
    chunks: Iterator[Chunk], windows: Windows, margin: float, name: str
) -> Iterator[tuple[float, "numpy.ndarray", "numpy.ndarray"]]:
    """Start, times and channels of each window of `Windows.starts`, of a recording whose end nobody knows yet.

    A window is handed on as soon as something is known to follow it. What may still be needed is kept: from the
    next start on, and the last `windows.seconds`, which become the last window, both with `margin` before them.
    """
    import numpy

    def window(start: float) -> tuple[float, numpy.ndarray, numpy.ndarray]:
        first = max(0, numpy.searchsorted(times, start - margin) - 1)
        last = numpy.searchsorted(times, start + windows.seconds) + 1
        return start, times[first:last], channels[:, first:last]

    times, channels, number = numpy.zeros(0), numpy.zeros((6, 0)), 0
    for more_times, more_channels in chunks:
        times, channels = numpy.append(times, more_times), numpy.append(channels, more_channels, axis=1)
        if number == 0 and len(times) > 1:
            _require_samples(times, windows.seconds, name)
        while times[-1] - windows.seconds - windows.nearest > number * windows.step:
            yield window(number * windows.step)
            number += 1
        kept = numpy.searchsorted(times, min(number * windows.step, times[-1] - windows.seconds) - margin) - 1
        times, channels = times[max(kept, 0) :], channels[:, max(kept, 0) :]
    if len(times) < 2:
        raise MediaError(f"{name} has {len(times)} samples, of which motion cannot be told; give a longer recording")
    _require_samples(times, windows.seconds, name)
    duration = times[-1] + _period(times)
    for start in islice(windows.starts(duration), number, None):
        yield window(start)


def _period(times: "numpy.ndarray") -> float:
    return float(times[-1] - times[0]) / (len(times) - 1)


def _require_samples(times: "numpy.ndarray", seconds: float, name: str) -> None:
    if seconds < _period(times) * (1 - SLACK):
        raise MediaError(
            f"{name} has a sample every {_period(times):.3g} s and a window of {seconds:g} s would hold none; "
            "give longer windows"
        )


def _spread(
    times: "numpy.ndarray", channels: "numpy.ndarray", seconds: float, samples: int, centre: bool
) -> "numpy.ndarray":
    """Channels (6, n) at `times` (n,) -> (6, samples), evenly over [0, seconds); zeros behind the recording's end."""
    import numpy

    step, period = seconds / samples, _period(times)
    grid = numpy.arange(samples) * step
    inside = grid < times[-1] + period - SLACK * step
    width = step - period
    if width > step / 1000:  # samples get fewer
        values = _mean_around(grid[inside], width, times, channels)
    else:
        values = numpy.stack([numpy.interp(grid[inside], times, channel) for channel in channels])
    if centre:
        values = values - values.mean(axis=1, keepdims=True)
    result = numpy.zeros((len(channels), samples))
    result[:, inside] = values
    return result


def _mean_around(
    at: "numpy.ndarray", width: float, times: "numpy.ndarray", channels: "numpy.ndarray"
) -> "numpy.ndarray":
    """Means (6, len(at)) of the line through the samples, over `width` around each time; its ends go on level."""
    import numpy

    times = numpy.concatenate([[times[0] - width], times, [times[-1] + width + at[-1]]])
    channels = numpy.pad(channels, ((0, 0), (1, 1)), mode="edge")
    steps = numpy.diff(times)
    areas = numpy.pad(numpy.cumsum((channels[:, 1:] + channels[:, :-1]) / 2 * steps, axis=1), ((0, 0), (1, 0)))

    def area(until: numpy.ndarray) -> numpy.ndarray:
        index = numpy.clip(numpy.searchsorted(times, until, "right") - 1, 0, len(steps) - 1)
        behind = until - times[index]
        slope = (channels[:, index + 1] - channels[:, index]) / steps[index]
        return areas[:, index] + channels[:, index] * behind + slope * behind**2 / 2

    return (area(at + width / 2) - area(at - width / 2)) / width
