"""What the inputs of a captioning run stand for: files, folders, globs, tables, tar shards, lists, near and far."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import BinaryIO

from .items import PROMPT_FIELD, Input, Items, Problem, Seen
from .kinds import LOOKED_FOR, TARS, Kinds, SourceOptions
from .stores import SCHEME, WEB, Local, Remote, StoreError, expanded, store_of
from .table import ColumnError, Columns, Entry, TableError, read_table
from .tars import TarShardError, read_tar

__all__ = ["Input", "Inputs", "Problem", "SourceOptions", "read_inputs"]


def read_inputs(given: Sequence[str], options: SourceOptions = SourceOptions()) -> Inputs:
    """All that `given` stands for: paths of files, folders (with all below them), tables and tar shards; globs and
    {000..003}; URLs; "-" for a list on stdin, a path or a JSON object a line."""
    return Inputs(given, options)


class Inputs:
    """Inputs, and problems where there are none, found while they are walked through; each once, in order.

    May be walked through again, but for a list on stdin. Memory holds a digest an input, or, for a single folder,
    not even that.
    """

    def __init__(self, given: Sequence[str], options: SourceOptions) -> None:
        self.given, self.options = tuple(given), options
        self._kinds = Kinds(options)
        self._items = Items(self._kinds, Seen())

    @property
    def streams(self) -> bool:
        """Whether walking through reads media, or can be done only once: do not do it to count them."""
        return any(text == "-" or SCHEME.match(text) or text.lower().endswith(TARS[1:]) for text in self.given)

    @property
    def left_out(self) -> str | None:
        """A sentence on the files of folders and shards that were passed over; None if there are none."""
        return self._kinds.left_out.left_out

    def missing_column(self) -> str | None:
        """A sentence if none of the tables of this machine has a column that was asked for by its name, else None."""
        named = self.options.path_column or self.options.id_column or self.options.prompt_column
        if not named or self.streams or any(text.lower().endswith(TARS) for text in self.given):
            return None  # in a list or a tar there may be one
        missing = None
        for path in self._tables():
            try:
                with Local().open(path) as file, closing(read_table(path, file, self.options)) as rows:
                    next(rows, None)
                return None
            except ColumnError as error:
                missing = missing or str(error)
            except (StoreError, TableError):
                continue  # it is told when it is its turn
        return missing

    def _tables(self) -> Iterator[str]:
        for text in self.given:
            for path in [text] if os.path.lexists(os.path.expanduser(text)) else expanded(text):
                path = os.path.expanduser(path)
                if self._kinds.collection(path) == "table":
                    yield from [path] if os.path.isfile(path) else filter(os.path.isfile, Local().matches(path))

    def __iter__(self) -> Iterator[Input | Problem]:
        self._kinds = Kinds(self.options)
        alone = len(self.given) == 1 and os.path.isdir(self.given[0])  # a walk meets no file twice
        self._items = Items(self._kinds, None if alone else Seen())
        for text in self.given:
            yield from self._listed() if text == "-" else self._given(text)

    def _given(self, text: str) -> Iterator[Input | Problem]:
        for path in [text] if os.path.lexists(os.path.expanduser(text)) else expanded(text):
            if WEB.match(path) and self._kinds.collection(path) is None:
                yield from self._items.named(path)
                continue
            try:
                store = store_of(path)
                path = path if store.remote else os.path.expanduser(path)
                kind = store.kind(path)
                if kind == "folder":
                    yield from self._folder(store, path, path)
                elif kind == "file":
                    yield from self._file(store, path)
                elif glob.has_magic(path):
                    yield from self._pattern(store, path)
                elif self._kinds.collection(path) or not self._kinds.tells(path):
                    yield Problem(path, f"there is no file or folder {path!r}; check the path")
                else:
                    yield from self._items.named(path)  # which cannot be read
            except StoreError as error:
                yield Problem(path, str(error))

    def _listed(self) -> Iterator[Input | Problem]:
        for number, line in enumerate(sys.stdin.buffer, 1):
            text, where = os.fsdecode(line.rstrip(b"\r\n")), f"line {number} of the list"
            if not text.strip():
                continue
            values = _object(text)
            if values is None:
                many = os.path.isdir(text) or self._kinds.collection(text)
                yield from self._given(text) if many else self._items.named(text)
                continue
            try:
                entry = Entry.of(values, Columns.of(list(values), self.options, where), where)
                yield from self._items.row(entry, Local(), "")
            except TableError as error:
                yield Problem(where, str(error))

    def _pattern(self, store: Local | Remote, pattern: str) -> Iterator[Input | Problem]:
        matches = store.matches(pattern)
        if not matches:
            yield Problem(pattern, f"nothing matches {pattern!r}; check the pattern")
        fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        for path in matches:
            if store.kind(path) == "folder":
                yield from self._folder(store, path, fixed)
            elif self._kinds.collection(pattern):  # *.tar means shards; whatever * finds beside photos does not
                yield from self._file(store, path)
            elif (keyword := self._kinds.of_found(path)) is not None:
                yield from self._items.file(store, path, keyword, store.relative(path, fixed))

    def _folder(self, store: Local | Remote, folder: str, top: str) -> Iterator[Input | Problem]:
        problems: list[str] = []
        wanted = collections = 0
        for path in store.walk(folder, problems.append):
            if (keyword := self._kinds.of_found(path)) is not None:
                wanted += 1
                yield from self._items.file(store, path, keyword, store.relative(path, top))
            else:
                collections += self._kinds.collection(path) is not None
        yield from (Problem(folder, problem) for problem in problems)
        if not wanted and not problems:
            forced = self.options.forced
            kinds = [forced] if forced else [name for name in self.options.keywords if name in LOOKED_FOR]
            hint = f"; its {collections} tables and tar shards are read if they are named" if collections else ""
            yield Problem(folder, f"the folder {folder!r} holds no file of the kind {' or '.join(kinds)}{hint}")

    def _file(self, store: Local | Remote, path: str) -> Iterator[Input | Problem]:
        collection = self._kinds.collection(path)
        if collection is None:
            yield from self._items.named(path)
            return
        try:
            with store.open(path) as file:
                if collection == "tar":
                    yield from self._shard(store, path, file)
                    return
                for entry in read_table(path, file, self.options):
                    if isinstance(entry, TableError):
                        yield Problem(path, str(entry))
                    else:
                        yield from self._items.row(entry, store, path)
        except (TableError, TarShardError) as error:
            yield Problem(path, str(error))

    def _shard(self, store: Local | Remote, path: str, file: BinaryIO) -> Iterator[Input | Problem]:
        field, any_found = self.options.prompt_column or PROMPT_FIELD, False
        stem = next(path[: -len(suffix)] for suffix in TARS if path.lower().endswith(suffix))
        kind, suffix = self._kinds.of_member, self.options.prompt_suffix
        for member in read_tar(path, file, kind, suffix, field, local=not store.remote):
            any_found = True
            yield from self._items.member(member, store, path, stem)
        if not any_found:
            yield Problem(path, f"{path!r} holds no member of a kind that these weights take")


def _object(text: str) -> dict | None:
    """Of a line that is a JSON object; None if it is a path."""
    if not text.startswith("{"):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None

