"""The feed of a Ray cluster: an actor that holds the inputs that are under way, and a dataset that is read from it.

Ray does again whatever a process or machine did not finish. The feed stands beside the driver and knows what that is.
Little is imported here, for the feed to be there at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

NUMBER = ("number", pyarrow.int64())
CHUNK = pyarrow.schema([NUMBER, ("inputs", pyarrow.list_(pyarrow.binary()))])
DEATHS = 2  # of workers that were reading one input and nothing else, after which it is given up


class Feed:
    """An actor: chunks of pickled inputs, from the driver's to the workers', kept until their rows have come back."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[bytes]] = {}
        self._added, self._ended = 0, False
        self._changed = asyncio.Condition()
        self._begun: set[int] = set()
        self._alone: dict[int, dict[int, int]] = {}  # chunk -> place in it -> how often it was begun alone

    async def add(self, chunk: list[bytes]) -> None:
        async with self._changed:
            self._chunks[self._added] = chunk
            self._added += 1
            self._changed.notify_all()

    async def end(self) -> None:
        """Nothing will be added."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def chunk(self, number: int) -> list[bytes] | None:
        """Waits for it; nothing is left of one whose rows are back, and None comes after the last."""
        async with self._changed:
            await self._changed.wait_for(lambda: number < self._added or self._ended)
        return self._chunks.get(number, []) if number < self._added else None

    async def begin(self, number: int) -> bool:
        """Whether a chunk was begun before, and not finished: something died."""
        again = number in self._begun
        self._begun.add(number)
        return again

    async def begin_alone(self, number: int, place: int) -> bool:
        """Whether this input of a chunk is to be tried, now that what came before it in the chunk has survived."""
        begun = self._alone.setdefault(number, {})
        for earlier in range(place):
            if begun.get(earlier, 0) < DEATHS:
                begun[earlier] = 0
        if begun.get(place, 0) >= DEATHS:
            return False
        begun[place] = begun.get(place, 0) + 1
        return True

    async def done(self, number: int) -> None:
        """The driver has the rows."""
        self._chunks.pop(number, None)
        self._begun.discard(number)
        self._alone.pop(number, None)


class Chunks(Datasource):
    """The feed's chunks, a row each, read by one task, which Ray holds up while the workers have enough to do."""

    def __init__(self, feed: Any) -> None:
        super().__init__()
        self._feed = feed

    @property
    def supports_distributed_reads(self) -> bool:
        """Where the driver runs: no other machine's end takes chunks along."""
        return False

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(_tables, self._feed), unknown)]


def _tables(feed: Any) -> Iterator[pyarrow.Table]:
    number = 0
    while (chunk := ray.get(feed.chunk.remote(number))) is not None:
        yield pyarrow.table({"number": [number], "inputs": [chunk]}, CHUNK)
        number += 1
