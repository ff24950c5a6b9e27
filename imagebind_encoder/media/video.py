"""Films: a file, or frames that are there already -> (clips * crops, 3, frames, size, size) tensors."""

import heapq
import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import ImageConfig, VideoConfig
from ..schema import is_number
from .animation import Animation, is_animation
from .container import open_file
from .film import Film
from .source import Fetch, MediaError, Source, describe
from .timeline import Timeline
from .windows import Windows

if TYPE_CHECKING:
    import numpy
    import torch

    VideoSource = Source | "Frames"

MAX_HOURS = 12  # of a film that is cut into windows; broken headers claim days


@dataclass(frozen=True)
class Frames:
    """A film that is in memory: uint8 pixels, as a numpy array (T, H, W, 3) or a torch tensor (T, 3, H, W)."""

    pixels: "numpy.ndarray | torch.Tensor"
    rate: float  # frames a second


def load_video(
    source: "VideoSource",
    image: ImageConfig = ImageConfig(),
    config: VideoConfig = VideoConfig(),
    frames: int = 2,
    *,
    fetch: Fetch | None = None,
) -> "torch.Tensor":
    """float32 (clips * crops, 3, frames, size, size), clip by clip and in each crop by crop.

    A source is the path, bytes, http(s) URL or data: URI of a film, or `Frames`. `config.clips` clips of
    `config.seconds` are spread evenly over the film and `frames` frames over each clip, by the times
    at which they are shown; of a film with fewer, some are taken twice. The shorter side becomes
    `image.size`, bilinear without antialias, of which squares are cut out along the longer side. With
    crop="squash" there is one crop, the whole frame without its proportions. Pixels that are not square
    are taken for square, as in the original. Alpha is dropped.
    `fetch(url) -> bytes` replaces the download. Memory does not depend on the length of a film in a file.
    Raises MediaError: unreadable source, no film or a playlist, only sound, no frames, an unknown codec,
    too large frames, a film that is cut off or broken, naming the second. Frames that are missing in the
    middle of a Matroska or WebM film are not noticed: the frame before them stays on display.
    """
    with _open_film(source, config.orient, fetch) as film:
        plan = film.timeline.choose(config.clips, config.seconds, frames)
        return next(_tensors(film, iter([plan]), image, config.crops))


def video_windows(
    source: "VideoSource",
    windows: Windows,
    image: ImageConfig = ImageConfig(),
    config: VideoConfig = VideoConfig(),
    frames: int = 2,
    *,
    fetch: Fetch | None = None,
) -> "Iterator[torch.Tensor]":
    """A tensor as of `load_video` for each window of a film, one after the other.

    Each is what `load_video` gives for a film of the window's frames alone, except that a window no longer
    than a clip is one clip, not `config.clips` equal ones. Errors as in `load_video`, at the window they hit,
    and MediaError for a film of more than 12 hours.
    """
    with _open_film(source, config.orient, fetch) as film:
        whole = film.timeline
        if whole.duration > MAX_HOURS * 3600:
            name = "a film in memory" if isinstance(source, Frames) else describe(source)
            raise MediaError(
                f"{name} is longer than {MAX_HOURS} hours by the times of its {whole.count} frames; cut it into parts"
            )
        clips = 1 if min(windows.seconds, whole.duration) <= config.seconds else config.clips
        yield from _tensors(film, _plans(whole, windows, clips, config.seconds, frames), image, config.crops)


def _plans(whole: Timeline, windows: Windows, clips: int, seconds: float, frames: int) -> Iterator[list[list[int]]]:
    """Which frames each window looks at, (clips, frames)."""
    for start in windows.starts(whole.duration):
        span = whole.window(start, windows.seconds)
        yield [[span[index] for index in clip] for clip in whole.part(span).choose(clips, seconds, frames)]


@contextmanager
def _open_film(source: "VideoSource", orient: bool, fetch: Fetch | None) -> "Iterator[Film | Animation | _Shown]":
    if isinstance(source, Frames):
        yield _Shown(source)
    else:
        with open_file(source, "video", fetch=fetch) as file:
            name = describe(source)
            yield Animation(file, name) if is_animation(file) else Film(file, name, orient)


