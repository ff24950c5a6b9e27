"""Animated WebP pictures as films. The library that reads all other films does not read these."""

from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from .image import MAX_PIXELS
from .patience import check_time, frame_pixels
from .source import MediaError
from .timeline import Timeline

if TYPE_CHECKING:
    import numpy

TICK = 0.001  # seconds; WebP counts milliseconds
MAX_CANVAS = 2**25  # pixels of a frame: those of an 8K film; several copies of it are in memory
MAX_ALL = 2**33  # pixels of all frames: each is decoded to learn its time, which takes a minute or two then
UNSAID = 100  # ticks that a frame is shown which is said to be shown for none, as in browsers


def is_animation(file: BinaryIO) -> bool:
    """Whether a file is a WebP picture, by its first bytes."""
    file.seek(0)
    head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


class Animation:
    """The same as `film.Film` of an animated WebP picture, which is in memory whole, but not its pixels."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        import numpy

        self._name = name
        file.seek(0)
        try:
            self._image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise MediaError(f"{name} has more than {MAX_PIXELS} pixels; make it smaller first") from error
        except Exception as error:  # headers of broken files fail in ways no list of types covers
            raise MediaError(f"{name} is no WebP film that can be read; copy or download it again") from error
        if not self._image.is_animated:
            raise MediaError(f"{name} is a picture that does not move; give it as an image")
        self._check_size(*self._image.size, self._image.n_frames)
        times, shown = array("q", [0]), 0
        for index in range(self._image.n_frames):
            self._show(index, times[-1])
            shown = self._image.info.get("duration") or UNSAID
            times.append(times[-1] + shown)
        self._times = numpy.array(times[:-1])
        self.timeline = Timeline.at(self._times, TICK, 0.0, shown)

    def read(self, indices: Iterable[int]) -> "Iterator[tuple[int, numpy.ndarray]]":
        """(index, uint8 (H, W, 3)) of frames, whose indices must rise. Raises MediaError that names the second."""
        import numpy

        for index in indices:
            self._show(index, self._times[index])
            yield index, numpy.asarray(self._image.convert("RGB"))

    def _check_size(self, width: int, height: int, frames: int) -> None:
        most = frame_pixels(MAX_CANVAS)
        if width * height > most or width * height * frames > MAX_ALL:
            raise MediaError(
                f"{self._name} has {frames} frames of {width} x {height} pixels; "
                f"give at most {most} pixels a frame and {MAX_ALL} in all"
            )

    def _show(self, index: int, time: int) -> None:
        check_time(self._name)
        try:
            self._image.seek(index)
            self._image.load()
        except Exception as error:
            raise MediaError(
                f"{self._name} is broken at second {time * TICK:.1f} ({error}); copy or download it again"
            ) from error
