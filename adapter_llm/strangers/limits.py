"""How much media a request may bring, and what reading it may cost. Imports nothing: for the command line, too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaLimits:
    """Raises ValueError for a limit that is not positive: it would let nothing through, or everything."""

    allow_urls: bool = False  # fetch http(s) URLs, from public addresses only
    max_parts: int = 16  # files in a request, all messages together
    max_bytes: int = 50_000_000  # of all files of a request together, decoded
    max_pixels: int = 50_000_000  # of a picture: about 200 MB each copy of it
    max_frame_pixels: int = 9_000_000  # of a film's frame; 4K
    max_seconds: float = 3600.0  # of a recording or a film
    download_seconds: float = 20.0  # for all URLs of a request together
    reading_seconds: float = 30.0  # for decoding all films and recordings of a request together

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0 and name != "allow_urls":
                raise ValueError(f"{name} must be above 0, not {value!r}")
