"""The sound track of a file, decoded frame by frame.

Damage is an error that says at which second, and not a gap: what follows a gap would be at the wrong time.
Only in films and broadcasts (Matroska, MPEG-TS) may be one: there a pause cannot be told from what was lost.
A file is given up where it holds nothing for long, however large it is.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from .container import container_of, open_file, reason
from .patience import check_time
from .source import Fetch, MediaError, Source

if TYPE_CHECKING:
    import av

MISSING = 1.0  # seconds by which a file may be shorter than it claims
PATIENCE = 64 * 2**20  # bytes that are read in search of the next packet; zeros have none, however many
SEEK = 2**10  # bytes that a seek counts for

# Formats that say how much they hold, and do not only guess it from their bit rate.
_EXACT = ("wav", "w64", "aiff", "flac", "mov", "matroska")
_GAPLESS = ("flac", "ogg")  # formats of which each frame is told its place, and that have no pauses


class Track:
    """What `open_track` gives.

    `claimed` is the number of seconds at whose end the file says it ends, or None; `exact` tells that
    from a guess.
    """

    def __init__(self, container: "av.container.InputContainer", file: "_Watched", name: str, lacking: int) -> None:
        from av.stream import Discard

        self._container, self._file, self._name = container, file, name
        stream = container.streams.best("audio")
        if stream is None:
            raise MediaError(f"{name} has no sound; give a recording or a film with a sound track")
        if stream.codec_context is None:
            raise MediaError(f"{name} holds sound in a coding that cannot be decoded; convert it to WAV or FLAC first")
        self._stream = stream
        form = container.format.name.split(",")[0]
        if form == "mov":  # it has a table of where everything is; others have to be read through
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all
        self.claimed, self.exact = None, form in _EXACT
        self._gapless = form in _GAPLESS
        if stream.duration is not None:
            self.claimed = float(stream.duration * stream.time_base)
            # An MP3 with a header of its own tells its length, and how much of its start is padding.
            self.exact |= form == "mp3" and bool(stream.start_time)
            if form == "wav" and lacking:  # the library takes the size of the file for what was promised
                self.claimed += lacking * 8 / stream.codec_context.bit_rate
        elif container.duration is not None and len(container.streams) == 1:
            self.claimed = container.duration / 1e6

    def frames(self) -> "Iterator[av.AudioFrame]":
        """All frames, once. Raises MediaError for damage, but not for a tag behind the last of them."""
        import av

        seconds = reached = 0.0  # of sound so far; its end on the clock of the file, which goes on through gaps
        clock: float | None = None  # where the last frame ends
        failures: list[Exception] = []  # since the last frame
        packets = self._container.demux()
        while True:
            check_time(self._name)
            try:
                packet = next(packets, None)
                if packet is not None and packet.size:
                    self._file.unrewarded = 0
                frames = packet.decode() if packet is not None and packet.stream.index == self._stream.index else []
            except (av.FFmpegError, OSError) as error:
                failures.append(error)
                continue
            if packet is None:
                break
            for frame in frames:
                # A recording cut out of a broadcast may start within a packet.
                if failures and (seconds or len(failures) > 1):
                    raise self._broken(seconds, reason(failures[0]))
                failures = []
                if not frame.sample_rate:
                    raise MediaError(f"{self._name} has a rate of 0 Hz; convert it to 16000 Hz first")
                length = frame.samples / frame.sample_rate
                start = clock if frame.time is None else frame.time
                if self._gapless and clock is not None and start > clock + MISSING:
                    raise self._broken(seconds, f"nothing is there for {start - clock:.1f} seconds")
                clock = None if start is None else start + length
                seconds += length
                reached = seconds if frame.time is None else max(reached, frame.time + length)
                yield frame
        short = self.claimed is not None and reached < self.claimed - MISSING
        if short and (self.exact or failures):
            holds = "the rest holds nothing" if self._file.given_up else "the file ends"
            why = reason(failures[0]) if failures else holds
            raise self._broken(seconds, f"{why}, but it claims {self.claimed:.1f} seconds")
        if failures and (not seconds or self.claimed is None):
            raise self._broken(seconds, reason(failures[0]))

    def _broken(self, seconds: float, why: str) -> MediaError:
        where = f"from second {seconds:.1f} on" if seconds else "from the start"
        return MediaError(f"{self._name} is broken or cut off {where} ({why}); copy or download it again")


@contextmanager
def open_track(source: Source, name: str, fetch: Fetch | None = None) -> Iterator[Track]:
    """The sound track of a source that a player would choose. Raises MediaError."""
    with open_file(source, "audio", fetch=fetch) as file:
        rate, lacking = _wav_header(file)
        if rate == 0:
            raise MediaError(f"{name} has a rate of 0 Hz; record or convert it again")
        watched = _Watched(file)
        with container_of(watched, name, "audio") as container:
            yield Track(container, watched, name, lacking)


def _wav_header(file: BinaryIO) -> tuple[int | None, int]:
    """The rate that a WAV file states at the usual place, and how many bytes it promises and lacks."""
    file.seek(0)
    head = file.read(28)
    if len(head) < 28 or head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt ":
        return None, 0
    size, rate = (int.from_bytes(head[place : place + 4], "little") for place in (4, 24))
    # Who could not go back to write the size has left 0 or about the largest.
    told = 0 < size < 2**31 - 2**16
    return rate, max(0, size + 8 - file.seek(0, os.SEEK_END)) if told else 0


class _Watched:
    """A file that ends early when much was read or sought in it since a packet was last found.

    Some formats look for the next one through gigabytes of nothing, 8 bytes at a time.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.tell = file, file.tell
        self.unrewarded = 0  # bytes

    @property
    def given_up(self) -> bool:
        return self.unrewarded > PATIENCE

    def read(self, size: int) -> bytes:
        self.unrewarded += size
        return b"" if self.given_up else self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.unrewarded += SEEK
        return self._file.seek(offset, whence)
