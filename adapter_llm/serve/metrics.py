"""What /metrics tells Prometheus, in a registry of its own: nothing of another library gets in."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters and histograms, and gauges that `watch` reads when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "adapter_llm_requests", "Requests that were answered", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "adapter_llm_request_seconds", "From a request's arrival to the end of its answer", ("route",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "adapter_llm_time_to_first_token_seconds", "From a chat request's arrival to its first text",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter(
            "adapter_llm_tokens", "Tokens that were read (prompt) and written (completion)", ("kind",),
            registry=self.registry,
        )  # fmt: skip

    def watch(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        Gauge(f"adapter_llm_{name}", meaning, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        return generate_latest(self.registry)
