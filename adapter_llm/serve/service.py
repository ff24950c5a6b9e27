"""Service: a pipeline, the engine that writes its answers, and what the server allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from ..engine import Engine
from ..feature_cache import FeatureCache
from ..pipeline import Pipeline
from ..strangers.limits import MediaLimits
from .errors import busy, stopping
from .metrics import Metrics
from .schema import Defaults
from .workers import Workers

FETCHERS, OPENERS, CLERKS = 16, 4, 2  # threads, of which those that fetch do nothing but wait
BODIES = 8  # of the largest size, that there is memory for


@dataclass(frozen=True)
class ServeConfig:
    """How the server behaves; times are seconds, sizes bytes."""

    name: str = "default"  # of the model, in requests and answers
    api_key: str | None = None
    batch_size: int = 8  # answers that are written together
    queue_size: int = 64  # that may wait, beside those
    media_threads: int = 2  # that decode and encode media
    max_body: int = 64 * 2**20
    timeout: float = 300.0  # for a request, from its arrival
    shutdown_timeout: float = 30.0  # for answers that are being written when the server is told to stop
    temperature: float = 0.0  # where a request says nothing
    max_tokens: int = 512
    blend: float | None = None  # weight of an index's entries; None: the pipeline's own
    cors: tuple[str, ...] = ()  # origins of pages that may ask
    hosts: tuple[str, ...] | None = None  # names it goes by; None: any
    media: MediaLimits = field(default_factory=MediaLimits)

    @property
    def places(self) -> int:
        return self.batch_size + self.queue_size

    @property
    def max_bodies(self) -> int:
        """Of all requests that are under way: many that are large in one moment would fill the memory."""
        return BODIES * self.max_body


class Service:
    """Belongs to one event loop, but for the engine and the workers, which have threads of their own."""

    def __init__(self, pipe: Pipeline, config: ServeConfig = ServeConfig()) -> None:
        self.pipe = pipe if pipe.perception.cache is not None else pipe.cached(FeatureCache())
        self.config = config
        self.engine = Engine(self.pipe, config.batch_size, config.queue_size)
        # What is slow for one reason does not wait for what is slow for another: web servers, processes that look
        # into films, decoders and encoders, and what takes no longer than a moment.
        self.fetchers = Workers("fetcher", FETCHERS, config.places)
        self.openers = Workers("opener", OPENERS, config.places)
        self.readers = Workers("reader", config.media_threads, config.places)
        self.clerks = Workers("clerk", CLERKS)
        self.metrics = Metrics()
        self.defaults = Defaults(config.temperature, config.max_tokens, config.batch_size)
        parts = repr((pipe.manifest.files, pipe.manifest.decoder))
        self.fingerprint = f"fp_{sha256(parts.encode()).hexdigest()[:10]}"
        self.draining = False  # no more is taken in
        self.under_way = 0  # requests that have not got all of their answer
        self.bodies = 0  # bytes of theirs
        self.reserved = 0  # answers that are prepared, waiting or written
        self.metrics.watch("running", "Answers that are being written", lambda: self.engine.counts.running)
        self.metrics.watch("waiting", "Answers that wait for others", lambda: self.engine.counts.waiting)
        self.metrics.watch("preparing", "Requests whose media are read, or wait for that", lambda: self.preparing)

    @property
    def preparing(self) -> int:
        """Work on media, also of clients that are gone."""
        return self.fetchers.pending + self.openers.pending + self.readers.pending

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """Around the work on a request; gives what counts the bytes of its body. Both raise ApiError."""
        if self.draining:
            raise stopping()
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if self.bodies + size > self.config.max_bodies:
                raise busy("too many large requests are under way")
            held += size
            self.bodies += size

        self.under_way += 1
        try:
            yield take
        finally:
            self.under_way -= 1
            self.bodies -= held

    @contextmanager
    def reserve(self, answers: int) -> Iterator[None]:
        """Places for answers: what finds none is told so before any work is done for it. Raises ApiError."""
        if self.reserved + answers > self.config.places:
            raise busy(f"{self.reserved} answers are under way already")
        self.reserved += answers
        try:
            yield
        finally:
            self.reserved -= answers

    def close(self) -> None:
        """End what is being written, at once; whoever waits for it is told."""
        self.draining = True
        for workers in (self.fetchers, self.openers, self.readers, self.clerks):
            workers.close()
        self.engine.close(drain=False, timeout=0)
