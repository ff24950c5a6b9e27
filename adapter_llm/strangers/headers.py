"""What a file would cost to read, by its header, before anything of it is decoded.

Kilobytes can unpack to gigabytes, and to hours. What is let through here may still be broken: the loaders say how.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from imagebind_encoder.media.source import MediaError, describe

from .limits import MediaLimits
from .probe import TOO_MUCH

# Formats whose size is that of what is decoded. TIFF may have gigabytes in one tile of a picture of ten pixels, AVIF a
# picture of another size than it says; others are rare, or drawn by other programs.
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PICTURE_NAMES = "PNG, JPEG, WebP, GIF or BMP"
MAX_SCANS = 100  # of a JPEG: progressive ones have about ten, and each goes over all pixels
PROBE = Path(__file__).with_name("probe.py")
CRASHED = 0xC0000000  # Windows: from this exit code on; elsewhere those of signals are negative
PROBE_MEMORY = 256 * 2**20  # bytes that opening may take, beside those of the file; a 4K film takes 90 MB


class ProbeError(RuntimeError):
    """The look into a file broke, and not for what the file is: a mistake of this program or its installation."""


def check_header(keyword: str, data: bytes, limits: MediaLimits) -> int:
    """The pixels of a picture, 0 for what else there is.

    Raises MediaError for a file that is too large, too long, or of a kind that is not read from strangers, and
    ProbeError if a film cannot be looked into for another reason.
    Blocks: for a film or recording a process is started, about a tenth of a second.
    """
    if keyword == "image":
        return _check_picture(data, limits)
    if keyword == "video" and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_size(data, "frames of ", *_open_picture(data).size, limits.max_frame_pixels)
    else:
        _check_recording(keyword, data, limits)
    return 0


def _check_picture(data: bytes, limits: MediaLimits) -> int:
    image = _open_picture(data)
    _check_size(data, "", *image.size, limits.max_pixels)
    # In the pixels themselves the two bytes cannot stand together; in other places they do so by chance, rarely.
    if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise MediaError(f"{describe(data)} is a JPEG of {scans} scans; save the picture again in an ordinary way")
    return image.width * image.height


def _check_size(data: bytes, what: str, width: int, height: int, most: int) -> None:
    if width * height > most:
        raise MediaError(f"{describe(data)} has {what}{width} x {height} pixels; give at most {most} pixels")


def _open_picture(data: bytes) -> Any:
    """A Pillow image of which only the header was read. Raises MediaError."""
    from PIL import Image

    Image.init()
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in PICTURES if name in Image.OPEN])
        # The loader asks all formats there are, and some would take a file that another has taken here.
        same = Image.open(io.BytesIO(data)).format == image.format
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{describe(data)} has far too many pixels; make the picture smaller first") from error
    except Exception as error:  # headers of broken files fail in ways no list of types covers
        raise MediaError(f"{describe(data)} is no picture that can be read; give {PICTURE_NAMES}") from error
    if not same:
        raise MediaError(f"{describe(data)} is a picture of two formats at once; give {PICTURE_NAMES}")
    return image


def _check_recording(keyword: str, data: bytes, limits: MediaLimits) -> None:
    found = _probe(keyword, data, limits)
    if "error" in found:
        raise MediaError(found["error"])
    _check_size(data, "frames of ", found["width"], found["height"], limits.max_frame_pixels)
    if found["seconds"] > limits.max_seconds:
        raise MediaError(
            f"{describe(data)} lasts {found['seconds']:.0f} seconds; give at most {limits.max_seconds:g} seconds"
        )


def _probe(keyword: str, data: bytes, limits: MediaLimits) -> dict[str, Any]:
    """What `probe.look` found in a process of its own, which is ended when it takes too much."""
    processor_time = max(1, round(limits.reading_seconds))
    # What this process imports from, also folders of --user and PYTHONPATH, which -I leaves out; but none that is
    # named by where it is started.
    places = json.dumps([place for place in sys.path if os.path.isabs(place)])
    arguments = [places, keyword, str(PROBE_MEMORY + 2 * len(data)), str(processor_time)]
    too_much = MediaError(
        f"{describe(data)} takes too long or too much memory to open, far more than such a file should; convert it anew"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(PROBE), *arguments],
            input=data, capture_output=True, timeout=2 * limits.reading_seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise too_much from error
    if done.returncode == TOO_MUCH or done.returncode < 0 or done.returncode >= CRASHED:
        raise too_much
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ProbeError(f"the probe of a {keyword} ended with code {done.returncode}: {said[:300]}")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise ProbeError(f"the probe of a {keyword} said {done.stdout[:100]!r}") from error
