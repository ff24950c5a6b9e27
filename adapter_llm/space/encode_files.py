"""Files to features: read on threads while others are encoded, alike ones together, a bad one alone.

Shapes: R windows that are kept apart (1 where none are), N features, E encoder width.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from imagebind_encoder.media.source import describe

from ..encoding import INPUT_ERRORS
from ..processing import InputOptions, LoadedItem
from .embedder import Embedder
from .files import MediaFile
from .records import Span
from .spans import NotingOptions

CLIP_DIMENSIONS = 4  # a tensor of so many, or more, is several clips (S, ...)
WAITING = 4  # batches of inputs that wait for others of their shape

T = TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """What became of a file: features (R, N, E), or the reason why there are none."""

    file: MediaFile
    features: Tensor | None = None
    spans: tuple[Span, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class _Loaded:
    file: MediaFile
    item: LoadedItem
    options: NotingOptions

    @property
    def kind(self) -> Hashable:
        """Inputs of the same kind are encoded together."""
        return self.file.keyword, self.item.tensor.shape

    @property
    def clips(self) -> int:
        """What the encoder has to do for it, in pictures, sounds, ..."""
        return self.item.tensor.shape[0] if self.item.tensor.ndim >= CLIP_DIMENSIONS else 1


def encode_files(
    embedder: Embedder, files: Iterable[MediaFile], options: InputOptions, batch_size: int
) -> Iterator[Encoded]:
    """Each file's features, in an order of their own, or its error.

    `batch_size` counts the clips of films and sounds. Memory holds a few batches, however many files there are.
    """

    def load(file: MediaFile) -> _Loaded:
        noting = NotingOptions.of(options)
        return _Loaded(file, embedder.load(file.keyword, _place(file), noting), noting)

    waiting: dict[Hashable, list[_Loaded]] = {}
    for file, loaded in read_ahead(load, files, batch_size):
        if isinstance(loaded, Exception):
            yield _failed(file, loaded)
            continue
        if loaded.item.windows is not None:
            yield from _encode(embedder, [loaded])
            continue
        group = waiting.setdefault(loaded.kind, [])
        group.append(loaded)
        if sum(map(len, waiting.values())) > WAITING * batch_size:  # of many shapes: the fullest is as full as it gets
            group = max(waiting.values(), key=len)
        elif sum(entry.clips for entry in group) < batch_size:
            continue
        yield from _encode(embedder, waiting.pop(group[0].kind))
    for group in waiting.values():
        yield from _encode(embedder, group)


def read_ahead(
    read: Callable[[MediaFile], T], files: Iterable[MediaFile], ahead: int
) -> Iterator[tuple[MediaFile, T | Exception]]:
    """Each file and what `read` makes of it, or one of INPUT_ERRORS, in order; a few are read while one is used."""
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, "read") as pool:
        coming: deque[tuple[MediaFile, Future[T]]] = deque()
        files = iter(files)
        try:
            while True:
                while len(coming) < min(ahead, 2 * workers) and (file := next(files, None)) is not None:
                    coming.append((file, pool.submit(read, file)))
                if not coming:
                    return
                file, future = coming.popleft()
                try:
                    result = future.result()
                except INPUT_ERRORS as error:
                    result = error
                yield file, result
        finally:  # whoever stops early waits for nothing but what is being read
            for _, future in coming:
                future.cancel()


def _place(file: MediaFile) -> Path:
    """Absolute: loaders take no such path for a URL or a data: URI, as they would http:/... in a folder."""
    return Path(file.path).absolute()


def _encode(embedder: Embedder, group: list[_Loaded]) -> Iterator[Encoded]:
    try:
        features = embedder.encode([loaded.item for loaded in group])
    except INPUT_ERRORS as error:
        if len(group) == 1:
            yield _failed(group[0].file, error)
        else:
            for loaded in group:
                yield from _encode(embedder, [loaded])
        return
    for loaded, found in zip(group, features, strict=True):
        spans = tuple(loaded.options.spans) if loaded.options.keeps_windows else ()
        if spans and len(spans) != len(found):
            raise AssertionError(f"{loaded.file.path} has {len(found)} windows and {len(spans)} places")
        yield Encoded(loaded.file, found, spans)


def _failed(file: MediaFile, error: Exception) -> Encoded:
    message = " ".join(str(error).split()) or type(error).__name__
    message = message.replace(describe(_place(file)), repr(file.path))
    return Encoded(file, error=message if repr(file.path) in message else f"{file.path!r}: {message}")
