"""What is asked: the fields of /v1/chat/completions and /v1/embeddings, checked, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..results import GenerationOptions
from .errors import ApiError, shown
from .fields import Fields
from .messages import read_messages
from .parts import MediaPart, read_part

SEEDS = 2**63
LEAST_TEMPERATURE = 1e-4
MOST_STOPS, MOST_LOGPROBS, MOST_TEXTS = 4, 20, 2048  # as in OpenAI's API
LONGEST_STOP = 200  # characters: they are compared with an answer at each of its tokens
MOST_TOKENS = 2**20  # of an answer; how many there is room for, the language model says

READ = (
    "model", "messages", "n", "stream", "stream_options", "stop", "seed", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "logprobs", "top_logprobs",
)  # fmt: skip
IGNORED = (  # accounting, caching and speed: no answer depends on them
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "prediction", "parallel_tool_calls",
)  # fmt: skip
NEUTRAL = {  # what would change the answer, and the values with which it does not
    "audio": (), "frequency_penalty": (0,), "function_call": ("none", "auto"), "functions": ([],), "logit_bias": ({},),
    "modalities": (["text"],), "moderation": (), "presence_penalty": (0,), "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},), "tool_choice": ("none", "auto"), "tools": ([],),
    "verbosity": ("medium",), "web_search_options": (),
}  # fmt: skip


@dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing, and the most answers it may ask for."""

    temperature: float = 0.0
    max_tokens: int = 512
    choices: int = 8


@dataclass(frozen=True)
class ChatRequest:
    """A conversation, the media of the message it shows them in, and how to answer."""

    messages: Sequence[Mapping[str, str]]  # role and content, as chat templates take them
    media: Sequence[MediaPart]
    options: GenerationOptions
    n: int = 1
    stream: bool = False
    include_usage: bool = False

    def options_of(self, choice: int) -> dict[str, Any]:
        """Of one of the n answers, as Pipeline takes them; each has a seed of its own."""
        options = dict(vars(self.options))
        if options["seed"] is not None:
            options["seed"] = (options["seed"] + choice) % SEEDS
        return options


@dataclass(frozen=True)
class EmbeddingRequest:
    """What is to be embedded, in order, each with its place in the request."""

    inputs: Sequence[tuple[str, str | MediaPart]]
    base64: bool


def chat_request(body: Any, defaults: Defaults, model: str) -> ChatRequest:
    """Raises ApiError, which names the parameter."""
    fields = Fields(body)
    fields.neutral(NEUTRAL)
    fields.only((*READ, *IGNORED, *NEUTRAL))
    check_model(fields, model)
    stream = fields.flag("stream")
    options = GenerationOptions(
        max_new_tokens=_max_tokens(fields, defaults),
        temperature=_temperature(fields, defaults),
        top_p=_top_p(fields),
        seed=_seed(fields),
        stop=_stop(fields),
        top_logprobs=_logprobs(fields),
    )
    n = fields.whole("n", 1, defaults.choices, 1)
    include_usage = _include_usage(fields, stream)
    messages, media = read_messages(fields.values.get("messages"))
    return ChatRequest(messages, media, options, n, stream, include_usage)


def embedding_request(body: Any, width: int, model: str) -> EmbeddingRequest:
    """Raises ApiError, which names the parameter."""
    fields = Fields(body)
    fields.only(("model", "input", "encoding_format", "dimensions", "user"))
    check_model(fields, model)
    if fields.whole("dimensions", 1, SEEDS, width) != width:
        raise ApiError(f"embeddings of this model have {width} dimensions; leave dimensions out", "dimensions")
    base64 = fields.choice("encoding_format", ("float", "base64"), "float") == "base64"
    given = fields.values.get("input")
    single = isinstance(given, (str, dict))
    if not single and (not isinstance(given, list) or not 1 <= len(given) <= MOST_TEXTS):
        raise ApiError(f"input must be a text, or a list of 1 to {MOST_TEXTS} texts or content parts", "input")
    named = [("input", given)] if single else [(f"input[{place}]", value) for place, value in enumerate(given)]
    return EmbeddingRequest([_input(place, value) for place, value in named], base64)


def check_model(fields: Fields, served: str) -> None:
    """Raise ApiError for another model's name; without one the model that is there is meant."""
    name = fields.text("model")
    if name not in (None, served):
        raise unknown_model(name, served)


def unknown_model(name: str, served: str) -> ApiError:
    message = f"the model {shown(name)} does not exist; this server has {shown(served)}"
    return ApiError(message, "model", status=404, code="model_not_found")


def _input(place: str, value: Any) -> tuple[str, str | MediaPart]:
    """A text, or a content part."""
    if isinstance(value, (int, list)):
        raise ApiError(f"{place} holds token ids, and the text encoder has its own; send the text itself", place)
    found = read_part(value, place) if isinstance(value, dict) else value
    if not isinstance(found, MediaPart) and not (isinstance(found, str) and found.strip()):
        raise ApiError(f"{place} must be a text with words in it or a content part, not {shown(value)}", place)
    return place, found


def _max_tokens(fields: Fields, defaults: Defaults) -> int:
    """The name that replaced max_tokens wins."""
    older = fields.whole("max_tokens", 1, MOST_TOKENS, defaults.max_tokens)
    return fields.whole("max_completion_tokens", 1, MOST_TOKENS, older)


def _temperature(fields: Fields, defaults: Defaults) -> float:
    """One so small that the likeliest token alone is left is 0: logits divided by it would be infinite."""
    found = fields.number("temperature", 0, 2, defaults.temperature)
    return found if found >= LEAST_TEMPERATURE else 0.0


def _top_p(fields: Fields) -> float:
    """OpenAI's server takes 0 for "the likeliest token alone", and so does a number that is very small."""
    return max(fields.number("top_p", 0, 1, 1.0), 1e-9)


def _seed(fields: Fields) -> int | None:
    seed = fields.whole("seed", -SEEDS, SEEDS - 1, None)
    return None if seed is None else seed % SEEDS


def _stop(fields: Fields) -> tuple[str, ...]:
    given = fields.values.get("stop", [])
    texts = [given] if isinstance(given, str) else given
    good = isinstance(texts, list) and len(texts) <= MOST_STOPS
    if not good or not all(isinstance(text, str) and 1 <= len(text) <= LONGEST_STOP for text in texts):
        raise fields.wrong(
            "stop", f"a text, or a list of at most {MOST_STOPS} texts of at most {LONGEST_STOP} characters, none of "
            "them empty",
        )  # fmt: skip
    return tuple(texts)


def _logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, MOST_LOGPROBS, None)
    if top is not None and not wanted:
        raise ApiError("top_logprobs needs logprobs to be true", "top_logprobs")
    return (top or 0) if wanted else None


def _include_usage(fields: Fields, stream: bool) -> bool:
    if "stream_options" not in fields.values:
        return False
    if not stream:
        raise ApiError("stream_options needs stream to be true", "stream_options")
    options = Fields(fields.values["stream_options"], "stream_options")
    options.only(("include_usage", "include_obfuscation"))
    return options.flag("include_usage")
