"""An index of inputs: a feature index that knows what its vectors are of, and the nearest of them to a vector.

Each class token's feature is a vector of its own in the file, since blends look for neighbours of single features;
a search compares inputs, by `vector_of` and the cosine. Shapes: B rows, N features an input, E encoder width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..retrieval import FeatureIndex, FeatureIndexError
from ..retrieval.files import read_entries, write_index
from ..retrieval.index import FLOATS_AT_ONCE
from .arithmetic import similarity, vector_of
from .formats import cells, not_ours, row_of
from .records import Record, Records, Row, Span, records_of, rows_of


@dataclass(frozen=True)
class Hit:
    """A stored input, or a window of one, and how near it is."""

    rank: int  # from 1
    score: float  # cosine
    path: str
    modality: str | None = None  # as a media keyword; None where the index does not say
    span: Span | None = None  # seconds

    def __str__(self) -> str:
        place = "" if self.span is None else "\t{:.1f}-{:.1f} s".format(*self.span)
        return f"{self.rank}\t{self.score:.3f}\t{self.path}{place}"

    def to_dict(self) -> dict[str, Any]:
        start, end = self.span or (None, None)
        hit = {"rank": self.rank, "score": self.score, "path": self.path, "modality": self.modality}
        return {**hit, "start": start, "end": end}


class SpaceIndex:
    """A feature index whose vectors with the same id, one behind the other, are the features of one input."""

    def __init__(self, index: FeatureIndex, entries: Sequence[str] | None = None, encoder: str | None = None) -> None:
        """`entries` say what each input is, and `encoder` which one made the vectors, where that is known."""
        self.index = index
        self.encoder = encoder
        names = index.ids or [f"row {row}" for row in range(len(index))]
        groups = [(name, sum(1 for _ in found)) for name, found in groupby(names)]
        self._names = [name for name, _ in groups]
        self._counts = [count for _, count in groups]
        self._entries = entries
        if entries is not None and len(entries) != len(groups):
            raise FeatureIndexError(f"the index has {len(groups)} ids and says what {len(entries)} are; build it again")

    @classmethod
    def open(cls, path: str | Path) -> SpaceIndex:
        """Any feature index: those without entries are searched by their ids. Raises FeatureIndexError."""
        index = FeatureIndex.open(path)
        if index.ids is None:  # also of faiss
            return cls(index)
        entries, about = read_entries(path)
        return cls(index, entries, about.get("encoder"))

    def check_encoder(self, encoder: str) -> None:
        """Raise FeatureIndexError if the vectors are known not to be of the encoder with this fingerprint."""
        if self.encoder not in (None, encoder):
            raise FeatureIndexError(
                "the index was made with another encoder than that of these weights, and their vectors cannot be "
                "compared; give its weights with --weights, or build it again"
            )

    def __len__(self) -> int:
        """Inputs, with each window that is kept apart as one."""
        return len(self._names)

    def search(self, vector: Tensor, top: int = 5, modality: str | None = None) -> list[Hit]:
        """The `top` inputs nearest to a vector (E,), best first, of one modality if wanted; earlier ones first of
        equals. Raises FeatureIndexError for a vector of another width.
        """
        if vector.shape != (self.index.width,):
            raise FeatureIndexError(
                f"the index holds vectors of {self.index.width} numbers and was asked for the neighbours of "
                f"{tuple(vector.shape)}; use an index that was built with the same encoder"
            )
        scores = torch.cat([similarity(vector.cpu(), found) for found in self.vectors()])
        order = scores.sort(descending=True, stable=True).indices.tolist()
        hits: list[Hit] = []
        for number in order:
            if len(hits) == top:
                break
            hit = self._hit(number, len(hits) + 1, float(scores[number]))
            if modality in (None, hit.modality):
                hits.append(hit)
        return hits

    def vectors(self) -> Iterator[Tensor]:
        """A vector of each input, in order, as many at a time (B, E) as a few megabytes hold."""
        row = 0
        for count, group in groupby(self._counts):
            inputs = sum(1 for _ in group)
            step = max(1, FLOATS_AT_ONCE // (count * self.index.width))
            for first in range(0, inputs, step):
                here = min(step, inputs - first)
                stored = self.index.vectors(row, row + here * count)
                yield vector_of(stored.unflatten(0, (here, count)))
                row += here * count

    def rows(self) -> Iterator[Row]:
        """What was stored, of an index with entries."""
        first = 0
        for entry, count in zip(self._entries or (), self._counts, strict=True):
            yield row_of(json.loads(entry), self.index.vectors(first, first + count).numpy())
            first += count

    def _hit(self, number: int, rank: int, score: float) -> Hit:
        if self._entries is None:
            return Hit(rank, score, self._names[number])
        entry = row_of(json.loads(self._entries[number]), None)
        return Hit(rank, score, entry.file.path, entry.file.keyword, entry.span)


class IndexFile:
    """An index as an output: what `formats.Format` says, of records with all class tokens (R, N, E)."""

    def __init__(self, encoder: str) -> None:
        """`encoder` is the fingerprint that queries will be asked for."""
        self.encoder = encoder

    def check(self, counts: set[int]) -> None:
        pass

    def write(self, path: Path, records: Records, config_hash: str) -> None:
        batches = (([row.id] * len(row.vector), torch.tensor(row.vector)) for row in rows_of(records))
        entries = (json.dumps(cells(row, config_hash)) for row in rows_of(records))
        write_index(path, batches, entries, {"config_hash": config_hash, "encoder": self.encoder})

    def read(self, path: Path) -> tuple[str, Iterator[Record]]:
        try:
            space = SpaceIndex.open(path)
            _, about = read_entries(path)
            return about["config_hash"], records_of(space.rows())
        except (FeatureIndexError, SafetensorError, KeyError) as error:
            raise not_ours(path) from error
