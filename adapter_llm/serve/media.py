"""The media of a request: brought here, looked into and encoded, each by threads of its own kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from ..adapter import AdapterState
from ..retrieval import RetrievalOptions
from .failures import mistakes
from .parts import MediaPart, load_parts, reading
from .service import Service


async def fetch(service: Service, parts: Sequence[MediaPart]) -> dict[str, list[bytes]]:
    """`load_parts` of all files of a request. One that names a web server waits with others that do."""
    if not parts:
        return {}
    workers = service.fetchers if any(part.remote for part in parts) else service.openers
    return await workers.run(partial(load_parts, parts, service.config.media, keywords=service.pipe.keywords))


async def look(
    service: Service, parts: Sequence[MediaPart], found: Mapping[str, Sequence[bytes]]
) -> AdapterState | None:
    """What the language model is told of them; None if there are none."""
    return await service.readers.run(partial(_look, service, parts, found)) if found else None


def _look(service: Service, parts: Sequence[MediaPart], found: Mapping[str, Sequence[bytes]]) -> AdapterState:
    blend = service.config.blend
    inputs = dict(found) if blend is None else {**found, "retrieval": RetrievalOptions(weight=blend)}
    perception = service.pipe.perception
    with mistakes(parts[0].where if len(parts) == 1 else "messages"):
        with reading(service.config.media):
            seen = perception.media(inputs)
        return service.engine.prepare(lambda: perception.state(seen))