class _Shown:
    """`Frames` as a film."""

    def __init__(self, source: Frames) -> None:
        torch, pixels = sys.modules.get("torch"), source.pixels
        shape, dtype = getattr(pixels, "shape", ()), getattr(pixels, "dtype", None)
        # Who holds a tensor has imported torch, so a look at what is loaded is enough.
        self._channels_first = torch is not None and isinstance(pixels, torch.Tensor)
        channels = 1 if self._channels_first else 3
        if len(shape) != 4 or 0 in shape or shape[channels] != 3 or str(dtype).removeprefix("torch.") != "uint8":
            found = f"frames of shape {tuple(shape)} and type {dtype}" if dtype else f"a {type(pixels).__name__}"
            raise MediaError(
                f"{found} cannot be a film; give a uint8 array (T, H, W, 3) or tensor (T, 3, H, W), values 0 to 255"
            )
        if not is_number(source.rate) or not source.rate > 0:
            raise MediaError(f"the rate of a film must be a positive number of frames a second, not {source.rate!r}")
        self._pixels = pixels
        self.timeline = Timeline.constant(len(pixels), float(source.rate))

    def read(self, indices: Iterable[int]) -> "Iterator[tuple[int, numpy.ndarray]]":
        for index in indices:
            frame = self._pixels[index]
            yield index, frame.detach().cpu().permute(1, 2, 0).numpy() if self._channels_first else frame


def _tensors(
    film: "Film | Animation | _Shown", plans: Iterator[list[list[int]]], image: ImageConfig, crops: int
) -> "Iterator[torch.Tensor]":
    """The tensor of each plan; frames that overlapping plans share are decoded once."""
    import torch

    ahead, plans = itertools.tee(plans)
    reader, kept = film.read(_in_order(ahead)), {}
    for plan in plans:
        wanted = {index for clip in plan for index in clip}
        kept = {index: value for index, value in kept.items() if index >= min(wanted)}
        while not wanted <= kept.keys():
            index, pixels = next(reader)
            kept[index] = cut(pixels, image, crops)
        clips = [torch.stack([kept[index] for index in clip], dim=2) for clip in plan]
        yield torch.cat(clips)


def _in_order(plans: Iterable[list[list[int]]]) -> Iterator[int]:
    """Every index of all plans once, rising; looks ahead only to where a plan begins behind what is given out."""
    waiting: list[int] = []
    for plan in plans:
        wanted = {index for clip in plan for index in clip}
        while waiting and waiting[0] < min(wanted):
            yield heapq.heappop(waiting)
        for index in wanted.difference(waiting):
            heapq.heappush(waiting, index)
    yield from sorted(waiting)


def cut(pixels: "numpy.ndarray", image: ImageConfig, crops: int) -> "torch.Tensor":
    """float32 (crops, 3, size, size) of a frame (H, W, 3): resized, normalised, cut into squares.

    The sides are those of the original: the longer one is floor(long / short * size), in double precision;
    the middle square begins at ceil((side - size) / 2).
    """
    import torch

    size, (height, width) = image.size, pixels.shape[:2]
    if image.crop == "squash":
        high, wide, corners = size, size, [(0, 0)]
    else:
        high = size if height <= width else math.floor(height / width * size)
        wide = size if width <= height else math.floor(width / height * size)
        middle = (math.ceil((high - size) / 2), math.ceil((wide - size) / 2))
        corners = [(0, 0), middle, (high - size, wide - size)] if crops == 3 else [middle]
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (image.mean, image.std))
    squares = []
    for top, left in corners:
        rows, down = _taps(height, high, top, size)
        columns, right = _taps(width, wide, left, size)
        square = torch.from_numpy(pixels[rows][:, columns]).permute(2, 0, 1).float().div_(255)
        square = torch.lerp(square[:, :size], square[:, size:], down.view(1, size, 1))
        square = torch.lerp(square[..., :size], square[..., size:], right)
        squares.append((square.flip(0) if image.channels == "bgr" else square).sub_(mean).div_(std))
    return torch.stack(squares)


def _taps(length: int, resized: int, start: int, count: int) -> "tuple[numpy.ndarray, torch.Tensor]":
    """Between which pixels `count` pixels from `start` of a resized side lie, and how far between them.

    The first `count` indices are those before, the others those after. Bilinear, pixel centres at halves,
    in the precision of torch's own interpolation, which would resize what is then cut off.
    """
    import torch

    place = (torch.arange(start, start + count) + 0.5) * (torch.tensor(float(length)) / resized) - 0.5
    place = place.clamp(min=0)
    before = place.long().clamp(max=length - 1)
    return torch.cat([before, (before + 1).clamp(max=length - 1)]).numpy(), place - before
