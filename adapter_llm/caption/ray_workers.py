"""What runs on a Ray cluster: the feed, which holds the inputs that are on their way, and the workers, which caption.

Ray does again whatever a process or machine did not finish. The feed stands beside the driver and knows what that is.
"""

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pyarrow
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from imagebind_encoder.media.source import MediaError

from ..words import one_line
from .items import Input
from .rows import CaptionRow

if TYPE_CHECKING:
    from .job import Job

NUMBER = ("number", pyarrow.int64())
CHUNK = pyarrow.schema([NUMBER, ("inputs", pyarrow.list_(pyarrow.binary()))])
ANSWER = pyarrow.schema([NUMBER, ("rows", pyarrow.list_(pyarrow.string())), ("error", pyarrow.binary())])
DEATHS = 2  # of workers that were reading one input and nothing else, after which it is given up
GIVEN_UP = 3  # inputs in succession, after which it is not the inputs that are to blame


class WorkerError(RuntimeError):
    """Workers die, whatever they read."""


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


class Worker:
    """Loads the pipeline once and captions chunks of inputs, two at a time: where one runs out, the next fills in.

    A chunk over which a worker died is tried again input by input, so that one file that kills its reader, by a crash
    in a codec or for want of memory, is found and becomes a row with an error. What is wrong with all inputs goes back
    as an error: Ray is not told, since it would try again, and talk much.
    """

    def __init__(self, job: Job, kinds: Iterable[str] | None, threads: int, feed: Any) -> None:
        import torch

        torch.set_num_threads(threads)
        self._feed = feed
        self._given: SimpleQueue[Input] = SimpleQueue()
        self._answers: dict[int, SimpleQueue[CaptionRow | Exception]] = {}  # by the identity of the input
        self._broken: Exception | None = None
        self._changed, self._calls, self._alone = threading.Condition(), 0, False
        try:
            self._captioner = job.captioner(kinds)
        except Exception as error:  # it is raised where the rows would be written
            self._broken = error
            return
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        [number], [chunk] = batch["number"].to_pylist(), batch["inputs"].to_pylist()
        rows, error = [], None
        try:
            entries = [ray.cloudpickle.loads(data) for data in chunk]
            again = ray.get(self._feed.begin.remote(number))
            with self._turn(again):
                rows = self._one_by_one(number, entries) if again else self._rows(entries)
        except Exception as broken:
            error = _packed(broken)
        lines = [json.dumps(row.to_dict()) for row in rows]
        return pyarrow.table({"number": [number], "rows": [lines], "error": [error]}, ANSWER)

    def _rows(self, entries: Sequence[Input]) -> list[CaptionRow]:
        """In the order in which they are finished."""
        answers: SimpleQueue[CaptionRow | Exception] = SimpleQueue()
        self._answers |= dict.fromkeys(map(id, entries), answers)
        for entry in entries:
            self._given.put(entry)
        rows = []
        for _ in entries:
            answer = answers.get() if self._broken is None else self._broken
            if isinstance(answer, Exception):
                raise answer
            rows.append(answer)
        return rows

    def _one_by_one(self, number: int, entries: Sequence[Input]) -> list[CaptionRow]:
        rows, given_up = [], 0
        for place, entry in enumerate(entries):
            if ray.get(self._feed.begin_alone.remote(number, place)):
                rows += self._rows([entry])
                given_up = 0
                continue
            if (given_up := given_up + 1) == GIVEN_UP:
                raise WorkerError(
                    f"workers died again and again while they read {entry.path!r} and those before it; look for the "
                    "cause, such as too little memory, in Ray's logs: /tmp/ray/session_latest/logs"
                )
            error = MediaError(
                f"{entry.path!r} ended each worker that read it (a crash in a codec, or too little memory); look at it"
            )
            rows.append(self._captioner.failed(entry, error).row)
        return rows

    @contextmanager
    def _turn(self, alone: bool) -> Iterator[None]:
        """Side by side with another chunk, or alone: nobody else is to be blamed then, if the worker dies."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not (alone and self._calls))
            self._calls, self._alone = self._calls + 1, alone
        try:
            yield
        finally:
            with self._changed:
                self._calls, self._alone = self._calls - 1, False
                self._changed.notify_all()

    def _work(self) -> None:
        try:
            for done in self._captioner.captions(iter(self._given.get, None)):
                for one in done:
                    self._answers.pop(id(one.item)).put(one.row)
        except Exception as error:  # it belongs to the calls
            self._broken = error
            for answers in list(self._answers.values()):
                answers.put(error)


def _packed(error: Exception) -> bytes:
    """With the place where it was raised, which pickle leaves out."""
    place = "".join(traceback.format_exception(error))
    try:
        return ray.cloudpickle.dumps((error, place))
    except Exception:  # whatever it holds
        return ray.cloudpickle.dumps((WorkerError(one_line(error)), place))
