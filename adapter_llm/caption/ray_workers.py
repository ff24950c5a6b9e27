"""The workers of a Ray cluster, each of which holds a pipeline and captions chunks of inputs with it."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pyarrow
import ray

from imagebind_encoder.media.source import MediaError

from ..words import one_line
from .items import Input
from .ray_feed import NUMBER
from .rows import CaptionRow

if TYPE_CHECKING:
    from .job import Job

ANSWER = pyarrow.schema([NUMBER, ("rows", pyarrow.list_(pyarrow.string())), ("error", pyarrow.binary())])
GIVEN_UP = 3  # inputs in succession, after which it is not the inputs that are to blame


class WorkerError(RuntimeError):
    """Workers die, whatever they read."""


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
