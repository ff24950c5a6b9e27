"""Files and words that a conversation is about: of what kind each is, how much it counts, what is wrong with it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagebind_encoder.media.source import describe
from imagebind_encoder.media.text import MAX_CHARACTERS

from ..words import listed

_PICTURES = ("image", "depth", "thermal")
READ_AS = {  # endings of file names, and what such a file may be, the likeliest first
    ".jpg": _PICTURES,
    ".jpeg": _PICTURES,
    ".png": _PICTURES,
    ".webp": _PICTURES,
    ".bmp": _PICTURES,
    ".tif": _PICTURES,
    ".tiff": _PICTURES,
    ".gif": ("image", "video"),
    ".mp4": ("video", "audio"),
    ".mov": ("video", "audio"),
    ".mkv": ("video", "audio"),
    ".avi": ("video", "audio"),
    ".webm": ("video", "audio"),
    ".wav": ("audio",),
    ".flac": ("audio",),
    ".ogg": ("audio",),
    ".oga": ("audio",),
    ".opus": ("audio",),
    ".mp3": ("audio",),
    ".m4a": ("audio",),
    ".aac": ("audio",),
    ".csv": ("imu",),
    ".npy": ("depth", "thermal", "imu", "point"),
    ".ply": ("point",),
    ".pcd": ("point",),
    ".txt": ("text",),
    ".md": ("text",),
}
CALLED = {  # what people are told of a keyword
    "image": "picture",
    "video": "film",
    "audio": "sound",
    "text": "words",
    "depth": "depth map",
    "thermal": "thermal picture",
    "imu": "motion",
    "point": "point cloud",
}
MOST = 8  # attachments of a conversation
LONGEST = 20_000  # characters of a question: more than any of these models reads
HEAVIEST = 2.0  # weight that the page offers; in the mean only ratios count


def endings(taken: Sequence[str]) -> list[str]:
    """Endings of the files that may be one of these keywords."""
    return [ending for ending, keywords in READ_AS.items() if set(keywords) & set(taken)]


def lacking(taken: Sequence[str]) -> str:
    """What weights that take these keywords do not, in words; empty if they take everything."""
    names = [CALLED[keyword] for keyword in CALLED if keyword not in taken]
    plural = [name if name.endswith("s") or name == "motion" else f"{name}s" for name in names]
    return " and ".join(filter(None, [", ".join(plural[:-1]), *plural[-1:]]))


@dataclass(frozen=True)
class Attachment:
    """One thing to look at. A file has a path, words of the page have none."""

    name: str
    keyword: str = ""  # empty: it is of no kind that is taken
    choices: tuple[str, ...] = ()  # what it may be read as
    path: Path | None = None
    words: str = ""
    weight: float = 1.0
    problem: str | None = None  # why it cannot be looked at
    sent: bool = False  # with a question; else it waits for the next one
    in_box: bool = False  # as a chip beside the words of the next question, until that is sent
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def source(self) -> str | Path:
        return self.words if self.path is None else self.path

    @property
    def usable(self) -> bool:
        return self.problem is None and self.weight > 0

    def in_words(self, message: str) -> str:
        """What is said about the file on this machine, with the name that its owner knows."""
        if self.path is None:
            return message
        return message.replace(describe(self.path), f"'{self.name}'").replace(str(self.path), self.name)


def from_file(path: Path, taken: Sequence[str]) -> Attachment:
    """A file as the first of the keywords `taken` that its name's ending stands for, or with its problem in words."""
    possible = READ_AS.get(path.suffix.lower())
    choices = tuple(keyword for keyword in possible or () if keyword in taken)
    if choices:
        return Attachment(path.name, choices[0], choices, path)
    if possible is None:
        kinds = listed([CALLED[keyword] for keyword in taken], len(CALLED))
        what = f"files ending in {path.suffix}" if path.suffix else "files without an ending"
        return Attachment(path.name, path=path, problem=f"{what} are not known here; give one of these: {kinds}")
    names = " or ".join(CALLED[keyword] for keyword in possible)
    return Attachment(path.name, path=path, problem=f"this is a {names}, which the loaded weights do not take")


def from_words(words: str) -> Attachment:
    """Words that are looked at, as a picture is, instead of being read as part of the question.

    Raises ValueError for too many.
    """
    words = " ".join(words.split())
    if len(words) > MAX_CHARACTERS:
        raise ValueError(f"these are {len(words)} characters; give at most {MAX_CHARACTERS}")
    name = words if len(words) <= 40 else words[:39].rstrip() + "…"
    return Attachment(f"“{name}”", "text", ("text",), words=words)


def media_of(attachments: Sequence[Attachment]) -> dict[str, list[tuple[Any, float]]]:
    """Keyword media as Pipeline takes them, of what can be looked at and has a weight."""
    media: dict[str, list[tuple[Any, float]]] = {}
    for one in attachments:
        if one.usable:
            media.setdefault(one.keyword, []).append((one.source, one.weight))
    return media
