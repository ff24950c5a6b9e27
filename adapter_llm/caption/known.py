"""Which rows an output has: a digest each, for millions of them, and the places of rows that others have replaced."""

from __future__ import annotations

import hashlib
from typing import Generic, TypeVar

from .rows import KEY_BYTES, row_key

Place = TypeVar("Place")
PLACE_BYTES = 8


class KnownRows(Generic[Place]):
    """One row for each id and config hash: one takes the place of one that failed, none that of a finished one."""

    def __init__(self) -> None:
        self._finished: set[bytes] = set()
        self._failed: dict[bytes, Place] = {}
        self.stale: list[Place] = []  # of rows to take out

    def __len__(self) -> int:
        """Rows that stay."""
        return len(self._finished) + len(self._failed)

    def finished(self, id: str, config_hash: str) -> bool:
        return row_key(id, config_hash) in self._finished

    def add(self, id: str, config_hash: str, ok: bool, place: Place) -> None:
        key = row_key(id, config_hash)
        if key in self._finished:
            self.stale.append(place)
            return
        if key in self._failed:
            self.stale.append(self._failed.pop(key))
        if ok:
            self._finished.add(key)
        else:
            self._failed[key] = place

    def add_elsewhere(self, id: str, config_hash: str, ok: bool) -> None:
        """A row of another file, which need not be done again."""
        if ok:
            self._finished.add(row_key(id, config_hash))


class LatestRows:
    """One finished row for each id: the last, as a file beside each input holds one caption; and why there is none."""

    def __init__(self) -> None:
        self._finished: dict[bytes, bytes] = {}  # by id: the place of its row, and what tells how it was made
        self._failed: dict[bytes, int] = {}
        self._elsewhere: set[bytes] = set()
        self.stale: list[int] = []

    def finished(self, id: str, config_hash: str) -> bool:
        key = row_key(id, config_hash)
        found = self._finished.get(text_key(id))
        return key in self._elsewhere if found is None else found[PLACE_BYTES:] == key

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

    def add_elsewhere(self, id: str, config_hash: str, ok: bool) -> None:
        if ok:
            self._elsewhere.add(row_key(id, config_hash))


def text_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=KEY_BYTES).digest()
