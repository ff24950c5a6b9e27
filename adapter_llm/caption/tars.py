"""Shards of webdataset: tar files whose members of one name belong together. Nothing is unpacked to the disk."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from imagebind_encoder.media.source import DEFAULT_LIMITS, MediaError

from ..words import BLOCK, one_line
from .content import Content, Held
from .stores import PROMPT_BYTES, prompt_of

BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # how compressed files begin


class TarShardError(ValueError):
    """A tar file that is damaged; what came before has been given."""


@dataclass(frozen=True)
class Slice:
    """A member of an uncompressed tar file of this machine, read from its place in it."""

    tar: str
    start: int
    size: int
    name: str

    def __call__(self) -> Content:
        """Raises MediaError."""
        try:
            with open(self.tar, "rb") as file:
                file.seek(self.start)
                data = file.read(min(self.size, DEFAULT_LIMITS.max_bytes + 1))
        except OSError as error:
            raise MediaError(f"{self.tar!r} cannot be read ({error.strerror}); check it") from error
        if len(data) < self.size <= DEFAULT_LIMITS.max_bytes:
            raise MediaError(f"{self.tar!r} is cut off within {self.name!r}; get it again")
        return Content.of(data, f"{self.tar}/{self.name}")


@dataclass(frozen=True)
class Member:
    """One file of a shard, and the prompt that stands beside it."""

    name: str
    keyword: str
    read: Callable[[], Content]
    prompt: str | None = None
    problem: str | None = None  # with the prompt


@dataclass
class _Found:
    name: str
    keyword: str | None
    read: Callable[[], Content]
    text: bytes | None = field(default=None)  # of a member that holds the prompt

    @property
    def key(self) -> str:
        return key_of(self.name)


def key_of(name: str) -> str:
    """What the members of a sample have in common: the name up to the first dot behind the last slash."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def read_tar(
    path: str, file: BinaryIO, kind: Callable[[str], str | None], prompt_suffix: str | None, field: str, local: bool
) -> Iterator[Member]:
    """The members that `kind` gives a keyword, in order. Raises TarShardError at the place where the file is damaged.

    Of an uncompressed file of this machine (`local`), media stay where they are until they are read.
    """
    try:
        seekable = local and not file.peek(6).startswith(PACKED)
        with tarfile.open(fileobj=file, mode="r:" if seekable else "r|*", tarinfo=_Strict) as archive:
            for sample in _samples(_members(path, archive, kind, prompt_suffix, seekable)):
                prompt = problem = None
                try:
                    for one in sample:
                        prompt = prompt if one.text is None else prompt_of(one.text, one.name, field)
                except ValueError as error:
                    problem = str(error)
                media = (one for one in sample if one.text is None)
                yield from (Member(one.name, one.keyword, one.read, prompt, problem) for one in media)
            if seekable and any(block.strip(b"\0") for block in iter(lambda: file.read(BLOCK), b"")):
                raise tarfile.ReadError(f"at byte {archive.offset}: zeros, as at its end, and more behind them")
    except BROKEN as error:
        raise TarShardError(
            f"{path!r} is damaged ({one_line(error)}); what comes behind that place is missing: get it again"
        ) from error


def _samples(members: Iterator[_Found]) -> Iterator[list[_Found]]:
    """Neighbours with one key; those before a damaged place are given before it is raised."""
    sample: list[_Found] = []
    broken = None
    while True:
        try:
            one = next(members, None)
        except BROKEN as error:
            one, broken = None, error
        if sample and (one is None or one.key != sample[0].key):
            yield sample
            sample = []
        if one is None:
            break
        sample.append(one)
    if broken is not None:
        raise broken


def _members(
    path: str, archive: tarfile.TarFile, kind: Callable[[str], str | None], prompt_suffix: str | None, seekable: bool
) -> Iterator[_Found]:
    while (member := archive.next()) is not None:
        archive.members = []  # a shard of a million files is no list of them
        name = member.name
        if not member.isreg() or name.rpartition("/")[2].startswith("."):
            continue
        if prompt_suffix is not None and name.endswith(prompt_suffix):
            yield _Found(name, None, Held(b"", name), _bytes(archive, member, PROMPT_BYTES))
        elif (keyword := kind(name)) is not None:
            if seekable:
                yield _Found(name, keyword, Slice(path, member.offset_data, member.size, name))
            else:
                data = _bytes(archive, member, DEFAULT_LIMITS.max_bytes + 1)
                yield _Found(name, keyword, Held(data, f"{path}/{name}"))


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    data = archive.extractfile(member).read(limit)
    if len(data) < min(limit, member.size):
        raise tarfile.ReadError(f"it is cut off within {member.name!r}")
    return data


class _Strict(tarfile.TarInfo):
    """The library takes a damaged header behind the first for the end of the file; here it is an error."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # two blocks of zeros: the end
            raise
        except tarfile.HeaderError as error:
            empty = isinstance(error, tarfile.EmptyHeaderError)
            reason = "it ends without an end mark" if empty else one_line(error)
            raise tarfile.ReadError(f"at byte {archive.offset}: {reason}") from error
