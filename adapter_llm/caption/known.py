"""Which rows an output has: a digest each, for millions of them, and the places of rows that others have replaced."""

from __future__ import annotations

import hashlib
from typing import Generic, TypeVar

from .rows import KEY_BYTES, row_key

Place = TypeVar("Place")
PLACE_BYTES = 8


class KnownRows(Generic[Place]):
    """One row for each id and config hash: one takes the place of one that failed, none that of a finished one.

    An input that is finished leaves no errors of earlier runs behind either, however it was asked about then: what
    went wrong may have been the prompt itself. Errors of its own run are of other questions about it, and stay.
    """

    def __init__(self) -> None:
        self._finished: set[bytes] = set()
        self._failed: dict[bytes, tuple[bytes, Place]] = {}  # in this run: with what tells the id
        self._before: dict[bytes, dict[bytes, Place]] = {}  # in earlier runs, by id
        self.stale: list[Place] = []  # of rows to take out

    def __len__(self) -> int:
        """Rows that stay."""
        return len(self._finished) + len(self._failed) + sum(map(len, list(self._before.values())))

    def finished(self, id: str, config_hash: str) -> bool:
        found = row_key(id, config_hash) in self._finished
        if found:
            self._forget(id)
        return found

    def add(self, id: str, config_hash: str, ok: bool, place: Place) -> None:
        key = row_key(id, config_hash)
        if key in self._finished:
            self.stale.append(place)
            return
        own = text_key(id)
        if key in self._failed:
            self.stale.append(self._failed.pop(key)[1])
        if key in self._before.get(own, ()):
            self.stale.append(self._before[own].pop(key))
        if ok:
            self._finished.add(key)
            self._forget(id)
        else:
            self._failed[key] = own, place

    def add_elsewhere(self, id: str, config_hash: str, ok: bool) -> None:
        """A row of another file, which need not be done again."""
        if ok:
            self._finished.add(row_key(id, config_hash))

    def begin(self) -> None:
        """What was added until now is of earlier runs."""
        for key, (own, place) in self._failed.items():
            self._before.setdefault(own, {})[key] = place
        self._failed = {}

    def _forget(self, id: str) -> None:
        if self._before:
            self.stale += self._before.pop(text_key(id), {}).values()


class LatestRows:
    """One finished row for each id: the last, as a file beside each input holds one caption; and why there is none."""

    def __init__(self) -> None:
        self._finished: dict[bytes, bytes] = {}  # by id: the place of its row, and what tells how it was made
        self._failed: dict[bytes, int] = {}
        self._elsewhere: set[bytes] = set()
        self.stale: list[int] = []

    def finished(self, id: str, config_hash: str) -> bool:
        own, key = text_key(id), row_key(id, config_hash)
        found = self._finished.get(own)
        if found is None:
            return key in self._elsewhere
        if found[PLACE_BYTES:] == key and own in self._failed:  # asked otherwise it failed, and that is no matter now
            self.stale.append(self._failed.pop(own))
        return found[PLACE_BYTES:] == key

    def add(self, id: str, config_hash: str, ok: bool, place: int) -> None:
        own = text_key(id)
        if not ok and self.finished(id, config_hash):
            self.stale.append(place)
            return
        if own in self._failed:
            self.stale.append(self._failed.pop(own))
        if not ok:
            self._failed[own] = place
            return
        if own in self._finished:
            self.stale.append(int.from_bytes(self._finished[own][:PLACE_BYTES], "big"))
        self._finished[own] = place.to_bytes(PLACE_BYTES, "big") + row_key(id, config_hash)

    def begin(self) -> None:
        """There is one row an id, whichever run it is of."""

    def add_elsewhere(self, id: str, config_hash: str, ok: bool) -> None:
        if ok:
            self._elsewhere.add(row_key(id, config_hash))


def text_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=KEY_BYTES).digest()
