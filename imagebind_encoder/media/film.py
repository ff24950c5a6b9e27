"""Films in files: the times of their frames, and the pixels of those that are asked for.

A film is gone through twice: once for the times, when nothing is decoded as a rule, and once for the
pixels. What stays in memory are 16 bytes a frame and the one frame that was decoded last.
Times are in ticks, whole numbers of which the stream's `time_base` says the seconds.
"""

import itertools
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from .container import container_of, reason
from .image import MAX_PIXELS
from .patience import check_time, frame_pixels
from .source import MediaError
from .timeline import Timeline

if TYPE_CHECKING:
    import numpy
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SEEKABLE = ("mov", "matroska")  # formats that know where their key frames are; others are decoded from the start
HEADED = ("matroska", "avi", "flv")  # formats that say at the start how long they should be
MISSING = 1.0  # seconds that may be missing all the same, or a tenth of a short film: headers are rounded
LOSSY = ("mpegts",)  # formats of broadcasts, where losses are usual and decoders get over them
HIDING = ("vp8",)  # codecs with packets that are never shown
BARREN = 256 * 2**20  # bytes without a frame or a sound in them, after which nothing more is expected
MARGIN = 2**16  # pixels that decoders add around a frame, at least
LEAP = 8  # frames that are decoded for nothing rather than sought over


