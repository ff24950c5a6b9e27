"""What was looked at is remembered: the features of an input, under what its content is, not under its name.

Bounded: what was not asked for longest is forgotten first.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from .processing import InputOptions, MediaItem


class FeatureCache:
    """Features (N, E) of inputs, in memory, for several threads. Belongs to one model and its settings."""

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        if max_bytes < 0:
            raise ValueError("max_bytes must be 0 or more")
        self.max_bytes = max_bytes
        self.hits = self.misses = self.bytes = 0
        self._known: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    def features(self, item: MediaItem, options: InputOptions, look: Callable[[], Tensor]) -> Tensor:
        """The item's features, by `look` if they are not known; what has no bytes, such as an array, is not kept."""
        content = content_hash(item.source, words=item.keyword == "text")
        if content is None:
            return look()
        key = (item.keyword, content, options.window, options.hop, options.pool)
        with self._lock:
            if key in self._known:
                self.hits += 1
                self._known.move_to_end(key)
                return self._known[key]
            self.misses += 1
        found = look()  # outside the lock: two who ask for the same at once both look
        self._keep(key, found)
        return found

    def _keep(self, key: Hashable, features: Tensor) -> None:
        with self._lock:
            if key in self._known or _size(features) > self.max_bytes:
                return
            self._known[key] = features
            self.bytes += _size(features)
            while self.bytes > self.max_bytes:
                _, forgotten = self._known.popitem(last=False)
                self.bytes -= _size(forgotten)


def content_hash(source: Any, words: bool = False) -> str | None:
    """SHA-256 of bytes, of a file's content, of `words` or of a data: URI; None for what has no bytes of its own.

    A file that cannot be read has none either: whoever loads it will say why.
    """
    if isinstance(source, str) and (words or source[:5].lower() == "data:"):
        return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return hashlib.sha256(source).hexdigest()
    if not isinstance(source, (str, os.PathLike)) or not Path(source).is_file():
        return None
    digest = hashlib.sha256()
    try:
        with Path(source).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def _size(features: Tensor) -> int:
    return features.numel() * features.element_size()
