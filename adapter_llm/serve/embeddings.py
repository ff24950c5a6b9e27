"""/v1/embeddings: vectors of texts, pictures, sounds and films, in one space.

Shapes: B inputs, E encoder width.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from threading import Event

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.config import Modality

from ..perception import Perception
from ..processing import InputOptions, LoadedItem
from .errors import ApiError
from .failures import ClientGone, mistakes
from .parts import MediaPart, load_parts, reading
from .schema import embedding_request
from .service import Service
from .waiting import in_time, read_in_time, unless_gone

AT_ONCE = 16  # inputs that are read, then encoded together


async def embeddings(service: Service, request: Request) -> Response:
    """Raises ApiError, whatever breaks the encoder, and ClientGone."""
    with ExitStack() as held:
        arrived = time.monotonic()
        take = held.enter_context(service.request())
        body = await read_in_time(request, service.config, take)
        wanted = embedding_request(body, service.pipe.config.encoder.embedding_dim, service.config.name)
        left = Event()
        held.callback(left.set)
        work = service.workers.run(partial(embed, service, wanted.inputs, left))
        vectors, tokens = await unless_gone(request, in_time(work, arrived, service.config.timeout))
        service.metrics.tokens.labels("prompt").inc(tokens)
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(row) if wanted.base64 else row.tolist()}
            for index, row in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": service.config.name, "usage": usage})


def embed(service: Service, inputs: Sequence[tuple[str, str | MediaPart]], left: Event) -> tuple[Tensor, int]:
    """Unit vectors (B, E), float32, and how many tokens the texts among the inputs have. Blocks.

    Raises ApiError for an input that cannot be read, ClientGone when `left` is set on the way.
    """
    perception = service.pipe.cached(None).perception  # inputs are encoded together, not each as it comes
    found, tokens = [], 0
    for start in range(0, len(inputs), AT_ONCE):
        if left.is_set():
            raise ClientGone
        batch = inputs[start : start + AT_ONCE]
        items = [_read(perception, service, place, value) for place, value in batch]
        tokens += sum(int((item.tensor != 0).sum()) for item in items if item.modality is Modality.TEXT)
        # one by one: what a vector is does not depend on the others, and an index is about answers, not about vectors
        features = perception.mixed([[item] for item in items], InputOptions())
        for (place, _), row in zip(batch, features, strict=True):
            if not row.isfinite().all():
                raise ApiError(f"the features of {place} are not finite numbers; look at its content", place)
            found.append(F.normalize(row.float().mean(0), dim=-1).cpu())
    return torch.stack(found), tokens


def _read(perception: Perception, service: Service, place: str, value: str | MediaPart) -> LoadedItem:
    limits, known = service.config.media, service.pipe.keywords
    with mistakes(place), reading(limits):
        media = {"text": value} if isinstance(value, str) else load_parts([value], limits, keywords=known)
        return perception.look(media).items[0]


def _base64(vector: Tensor) -> str:
    """Little-endian float32, as OpenAI's client reads it."""
    return b64encode(vector.numpy().astype("<f4").tobytes()).decode("ascii")
