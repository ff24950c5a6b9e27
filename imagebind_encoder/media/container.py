"""Films and recordings: any source -> an open container, of which nothing is decoded yet.

The library underneath can follow playlists to other files and addresses. Here it reads the bytes it is
given and nothing else: it never sees a name or an address, only formats that hold everything themselves
are on its list, and it may use no protocol, not even that of files, to get at more.
"""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from .source import Fetch, MediaError, Source, describe, read_source

if TYPE_CHECKING:
    from av.container import InputContainer

WORDS = {  # kind: what it is called, what to give instead
    "video": ("film", "an MP4, WebM, MKV, MOV, AVI or GIF file"),
    "audio": ("recording", "a WAV, FLAC, OGG, MP3, M4A or Opus file, or a film with sound"),
}
FORMATS = (  # of which nothing refers to another file
    *("mov", "matroska", "avi", "gif", "apng", "flv", "asf", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc"),
    *("obu", "ivf", "nut", "mxf", "dv", "wtv", "mjpeg", "yuv4mpegpipe", "ogg", "wav", "w64", "aiff", "au", "caf"),
    *("flac", "mp3", "aac", "ac3", "eac3", "amr", "ape", "wv", "tta", "voc", "dsf"),
)

PROTOCOLS = "none"  # that a format may open something else with; there is none of that name


@contextmanager
def open_container(source: Source, kind: str, *, fetch: Fetch | None = None) -> "Iterator[InputContainer]":
    """An open PyAV container of a path, bytes, http(s) URL or data: URI, closed at the end of the block.

    `kind` is "video" or "audio" and chooses words only. A path is read piece by piece, however large the
    file, and its name says nothing about the format; anything else is in memory whole.
    `fetch(url) -> bytes` replaces the download.
    Raises MediaError: unreadable source, no film or recording, a playlist; also where the file turns out
    to be broken inside the block.
    """
    with open_file(source, kind, fetch=fetch) as file, container_of(file, describe(source), kind) as container:
        yield container


def open_file(source: Source, kind: str, *, fetch: Fetch | None = None) -> BinaryIO:
    """The bytes of a source as a file that can be read more than once. Raises MediaError, as `open_container`."""
    if not (isinstance(source, (str, bytes, bytearray, memoryview)) or hasattr(source, "__fspath__")):
        noun = WORDS[kind][0]
        raise MediaError(f"an object of type {describe(source)} is no {noun}; give a path, URL, data: URI or bytes")
    if not isinstance(source, (bytes, bytearray, memoryview)):
        path = os.fspath(source)
        elsewhere = isinstance(path, bytes) or path.lower().startswith(("http:/", "https:/", "data:"))
        if not elsewhere and os.path.isfile(path) and os.path.getsize(path) and os.access(path, os.R_OK):
            return _Nameless(io.FileIO(path))
    # Also a file that cannot be opened: the words for what is wrong with it are there.
    return io.BytesIO(read_source(source, fetch=fetch))


@contextmanager
def container_of(file: BinaryIO, name: str, kind: str) -> "Iterator[InputContainer]":
    """An open PyAV container of a file, read from its start. `name` and errors as of `open_container`."""
    import av

    noun, wanted = WORDS[kind]
    file.seek(0)
    try:
        container = av.open(
            file,
            mode="r",
            options={"format_whitelist": ",".join(FORMATS), "protocol_whitelist": PROTOCOLS},
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        if getattr(error, "errno", None) == errno.EINVAL:
            why = f"is no {noun}: pictures and playlists, which name other files, are not opened as one"
        else:
            why = f"is no {noun} that can be read, or it is cut off ({reason(error)})"
        raise MediaError(f"{name} {why}; give {wanted}") from error
    with container:
        try:
            yield container
        except (av.FFmpegError, OSError) as error:
            raise MediaError(f"{name} is broken or cut off ({reason(error)}); copy or download it again") from error


def reason(error: Exception) -> str:
    """An error's own words without the number and the file name that PyAV puts around them."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Nameless(io.BufferedReader):
    """A file that does not tell its name: formats would be guessed from it, and % in it taken for a pattern."""

    name = ""
