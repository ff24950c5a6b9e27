"""Where inputs lie: on this machine, or wherever fsspec reaches. Both are walked, matched and opened in one way."""

from __future__ import annotations

import glob
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from imagebind_encoder.media.source import DEFAULT_LIMITS, MediaError

from ..space.files import is_regular
from ..words import one_line
from .content import Content, LocalFile

WEB = re.compile(r"https?://", re.IGNORECASE)
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

PROMPT_BYTES = 2**20  # of a file that holds one


class StoreError(ValueError):
    """A place that cannot be reached, or read."""


class Local:
    """Files of this machine."""

    remote = False

    def kind(self, path: str) -> str | None:
        """ "folder", "file", or None if there is nothing."""
        return "folder" if os.path.isdir(path) else "file" if os.path.exists(path) else None

    def matches(self, pattern: str) -> list[str]:
        return sorted(glob.glob(pattern, recursive=True))

    def walk(self, folder: str, unreadable: Callable[[str], object]) -> Iterator[str]:
        """Every file below a folder in the order of paths, but for what is hidden."""

        def report(error: OSError) -> None:
            unreadable(f"the folder {error.filename!r} cannot be read ({error.strerror}); check its permissions")

        for place, folders, names in os.walk(folder, onerror=report):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(place, name) for name in sorted(names) if not name.startswith("."))

    def relative(self, path: str, folder: str) -> str:
        """With slashes, as all names below an output have them."""
        return os.path.relpath(path, folder or ".").replace(os.sep, "/")

    def beside(self, path: str, name: str) -> str:
        """What a table at `path` means by a name."""
        return os.path.join(os.path.dirname(path), os.path.expanduser(name))

    def open(self, path: str) -> BinaryIO:
        """Raises StoreError."""
        try:
            if not (os.path.isdir(path) or is_regular(path)):  # to open a folder is an error, and ends
                raise StoreError(f"{path!r} is no regular file; save what it gives in one")
            return open(path, "rb")
        except OSError as error:
            raise StoreError(f"{path!r} cannot be read ({error.strerror}); check it") from error

    def reader(self, path: str) -> LocalFile:
        return LocalFile(path)

    def same(self, path: str) -> str:
        """What two names of one file have in common."""
        return os.path.abspath(path)


@dataclass(frozen=True)
class RemoteFile:
    """A file that fsspec reaches."""

    url: str
    place: str  # as its file system calls it
    files: Any = field(repr=False)

    def __call__(self) -> Content:
        """Raises MediaError."""
        try:
            with self.files.open(self.place, "rb") as file:
                data = file.read(DEFAULT_LIMITS.max_bytes + 1)
        except Exception as error:  # clients of clouds have errors of their own: all mean that it cannot be had
            raise MediaError(f"{self.url!r} cannot be read ({one_line(error)}); check it") from error
        return Content.of(data, self.url)


class Remote:
    """A file system that fsspec reaches; paths are whole URLs here."""

    remote = True

    def __init__(self, url: str) -> None:
        """Raises StoreError for a protocol that is not known, or whose package is not here."""
        import fsspec

        scheme = url.partition("://")[0]
        try:
            self._files, _ = fsspec.url_to_fs(url)
        except ImportError as error:
            raise StoreError(f"{url!r} needs a package that is not here: {one_line(error)}") from error
        except Exception as error:  # of any client: no such protocol, no account
            raise StoreError(f"{url!r}: {scheme}:// cannot be used ({one_line(error)}); check the address") from error

    def kind(self, path: str) -> str | None:
        """Raises StoreError."""
        try:
            found = self._asked(path, self._files.info)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return "folder" if found["type"] == "directory" else "file"

    def matches(self, pattern: str) -> list[str]:
        """Nothing hidden, as on this machine. Raises StoreError."""
        found = sorted(map(self._url, self._asked(pattern, self._files.glob)))
        return found if "/." in pattern else [path for path in found if "/." not in path]

    def walk(self, folder: str, unreadable: Callable[[str], object]) -> Iterator[str]:
        """Every file below a folder, but for what is hidden."""
        try:
            for place, folders, names in self._asked(folder, lambda top: self._files.walk(top, on_error="raise")):
                folders[:] = sorted(name for name in folders if name[:1] != ".")
                yield from (self._url(f"{place}/{name}") for name in sorted(names) if name[:1] not in ("", "."))
        except (StoreError, OSError) as error:
            unreadable(f"the folder {folder!r} cannot be read ({one_line(error)}); check it")

    def relative(self, path: str, folder: str) -> str:
        return posixpath.relpath(self._place(path), self._place(folder))

    def beside(self, path: str, name: str) -> str:
        """What a table at `path` means by a name."""
        return f"{path.rpartition('/')[0]}/{name.removeprefix('./')}"

    def open(self, path: str) -> BinaryIO:
        """Raises StoreError."""
        return self._asked(path, lambda place: self._files.open(place, "rb"))

    def reader(self, path: str) -> RemoteFile:
        return RemoteFile(path, self._place(path), self._files)

    def same(self, path: str) -> str:
        return self._url(self._place(path))

    def _place(self, url: str) -> str:
        return self._files._strip_protocol(url)  # no public name of fsspec's does this alone

    def _url(self, place: str) -> str:
        return self._files.unstrip_protocol(place)

    def _asked(self, path: str, ask: Callable[[str], Any]) -> Any:
        try:
            return ask(self._place(path))
        except Exception as error:  # see RemoteFile
            raise StoreError(f"{path!r} cannot be read ({one_line(error)}); check address and access") from error


def store_of(path: str) -> Local | Remote:
    """Raises StoreError."""
    return Remote(path) if SCHEME.match(path) else Local()


def prompt_beside(store: Local | Remote, path: str, suffix: str, field: str) -> str | None:
    """The prompt in the file that is called as `path`, but for the suffix; None if there is no such file.

    Raises StoreError, and ValueError for one that holds no text.
    """
    name = os.path.splitext(path)[0] + suffix
    try:
        with store.open(name) as file:
            return prompt_of(file.read(PROMPT_BYTES), name, field)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def prompt_of(text: bytes, name: str, field: str) -> str | None:
    """What a file says: all of it, or a field of an object if its name ends in .json. Raises ValueError."""
    try:
        words = text.decode("utf-8-sig")
        words = json.loads(words).get(field) if name.endswith(".json") else words
        if not isinstance(words, (str, type(None))):
            raise ValueError(f"{field!r} is no text")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name!r} holds no prompt ({one_line(error)}); mend it, or take it away") from error
    return words.strip() or None if words else None


def expanded(text: str) -> Iterator[str]:
    """shards-{000..003}.tar and {a,b}.jpg, one after the other; a text without such braces is itself."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if not found:
        yield text
        return
    first, last, words = found.groups()
    if words is None:
        width = len(first) if first.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        choices = (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))
    else:
        choices = iter(words.split(","))
    for choice in choices:
        yield from (f"{text[: found.start()]}{choice}{rest}" for rest in expanded(text[found.end() :]))
