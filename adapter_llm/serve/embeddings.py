"""/v1/embeddings: vectors of texts, pictures, sounds and films, in one space.

Shapes: B inputs, E encoder width.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from threading import Event

import torch
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.config import Modality

from ..processing import InputOptions
from .errors import ApiError
from .failures import ClientGone, mistakes
from .media import fetch
from .parts import MediaPart, reading
from .schema import EmbeddingRequest, embedding_request
from .service import Service
from .waiting import in_time, read_in_time, unless_gone

AT_ONCE = 16  # inputs that are encoded together


async def embeddings(service: Service, request: Request) -> Response:
    """Raises ApiError, whatever breaks the encoder, and ClientGone."""
    with ExitStack() as held:
        arrived = time.monotonic()
        take = held.enter_context(service.request())
        body = await read_in_time(request, service, take)
        wanted = embedding_request(body, service.pipe.config.encoder.embedding_dim, service.config.name)
        left = Event()
        held.callback(left.set)
        work = _embedded(service, wanted, left)
        content, tokens = await unless_gone(request, in_time(work, arrived, service.config.timeout))
        service.metrics.tokens.labels("prompt").inc(tokens)
        return Response(content, media_type="application/json")


async def _embedded(service: Service, wanted: EmbeddingRequest, left: Event) -> tuple[bytes, int]:
    found = await fetch(service, [value for _, value in wanted.inputs if isinstance(value, MediaPart)])
    vectors, tokens = await service.readers.run(partial(embed, service, wanted.inputs, found, left))
    return await service.clerks.run(partial(to_json, vectors, tokens, wanted.base64, service.config.name)), tokens


def embed(
    service: Service,
    inputs: Sequence[tuple[str, str | MediaPart]],
    found: Mapping[str, Sequence[bytes]],
    left: Event,
) -> tuple[Tensor, int]:
    """Unit vectors (B, E), float32, and how many tokens the texts among the inputs have. Blocks.

    `found` is what `fetch` found of the media among them. Raises ApiError for an input that cannot be read, ClientGone
    when `left` is set on the way.
    """
    perception = service.pipe.cached(None).perception  # inputs are encoded together, not each as it comes
    queues, items, vectors = {keyword: iter(files) for keyword, files in found.items()}, [], []
    with reading(service.config.media):  # all of them before any is encoded, so that this takes no time from them
        for place, value in inputs:
            if left.is_set():
                raise ClientGone
            media = {"text": value} if isinstance(value, str) else {value.keyword: next(queues[value.keyword])}
            with mistakes(place if isinstance(value, str) else value.where):
                items.append(perception.look(media).items[0])
    tokens = sum(int((item.tensor != 0).sum()) for item in items if item.modality is Modality.TEXT)
    for start in range(0, len(items), AT_ONCE):
        if left.is_set():
            raise ClientGone
        # one by one: what a vector is does not depend on the others, and an index is about answers, not about vectors
        features = perception.mixed([[item] for item in items[start : start + AT_ONCE]], InputOptions())
        for (place, _), row in zip(inputs[start : start + AT_ONCE], features, strict=True):
            if not row.isfinite().all():
                raise ApiError(f"the features of {place} are not finite numbers; look at its content", place)
            vectors.append(F.normalize(row.float().mean(0), dim=-1).cpu())
    return torch.stack(vectors), tokens


def to_json(vectors: Tensor, tokens: int, base64: bool, model: str) -> bytes:
    """The answer. Vector by vector: in between, the event loop has its turns, even if this takes seconds."""
    rows = (
        json.dumps({"object": "embedding", "index": index, "embedding": _base64(row) if base64 else row.tolist()})
        for index, row in enumerate(vectors)
    )
    rest = {"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return f'{{"object": "list", "data": [{", ".join(rows)}], {json.dumps(rest)[1:]}'.encode("ascii")


def _base64(vector: Tensor) -> str:
    """Little-endian float32, as OpenAI's client reads it."""
    return b64encode(vector.numpy().astype("<f4").tobytes()).decode("ascii")
