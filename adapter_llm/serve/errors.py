"""What goes wrong in a request, in the shape that OpenAI's clients know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

SHOWN = 60  # characters of a request's own words in a message
RETRY_AFTER = {"Retry-After": "1"}  # seconds; an answer takes about as long


class ApiError(ValueError):
    """A sentence for the caller, the parameter it is about, and the HTTP status that goes with it."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def to_dict(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def to_json(self) -> bytes:
        return json.dumps(self.to_dict()).encode()


def shown(value: object) -> str:
    """A value of a request as JSON has it, short enough for a message."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > SHOWN:
            return f"{text[:SHOWN]}..."
    return text


def _pieces(value: object) -> Iterator[str]:
    """Its JSON bit by bit: a value may have millions of others in it."""
    if isinstance(value, list):
        yield "["
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item)
        yield "]"
    elif isinstance(value, dict):
        yield "{"
        for number, (name, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(name)
            yield ": "
            yield from _pieces(item)
        yield "}"
    else:
        yield json.dumps(value[: SHOWN + 1] if isinstance(value, str) else value, ensure_ascii=False)


def too_long(message: str) -> ApiError:
    """About a prompt that the language model has no room for."""
    return ApiError(message, "messages", code="context_length_exceeded")


def busy(what: str) -> ApiError:
    return ApiError(f"{what}; try again in a moment", status=429, code="server_busy", headers=RETRY_AFTER)


def stopping() -> ApiError:
    return ApiError("the server is stopping; ask another one", status=503, code="server_stopping")


def broken() -> ApiError:
    return ApiError(
        "the server's engine broke down; whoever runs it has to start it again", status=503, code="engine_broken"
    )


def too_slow(seconds: float) -> ApiError:
    return ApiError(
        f"the answer was not finished within {seconds:g} s, the server's limit; ask for a shorter one with max_tokens, "
        "or try again when less is going on",
        status=504, code="timeout",
    )  # fmt: skip
