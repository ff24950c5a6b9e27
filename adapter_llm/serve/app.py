"""The routes, and the shape of every error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from .chat import chat
from .embeddings import embeddings
from .errors import ApiError, stopping
from .failures import ClientGone, as_api_error
from .guards import Counter, Doorman, error_response
from .metrics import CONTENT_TYPE
from .schema import unknown_model
from .service import Service

Work = Callable[[Service, Request], Awaitable[Response]]


def build_app(service: Service) -> ASGIApp:
    """The server as an ASGI application. It has neither a lifespan nor pages of its own."""
    config, started = service.config, int(time.time())
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    model = {"id": config.name, "object": "model", "created": started, "owned_by": "adapter_llm"}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _answer(chat, service, request)

    @app.post("/v1/embeddings")
    async def create_embeddings(request: Request) -> Response:
        return await _answer(embeddings, service, request)

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        if name != config.name:
            return error_response(unknown_model(name, config.name))
        return JSONResponse(model)

    @app.get("/health")
    async def health() -> Response:
        if service.draining:
            return JSONResponse({"status": "stopping"}, 503)
        if not service.engine.alive:
            return JSONResponse({"status": "broken"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        sentence = f"there is no {request.method} {request.url.path[:100]} here; docs/server.md lists what there is"
        return error_response(ApiError(sentence, status=error.status_code, headers=error.headers))

    guarded: ASGIApp = Doorman(app, config)
    if config.cors:
        guarded = CORSMiddleware(
            guarded, allow_origins=config.cors, allow_methods=("GET", "POST"), allow_headers=("*",)
        )  # fmt: skip
    return Counter(guarded, service.metrics)


async def _answer(work: Work, service: Service, request: Request) -> Response:
    """The work's answer, or its error as one."""
    try:
        return await work(service, request)
    except ClientGone:
        return Response(status_code=499)  # nobody reads it
    except asyncio.CancelledError:
        if not service.draining:
            raise
        return error_response(stopping())  # its time is up
    except Exception as error:
        return error_response(as_api_error(error, service.draining))