class Film:
    """A film in a file; `orient` turns its frames as its display matrix says.

    Raises MediaError: no film, nothing to see in it, an unknown codec, too large frames, cut off.
    """

    def __init__(self, file: BinaryIO, name: str, orient: bool) -> None:
        self._file, self._name, self._orient = _Searched(file), name, orient
        self._times = self._keys = array("q")  # of all frames; of those that seeking finds
        self._start: int | None = None  # the first of them
        self._counted = False  # the file has no times: a tick is a frame
        with container_of(self._file, name, "video") as container:
            stream = self._stream(container)
            self._tick = float(stream.time_base)
            rate, guessed_rate = stream.average_rate, stream.guessed_rate
            shown = self._read_packets(container, stream)
        self._file.searched = -math.inf  # from here on it is known what is to be found
        if shown is None:
            self._read_frames()
            if self._counted:
                rate = guessed_rate or rate
                self._tick = 1 / float(rate or 1)
        if not len(self._times):
            raise MediaError(f"{name} has no frames; check that it was written or copied completely")
        self.timeline = Timeline.at(self._times, self._tick, float(rate or 0), shown or 0)

    def read(self, indices: Iterable[int]) -> "Iterator[tuple[int, numpy.ndarray]]":
        """(index, uint8 (H, W, 3)) of frames, whose indices must rise. Raises MediaError that names the second."""
        from av.video.reformatter import VideoReformatter

        convert = VideoReformatter().reformat
        with container_of(self._file, self._name, "video") as container:
            stream = self._stream(container)
            start = int(self._times[0])
            frames, time, frame = self._decode(container, stream), start, None
            for index in indices:
                wanted = int(self._times[index])
                if (key := self._key(wanted, time)) is not None:
                    container.seek(key, stream=stream)
                    frames = self._decode(container, stream)
                    time, frame = _forward(frames, wanted, key, None)
                    if frame is None or time != wanted:
                        # Not all keys hold what they promise: from the start everything is found.
                        self._keys = self._keys[:0]
                        container.seek(start, stream=stream)
                        frames, time, frame = self._decode(container, stream), start, None
                time, frame = _forward(frames, wanted, time, frame)
                if frame is None:
                    raise self._broken(time, "none of its frames can be decoded")
                self._check_size(frame.width, frame.height)
                pixels = convert(frame, format="rgb24").to_ndarray()
                yield index, _turned(pixels, frame) if self._orient else pixels

    def _key(self, wanted: int, time: int) -> int | None:
        """The last key frame up to `wanted`, if seeking to it from `time` is worth it."""
        place = bisect_right(self._keys, wanted) - 1
        if place < 0 or bisect_right(self._times, self._keys[place]) - bisect_right(self._times, time) <= LEAP:
            return None
        return int(self._keys[place])

    def _stream(self, container: "InputContainer") -> "VideoStream":
        """The pictures of the film; covers of recordings are none."""
        from av.stream import Disposition

        still = Disposition.attached_pic | Disposition.timed_thumbnails
        streams = [stream for stream in container.streams.video if not stream.disposition & still]
        if not streams:
            instead = "only sound: give it as audio" if container.streams.audio else "nothing to see: give a film"
            raise MediaError(f"{self._name} has no moving pictures, {instead}")
        stream = streams[0]
        if stream.codec_context is None:
            raise MediaError(f"{self._name} is coded in a way that is not known here; convert it to MP4 (H.264)")
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        # Frames may grow further on. What is much too large is not decoded; the library counts with its margins.
        stream.codec_context.options = {"max_pixels": str(5 * frame_pixels(MAX_PIXELS) // 4 + MARGIN)}
        return stream

    def _check_size(self, width: int, height: int) -> None:
        if width * height > (most := frame_pixels(MAX_PIXELS)):
            raise MediaError(f"{self._name} has frames of {width} x {height} pixels; give at most {most} pixels")

    def _packets(self, container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet]":
        """The film undecoded. Raises MediaError where there is less than the file says."""
        import av

        kind = container.format.name.split(",")[0]
        indexed = len(stream.index_entries) if kind == "mov" else 0
        declared = (container.duration or 0) / 1e6 if kind in HEADED else 0
        count, end, time = 0, 0.0, None
        try:
            for packet in container.demux():
                if not packet.size:  # what a decoder gets at the end
                    continue
                self._file.searched = 0
                check_time(self._name)
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index == stream.index:
                    time = packet.pts if packet.pts is not None else time
                    if packet.is_corrupt and kind not in LOSSY:
                        raise self._broken(time, "a frame is not whole")
                    count += 1
                    yield packet
        except av.FFmpegError as error:
            raise self._broken(time, reason(error)) from error
        if self._file.is_barren:
            raise self._broken(time, f"nothing is in the next {BARREN >> 20} MB of the file")
        missing = declared - (end - (container.start_time or 0) / 1e6)
        last = 2 / float(stream.average_rate or math.inf)  # a last frame may not say how long it is shown
        if count < indexed or missing > min(MISSING, declared / 10) + last:
            raise self._broken(time, "the rest is missing")

    def _read_packets(self, container: "InputContainer", stream: "VideoStream") -> int | None:
        """Fills in times and keys; how long the last frame is shown, or None if packets do not tell all that."""
        import numpy

        times, keys, shown, latest = array("q"), array("q"), 0, None
        told = stream.codec_context.name not in HIDING
        for packet in self._packets(container, stream):
            if packet.pts is None or packet.is_discard:
                told = told and packet.is_discard
                continue
            times.append(packet.pts)
            self._start = packet.pts if self._start is None else min(self._start, packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if latest is None or packet.pts > latest:
                latest, shown = packet.pts, packet.duration or 0
        self._times, self._keys = numpy.sort(times), numpy.sort(keys)
        if container.format.name.split(",")[0] not in SEEKABLE:
            self._keys = self._keys[:0]
        return shown if told and (numpy.diff(self._times) > 0).all() else None

    def _read_frames(self) -> None:
        """Fills in the times of a film whose packets do not tell them: everything is decoded for that."""
        import numpy

        self._times = self._keys = array("q")
        with container_of(self._file, self._name, "video") as container:
            times = [time for time, _ in self._decode(container, self._stream(container))]
        self._counted = None in times or any(later <= time for time, later in itertools.pairwise(times))
        self._times = numpy.array(range(len(times)) if self._counted else times, dtype=numpy.int64)

    def _decode(self, container: "InputContainer", stream: "VideoStream") -> "Iterator[tuple[int, VideoFrame]]":
        """(time, frame) from where the container is. What starts in the middle has frames that none can decode."""
        import av

        time, number = None, 0
        try:
            for packet in container.demux(stream):
                time = packet.pts if packet.pts is not None else time
                check_time(self._name)
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    if number:
                        raise
                    continue
                for frame in frames:
                    told = next((told for told in (frame.pts, frame.dts, time) if told is not None), None)
                    yield number if self._counted else told, frame
                    number += 1
        except av.FFmpegError as error:
            raise self._broken(time, reason(error)) from error

    def _broken(self, time: int | None, why: str) -> MediaError:
        known = time is not None and self._start is not None
        where = f" at second {(time - self._start) * self._tick:.1f}" if known else ""
        return MediaError(f"{self._name} is broken{where} ({why}); copy or download it again")


class _Searched:
    """A file that seems to end where a reader searches gigabytes for the next frame."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self.searched = 0.0  # bytes, since somebody set this to 0

    @property
    def is_barren(self) -> bool:
        return self.searched > BARREN

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.searched += len(data)
        return b"" if self.is_barren else data


def _forward(
    frames: "Iterator[tuple[int, VideoFrame]]", wanted: int, time: int, frame: "VideoFrame | None"
) -> "tuple[int, VideoFrame | None]":
    """The first frame at `wanted` or later, starting with the one that is there; at the end of the film the last."""
    while frame is None or time < wanted:
        following = next(frames, None)
        if following is None:
            break
        time, frame = following
    return time, frame


def _turned(pixels: "numpy.ndarray", frame: "VideoFrame") -> "numpy.ndarray":
    """(H, W, 3) as the frame's display matrix says, to quarter turns and mirror images."""
    import numpy

    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return pixels
    # Column x and row y of a pixel go to a * x + c * y and b * x + d * y.
    a, b, _, c, d = numpy.frombuffer(bytes(data), dtype=numpy.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
