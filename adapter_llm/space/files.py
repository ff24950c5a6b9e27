"""Which files are meant: paths, folders and globs to media files, each with the keyword that loads it."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..words import listed

# what the loaders read, by keyword; a suffix that stands nowhere, or twice, tells nothing
_GREY = (".png", ".tif", ".tiff", ".npy")
BY_SUFFIX = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "video": (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus", ".aac"),
    "text": (".txt",),
    "imu": (".csv",),
    "point": (".ply", ".pcd", ".pt"),
}
# what a folder is searched for when all of it is said to be of one kind
SUFFIXES = {
    **BY_SUFFIX,
    "video": (*BY_SUFFIX["video"], ".gif"),
    "audio": (*BY_SUFFIX["audio"], *BY_SUFFIX["video"]),
    "depth": _GREY,
    "thermal": (*_GREY, ".jpg", ".jpeg"),
    "imu": (*BY_SUFFIX["imu"], ".npy"),
    "point": (*BY_SUFFIX["point"], ".npy"),
}
KEYWORD_OF = {suffix: keyword for keyword, suffixes in BY_SUFFIX.items() for suffix in suffixes}


@dataclass(frozen=True)
class MediaFile:
    """A file, the keyword that loads it, and what tells that it has changed since."""

    path: str  # as it was given, or as it was found below a folder that was
    keyword: str
    size: int  # bytes
    modified: int  # nanoseconds since 1970


@dataclass
class FoundMedia:
    """What the inputs of a command stand for."""

    files: list[MediaFile] = field(default_factory=list)  # each once, in the order in which they were given
    problems: list[str] = field(default_factory=list)  # inputs that stand for nothing, a sentence each
    unseen: Counter[str] = field(default_factory=Counter)  # files in folders that the weights have no trunk for
    unknown: int = 0  # files in folders that no suffix tells the kind of

    @property
    def left_out(self) -> str | None:
        """A sentence on the files of folders that nobody asked for by name; None if there are none."""
        kinds = [f"{count} of the kind {keyword}" for keyword, count in sorted(self.unseen.items())]
        kinds += [f"{self.unknown} of unknown kind"] if self.unknown else []
        return f"files left out: {', '.join(kinds)}" if kinds else None


def find_media(inputs: Iterable[str], keywords: Sequence[str], forced: str | None = None) -> FoundMedia:
    """The files of paths, folders (with all below them) and globs; `keywords` are those that the weights know.

    `forced` takes every file for one of that kind. Hidden files in folders are left alone. Nothing is raised here
    for an input that is wrong: it becomes a problem, and the others go on.
    """
    found = FoundMedia()
    seen: set[str] = set()
    for given in inputs:
        for path, searched in _paths(given, found.problems):
            own = os.path.abspath(path)
            if own in seen:
                continue
            seen.add(own)
            _sort_in(found, path, searched, keywords, forced)
    return found


def is_regular(path: str) -> bool:
    """False for a pipe, a socket or a device, which may never end, or never begin. Raises OSError."""
    return stat.S_ISREG(os.stat(path).st_mode)


def _paths(given: str, problems: list[str]) -> Iterator[tuple[str, bool]]:
    """Paths of files, and whether they were found in a folder rather than named."""
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        yield from ((below, True) for below in _below(path, problems))
    elif os.path.exists(path):
        yield path, False
    elif glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            problems.append(f"nothing matches {given!r}; check the pattern")
        for match in matches:
            below = _below(match, problems) if os.path.isdir(match) else [match]
            yield from ((each, True) for each in below)
    else:
        problems.append(f"there is no file or folder {given!r}; check the path")


def _below(folder: str, problems: list[str]) -> Iterator[str]:
    """Every file below a folder in the order of paths, but for what is hidden."""

    def unreadable(error: OSError) -> None:
        problems.append(f"the folder {error.filename!r} cannot be read ({error.strerror}); check its permissions")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(place, name) for name in sorted(names) if not name.startswith("."))


def _sort_in(found: FoundMedia, path: str, searched: bool, keywords: Sequence[str], forced: str | None) -> None:
    suffix = Path(path).suffix.lower()
    if forced is not None:
        keyword = forced if not searched or suffix in SUFFIXES[forced] else None
    else:
        keyword = KEYWORD_OF.get(suffix)
    if keyword is None:
        if searched:
            found.unknown += 1
        else:
            kinds = "|".join(SUFFIXES)
            found.problems.append(f"the suffix of {path!r} does not tell what it is; say it with --as {kinds}")
        return
    if keyword not in keywords:
        if searched:
            found.unseen[keyword] += 1
        else:
            found.problems.append(f"{path!r} is of the kind {keyword}, and these weights take {listed(keywords)}")
        return
    try:
        status = os.stat(path)
    except OSError as error:
        found.problems.append(f"{path!r} cannot be read ({error.strerror}); check its permissions")
        return
    if not stat.S_ISREG(status.st_mode):
        found.problems.append(f"{path!r} is no regular file; save what it gives in one")
        return
    found.files.append(MediaFile(path, keyword, status.st_size, status.st_mtime_ns))
