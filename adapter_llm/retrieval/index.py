"""FeatureIndex: stored features, and which of them are nearest to others.

Shapes: N stored vectors, E their width, B queries, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .files import (
    FLOAT_BYTES,
    FeatureIndexError,
    WholeFile,
    checked,
    first_bytes,
    is_faiss,
    read_index,
    write_index,
)
from .flat import header_of, import_faiss, read_flat

BACKENDS = ("torch", "faiss")
FLOATS_AT_ONCE = 2**21  # of vectors, and of scores, that a step of the search holds: 8 MB each
QUERIES_AT_ONCE = 1024
# Candidates beyond k: a score in float32 depends on the shape of the product it was part of, so the last places
# are decided among a few more, by their exact scores.
SPARE = 16


class FeatureIndex:
    """Vectors (N, E) in float32, with an id each if wanted; in memory, or mapped from a file and never changed.

    `backend` finds candidates: "torch", or "faiss", which needs the extra `retrieval` and gives the same answers.
    """

    def __init__(self, vectors: Tensor, ids: Sequence[str] | None = None, backend: str = "torch") -> None:
        [(names, rows)] = checked([(ids, vectors)])
        self._hold(rows.view(torch.uint8), names, backend)

    def _hold(self, rows: Tensor, ids: list[str] | None, backend: str) -> None:
        if backend not in BACKENDS:
            raise FeatureIndexError(f"there is no backend {backend!r}; there are {', '.join(BACKENDS)}")
        self._faiss = import_faiss('the backend "faiss"') if backend == "faiss" else None
        # Bytes (N, 4 E), not floats: faiss's files have theirs at odd addresses, where a float must not be.
        self._rows = rows
        self.ids = ids
        self.backend = backend

    @classmethod
    def _of(cls, rows: Tensor, ids: list[str] | None, backend: str) -> FeatureIndex:
        index = cls.__new__(cls)
        index._hold(rows, ids, backend)
        return index

    @classmethod
    def build(
        cls,
        batches: Iterable[tuple[Sequence[str] | None, Tensor]],
        path: str | Path | None = None,
        backend: str = "torch",
    ) -> FeatureIndex:
        """An index of all batches, ids (or None) and vectors (b, E) each.

        With a path, batches go straight into that file, so there may be more than memory holds. Raises
        FeatureIndexError for batches that differ in width, vectors that are not finite, and for no batch at all.
        """
        if path is not None:
            write_index(path, batches)
            return cls.load(path, backend)
        parts = list(checked(batches))
        ids = None if parts[0][0] is None else [entry for names, _ in parts for entry in names]
        return cls(torch.cat([vectors for _, vectors in parts]), ids, backend)

    @classmethod
    def load(cls, path: str | Path, backend: str = "torch") -> FeatureIndex:
        """An index that `save` or `build` wrote, mapped from its file. Raises FeatureIndexError for any other file."""
        return cls._of(*read_index(path), backend)

    @classmethod
    def from_faiss(cls, path: str | Path, backend: str = "torch") -> FeatureIndex:
        """A flat inner-product index of faiss, such as ImageBind-LLM's `knn.index`, mapped from its file.

        Other kinds are flattened into memory if faiss is installed. Raises FeatureIndexError.
        """
        return cls._of(read_flat(path), None, backend)

    @classmethod
    def open(cls, path: str | Path, backend: str = "torch") -> FeatureIndex:
        """An index of either kind: what the file is, its first bytes say. Raises FeatureIndexError."""
        path = Path(path).expanduser()
        return (cls.from_faiss if is_faiss(first_bytes(path)) else cls.load)(path, backend)

    def save(self, path: str | Path) -> None:
        """Write vectors and ids; the file gets its name when it is whole. Raises FeatureIndexError."""
        step = max(1, FLOATS_AT_ONCE // self.width)
        write_index(path, ((self.ids and self.ids[start : start + step], rows) for start, rows in self._steps(step)))

    def to_faiss(self, path: str | Path) -> None:
        """Write the vectors as faiss's IndexFlatIP, byte for byte as faiss would; ids have no place there."""
        with WholeFile(path) as file:
            file.write(header_of(len(self), self.width))
            for _, rows in self._steps(max(1, FLOATS_AT_ONCE // self.width)):
                file.write(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def width(self) -> int:
        """E, the numbers of a vector."""
        return self._rows.shape[1] // FLOAT_BYTES

    def vectors(self, start: int = 0, stop: int | None = None) -> Tensor:
        """A copy of the vectors `start` to `stop` (rows, E)."""
        return self._rows[start:stop].clone().view(torch.float32)

    def take(self, positions: Tensor) -> Tensor:
        """The vectors at positions of any shape (...) as (..., E), on the same device."""
        flat = positions.reshape(-1).cpu()
        found = self._rows.index_select(0, flat).view(torch.float32)
        return found.view(*positions.shape, self.width).to(positions.device)

    def search(self, queries: Tensor, k: int, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """Scores and positions (B, min(k, N)) of the vectors with the largest inner products, best first.

        Exact: every vector is looked at, `chunk` at a time (by default as many as 8 MB hold), and scores are
        computed in float64. Of equal scores the lower position comes first. Raises FeatureIndexError for queries
        of another width.
        """
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise FeatureIndexError(
                f"the index holds vectors of {self.width} numbers and was asked for the neighbours of "
                f"{tuple(queries.shape)}; use an index that was built with the same encoder"
            )
        if k < 1:
            raise FeatureIndexError(f"a search is for at least one neighbour, not {k}")
        queries = queries.detach().float()
        found = [self._search(block, min(k, len(self)), chunk) for block in queries.split(QUERIES_AT_ONCE)]
        scores, positions = (torch.cat(parts) for parts in zip(*found, strict=True))
        return scores.to(queries.device), positions.to(queries.device)

    def _search(self, queries: Tensor, k: int, chunk: int | None) -> tuple[Tensor, Tensor]:
        wanted = min(k + SPARE, len(self))
        scores = queries.new_empty(len(queries), 0)
        positions = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
        for start, rows in self._steps(chunk or max(1, FLOATS_AT_ONCE // max(self.width, len(queries)))):
            nearest, places = self._nearest(queries, rows, min(wanted, len(rows)))
            scores, positions = torch.cat([scores, nearest], dim=1), torch.cat([positions, places + start], dim=1)
            scores, best = scores.topk(min(wanted, scores.shape[1]))
            positions = positions.gather(1, best)
        positions = positions.cpu().sort(dim=1).values
        scores, order = self._exact(queries.cpu(), positions).sort(dim=1, descending=True, stable=True)
        return scores[:, :k], positions.gather(1, order)[:, :k]

    def _nearest(self, queries: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The best `count` of these rows by float32 scores, in any order."""
        if self._faiss is None:
            return (queries @ rows.to(queries.device).T).topk(count)
        metric = self._faiss.METRIC_INNER_PRODUCT
        scores, places = self._faiss.knn(queries.cpu().numpy(), rows.numpy(), count, metric=metric)
        return torch.from_numpy(scores).to(queries.device), torch.from_numpy(places).to(queries.device)

    def _exact(self, queries: Tensor, positions: Tensor) -> Tensor:
        """Inner products (B, k) of queries and the vectors at positions (B, k), rounded from float64; on the CPU."""
        rows = torch.arange(len(queries))[:, None].expand_as(positions).reshape(-1)
        steps = [part.split(max(1, FLOATS_AT_ONCE // self.width)) for part in (rows, positions.reshape(-1))]
        scores = [
            (queries[row].double() * self.take(place).double()).sum(dim=1) for row, place in zip(*steps, strict=True)
        ]
        return torch.cat(scores).float().view_as(positions)

    def _steps(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """Position and vectors of every `count` rows, good until the next; copied only if floats lie at odd places."""
        aligned = self._rows.data_ptr() % FLOAT_BYTES == 0
        buffer = None if aligned else torch.empty(min(count, len(self)), self._rows.shape[1], dtype=torch.uint8)
        for start in range(0, len(self), count):
            rows = self._rows[start : start + count]
            yield start, (rows if aligned else buffer[: len(rows)].copy_(rows)).view(torch.float32)
