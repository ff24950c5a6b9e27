"""Captions on a Ray cluster: Ray Data's actors run the pipeline, and the driver keeps the inputs and the output.

The driver walks through the inputs, leaves out what is finished, and has no more under way than keeps the workers
busy. What comes back is written here, in the same way as with one process.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from threading import Condition, Semaphore, Thread
from typing import TYPE_CHECKING, Any

from imagebind_encoder.media.source import MediaError

from ..words import one_line
from .done import Done
from .items import Input
from .rows import CaptionRow

if TYPE_CHECKING:
    from .job import Job

CHUNK_BYTES = 16 * 2**20  # of inputs that travel together: those out of streams carry their files
SIDE_BY_SIDE = 2  # chunks in a worker
AHEAD = 4  # chunks a worker under way: two in it, one that follows, and one whose rows come back
STORE = 256 * 2**20  # bytes of the object store of a Ray that is started here: rows and names go through it, no media
# read when Ray is imported or started: it reports to nobody, and, where it is started here, listens to nobody else
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what it says of a change to come
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # whatever its daemons would print to stdout
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class EngineError(ValueError):
    """Ray is not there, or cannot do what was asked."""


@dataclass(frozen=True)
class RayEngine:
    """Captions by workers on a Ray cluster, or on this machine where no address is given."""

    workers: int | None = None  # None: one for each GPU, or, where there is none, for each `threads` processors
    threads: int = 1  # processors of a worker
    address: str | None = None  # of the cluster's head, host:port, or auto for the one that this machine belongs to

    def __post_init__(self) -> None:
        if self.address is not None and "://" in self.address:
            raise EngineError(
                f"{self.address!r} is no address of a cluster's head; start this on a machine of the cluster, and say "
                "auto or host:port"
            )

    def captions(
        self, job: Job, kinds: Iterable[str] | None, keep_content: bool, entries: Iterator[Input]
    ) -> Iterator[list[Done]]:
        """The rows of all inputs, each once, a chunk at a time. `entries` is walked by a thread.

        Raises EngineError, what the iterator of inputs raises, and what loading or running the model raises.
        """
        with self.connected() as ray:
            workers, gpus = self._size(ray.cluster_resources(), job.model.device)
            feed = _start_feed(ray)
            sender = _Sender(ray, feed, entries, job.options.batch_size, workers * AHEAD)
            with closing(sender), ThreadPoolExecutor(job.options.readers) as readers, _said_plainly(ray):
                workers = sender.wait(workers)  # more would find nothing to do
                for batch in self._rows(ray, workers, gpus, (job, kinds, self.threads, feed)) if workers else ():
                    [number], [lines], [error] = (batch[name].to_pylist() for name in batch.column_names)
                    if error is not None:
                        broken, place = ray.cloudpickle.loads(error)
                        raise broken from RuntimeError(f"in a worker:\n{place}")
                    inputs = {(one.id, job.options.prompt_of(one)): one for one in sender.received(number)}
                    rows = [CaptionRow.from_dict(json.loads(line)) for line in lines if inputs]
                    done = [Done(row, inputs[row.id, row.prompt]) for row in rows]
                    yield list(readers.map(_with_content, done)) if keep_content else done
            sender.check()

    def _rows(self, ray: Any, workers: int, gpus: float, given: tuple[Any, ...]) -> Iterator[Any]:
        from .ray_feed import Chunks
        from .ray_workers import Worker

        context = ray.data.DataContext.get_current().copy()
        context.target_max_block_size = 1  # byte, which any row has: a chunk is passed on as soon as it is there
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # a slow source, or a long film, is no fault
        context.issue_detectors_config.detectors = []
        context.max_consecutive_actor_init_deaths = 2
        with ray.data.DataContext.current(context):
            rows = ray.data.read_datasource(Chunks(given[-1]), override_num_blocks=1, num_cpus=0).map_batches(
                Worker,
                batch_size=1,
                batch_format="pyarrow",
                fn_constructor_args=given,
                num_cpus=self.threads,
                num_gpus=gpus,
                compute=ray.data.ActorPoolStrategy(
                    size=workers,
                    max_tasks_in_flight_per_actor=SIDE_BY_SIDE,
                    max_concurrent_calls_per_actor=SIDE_BY_SIDE,
                    enable_true_multi_threading=True,
                ),
            )
        return rows.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0)

    def _size(self, resources: dict[str, float], device: str) -> tuple[int, float]:
        """How many workers, and of how many GPUs each: less than one if there are more workers."""
        gpus = resources.get("GPU", 0) if device not in ("cpu", "mps") else 0
        workers = self.workers or int(gpus) or int(resources.get("CPU", 0)) // self.threads
        if not workers:
            raise EngineError(
                f"a worker takes {self.threads} processors, and the cluster has {resources.get('CPU', 0):.0f}; give "
                "fewer with --threads"
            )
        return workers, 1 / math.ceil(workers / gpus) if gpus else 0

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Ray, which is started or joined, and left at the end, unless this process is connected to one already.

        Raises EngineError.
        """
        for name, value in (QUIET | (LOOPBACK if self.address is None else {})).items():
            os.environ.setdefault(name, value)
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise EngineError('--engine ray needs Ray; pip install "adapter-llm[ray]"') from error
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it says what it raises, at length
        if ray.is_initialized():
            yield ray
            return
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self.address is None:
                processors = self.workers and self.workers * self.threads
                ray.init("local", num_cpus=processors, include_dashboard=False, object_store_memory=STORE, **quiet)
            else:
                ray.init(self.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            place = "here" if self.address is None else f"at {self.address!r}"
            raise EngineError(f"Ray cannot be used {place}: {one_line(error)}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


class _Sender:
    """The thread that walks through the inputs and hands them to the feed; at most `ahead` chunks are under way."""

    def __init__(self, ray: Any, feed: Any, entries: Iterator[Input], size: int, ahead: int) -> None:
        self._ray, self._feed, self._entries, self._size = ray, feed, entries, size
        self._room, self._changed = Semaphore(ahead), Condition()
        self._sent, self._ended, self._closed = 0, False, False
        self._underway: dict[int, list[Input]] = {}
        self._broken: BaseException | None = None
        Thread(target=self._send, name="send", daemon=True).start()

    def wait(self, chunks: int) -> int:
        """Until so many have been sent; how many these are, if it is fewer."""
        with self._changed:
            self._changed.wait_for(lambda: self._sent >= chunks or self._ended)
        return min(self._sent, chunks)

    def received(self, number: int) -> list[Input]:
        """The inputs of a chunk; none the second time."""
        inputs = self._underway.pop(number, [])
        if inputs:
            self._feed.done.remote(number)
            self._room.release()
        return inputs

    def check(self) -> None:
        """Raise what the iterator of inputs raised."""
        if self._broken is not None:
            raise self._broken

    def close(self) -> None:
        self._closed = True
        self._room.release()

    def _send(self) -> None:
        try:
            while self._room.acquire() and not self._closed:
                inputs, chunk = self._next_chunk()
                if not chunk:
                    break
                self._underway[self._sent] = inputs
                self._ray.get(self._feed.add.remote(chunk))
                with self._changed:
                    self._sent += 1
                    self._changed.notify()
        except BaseException as error:  # it belongs to whoever takes the rows
            self._broken = error
        finally:
            if not self._closed:
                self._feed.end.remote()
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _next_chunk(self) -> tuple[list[Input], list[bytes]]:
        inputs, chunk, size = [], [], 0
        for entry in self._entries:
            inputs.append(entry)
            chunk.append(self._ray.cloudpickle.dumps(entry))
            size += len(chunk[-1])
            if len(chunk) == self._size or size > CHUNK_BYTES:
                break
        return inputs, chunk


def _start_feed(ray: Any) -> Any:
    """On this machine: the end of another takes nothing along."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from .ray_feed import Feed

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Feed).remote()


@contextmanager
def _said_plainly(ray: Any) -> Iterator[None]:
    """What goes wrong with Ray itself; workers say in their answers what goes wrong with the model."""
    try:
        yield
    except ray.exceptions.RayError as error:
        message = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineError(f"the cluster broke off ({message}); what is finished is kept, run again") from error


def _with_content(done: Done) -> Done:
    """Media that the output keeps are read once more, here: they need not travel with the rows."""
    if not done.row.ok:
        return done
    try:
        content = done.item.read()
        if content.sha256 != done.row.sha256:
            raise MediaError(f"{done.row.path!r} was changed while it was captioned; run again")
    except MediaError as error:
        changes = {"caption": None, "finish_reason": "error", "status": "error", "error": one_line(error, 1000)}
        return replace(done, row=replace(done.row, **changes))
    return replace(done, content=content)
