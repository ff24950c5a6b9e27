"""Answers as OpenAI's objects: chat.completion, and chat.completion.chunk for streams."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from ..results import Result, TokenLogprob

LEAST_LOGPROB = -9999.0  # stands for a token that is impossible, as in OpenAI's API: JSON has no infinity


@dataclass(frozen=True)
class Envelope:
    """What all objects of one answer share."""

    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def _object(self, kind: str, choices: list[dict], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices, **more,
        }  # fmt: skip

    def completion(self, results: Sequence[Result], prompt_tokens: int) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": logprobs(result.logprobs),
                "finish_reason": result.finish_reason,
            }
            for index, result in enumerate(results)
        ]
        return self._object("chat.completion", choices, usage=usage(results, prompt_tokens))

    def chunk(self, index: int, delta: dict, reason: str | None = None, **more: Any) -> dict[str, Any]:
        found = logprobs(more.pop("logprobs", None))
        choice = {"index": index, "delta": delta, "logprobs": found, "finish_reason": reason}
        return self._object("chat.completion.chunk", [choice], **more)

    def usage_chunk(self, results: Sequence[Result], prompt_tokens: int) -> dict[str, Any]:
        return self._object("chat.completion.chunk", [], usage=usage(results, prompt_tokens))


def usage(results: Iterable[Result], prompt_tokens: int) -> dict[str, int]:
    """The prompt counts once, however many answers it has; media take no tokens of it."""
    written = sum(result.n_tokens for result in results)
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": written, "total_tokens": prompt_tokens + written
    }  # fmt: skip


def logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    content = [
        {**_token(one.token, one.logprob), "top_logprobs": [_token(*other) for other in one.top]} for one in tokens
    ]
    return {"content": content, "refusal": None}


def _token(text: str, value: float) -> dict[str, Any]:
    """A token that is part of a character has no text of its own, so its bytes are not known either."""
    whole = None if "\ufffd" in text else list(text.encode("utf-8"))
    return {"token": text, "logprob": max(value, LEAST_LOGPROB), "bytes": whole}
