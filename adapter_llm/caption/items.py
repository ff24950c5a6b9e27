"""Inputs one by one: found, named, listed in a table or packed in a shard; each once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from .content import Content, Held, WebFile
from .kinds import Kinds, hinted
from .rows import KEY_BYTES
from .stores import SCHEME, WEB, Local, Remote, prompt_beside, store_of
from .table import Entry
from .tars import Member

PROMPT_FIELD = "prompt"  # of JSON beside an input, unless another is named


@dataclass(frozen=True)
class Input:
    """One picture, film, sound, ... to be captioned."""

    id: str  # the same in every run; with the prompt it tells an input from all others
    path: str  # a file, a URL, or shard.tar/member
    keyword: str  # of the loader
    prompt: str | None  # its own; None: that of the run
    read: Callable[[], Content]  # raises MediaError; for the threads that read ahead
    name: str = ""  # below the folder, pattern, table, ... that it was found by, with slashes
    place: str | None = None  # the path of a file of this machine


@dataclass(frozen=True)
class Problem:
    """An input that stands for nothing."""

    input: str  # what was given, or where in it
    message: str  # a sentence
    id: str | None = None  # of the row that is missing for it; None: there is no one row


class Seen:
    """Which inputs were there before: a digest or two of each."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._paths: dict[bytes, bytes] = {}  # of ids that tables give

    def first(self, *words: str | None) -> bool:
        """Whether they are new."""
        before = len(self._known)
        self._known.add(_digest(*words))
        return len(self._known) > before

    def owns(self, path: str, id: str) -> bool:
        """Whether the id that a table gives to a path is not another's."""
        return self._paths.setdefault(_digest(id), _digest(path)) == _digest(path)


def _digest(*words: str | None) -> bytes:
    """Names that are no UTF-8 keep their bytes."""
    return hashlib.blake2b(repr(words).encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


class Items:
    """Makes inputs of what is found: each method gives one, or a problem, or nothing if it was there before."""

    def __init__(self, kinds: Kinds, seen: Seen | None) -> None:
        """Without `seen` whoever calls knows that no input comes twice."""
        self.kinds, self._seen = kinds, seen
        self._suffix = kinds.options.prompt_suffix
        self._field = kinds.options.prompt_column or PROMPT_FIELD

    def file(
        self,
        store: Local | Remote,
        path: str,
        keyword: str,
        name: str,
        prompt: str | None = None,
        id: str | None = None,
    ) -> Iterator[Input | Problem]:
        """A file whose kind is known."""
        if prompt is None and self._suffix is not None:
            try:
                prompt = prompt_beside(store, path, self._suffix, self._field)
            except ValueError as error:
                yield Problem(path, str(error), id or path)
                return
        place = None if store.remote else path
        yield from self._once(path, store.same, keyword, prompt, store.reader(path), name, place, id)

    def named(self, path: str, entry: Entry | None = None) -> Iterator[Input | Problem]:
        """A file that was asked for by its name; whether there is one turns out when it is read."""
        id, prompt = (None, None) if entry is None else (entry.id, entry.prompt)
        name = tidy(path if entry is None else entry.path)
        try:
            address = SCHEME.match(path) is not None
            keyword = self.kinds.of_named(path, "" if entry is None else entry.column, address)
            if WEB.match(path):
                yield from self._once(path, str, keyword, prompt, WebFile(path), name, None, id)
            else:
                yield from self.file(store_of(path), path, keyword, name, prompt, id)
        except ValueError as error:
            yield Problem(path if entry is None else entry.where, str(error), id or path)

    def row(self, entry: Entry, store: Local | Remote, table: str) -> Iterator[Input | Problem]:
        """Of a row of a table that lies in `store` at `table`."""
        if entry.data is None:
            path = entry.path if SCHEME.match(entry.path) else store.beside(table, entry.path)
            yield from self.named(path, entry)
            return
        last = tidy(entry.path) if entry.path else entry.where.partition(" of ")[0].replace(" ", "-")
        path = f"{table}/{last}"
        try:
            keyword = self.kinds.of_named(entry.path or hinted(entry.column) or "image", entry.column, address=True)
        except ValueError as error:
            yield Problem(entry.where, str(error), entry.id or path)
            return
        name = f"{os.path.splitext(tidy(table))[0]}/{last}"
        yield from self._once(path, str, keyword, entry.prompt, Held(entry.data, path), name, None, entry.id)

    def member(self, member: Member, store: Local | Remote, shard: str, stem: str) -> Iterator[Input | Problem]:
        """Of a tar file; `stem` is its name without the suffix."""
        path, name = f"{shard}/{member.name}", f"{tidy(stem)}/{tidy(member.name)}"
        if member.problem is not None:
            yield Problem(path, member.problem, path)
        else:
            yield from self._once(path, store.same, member.keyword, member.prompt, member.read, name)

    def _once(
        self,
        path: str,
        same: Callable[[str], str],
        keyword: str,
        prompt: str | None,
        read: Callable[[], Content],
        name: str,
        place: str | None = None,
        id: str | None = None,
    ) -> Iterator[Input | Problem]:
        seen, own = self._seen, same(path) if id is None else id
        if seen is not None:
            if not seen.first(own, path if id else "", prompt):
                return
            if id is not None and not seen.owns(path, id):
                yield Problem(path, f"the id {id!r} of {path!r} is that of another input, too; give each its own")
                return
            if self.kinds.options.one_each and not seen.first("one", own):
                more = "is asked about twice, and there is room for one caption; take --format jsonl"
                yield Problem(path, f"{path!r} {more}")
                return
        yield Input(id or path, path, keyword, prompt, read, name, place)


def tidy(path: str) -> str:
    """A path that leads nowhere but down, to be put below an output: of a URL host and path."""
    if scheme := SCHEME.match(path):
        parts = urlsplit(path)
        host = parts.netloc.rpartition("@")[2].replace(":", "_")  # a port is in no file's name
        path = f"{host}{parts.path}" if WEB.match(path) else path[scheme.end() :]
    elif os.path.isabs(path):
        path = os.path.basename(path)
    parts = [part for part in path.replace(os.sep, "/").split("/") if part not in ("", ".")]
    while ".." in parts:
        parts = parts[parts.index("..") + 1 :]
    return "/".join(parts)
