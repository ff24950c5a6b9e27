"""How an answer is drawn, and what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GenerationOptions:
    """How an answer is drawn. Temperature 0 always takes the likeliest token."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None  # makes sampled answers repeatable
    num_beams: int = 1
    stop: tuple[str, ...] = ()  # texts at which an answer ends; they are not part of it
    top_logprobs: int | None = None  # keep each token's log probability, and so many of the likeliest; None: nothing

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError("max_new_tokens and num_beams must be at least 1")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ValueError("temperature must be 0 or more, and top_p above 0 and at most 1")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError("stop must be a tuple of texts, none of them empty")
        if self.top_logprobs is not None and self.top_logprobs < 0:
            raise ValueError("top_logprobs must be 0 or more, or None")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError("seed must be a whole number from 0 to 2^63 - 1, or None")
        if self.num_beams > 1 and (self.stop or self.top_logprobs is not None):
            raise ValueError("beams have neither stop texts nor log probabilities; leave num_beams at 1")

    @classmethod
    def of(cls, inputs: Mapping[str, Any], others: Sequence[str] = ()) -> GenerationOptions:
        """The options among a call's keywords. Raises TypeError for one that is neither an option nor of `others`."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in inputs if name not in known]:
            raise TypeError(f"unknown keyword {', '.join(unknown)}; there are {', '.join((*others, *known))}")
        return cls(**inputs)

    @classmethod
    def published(cls, **changes: Any) -> GenerationOptions:
        """What the entry points of LLaMA-Adapter V2 and ImageBind-LLM generate with by default."""
        return cls(**{"max_new_tokens": 256, "temperature": 0.1, "top_p": 0.75, **changes})

    def to_kwargs(self) -> dict[str, Any]:
        """As transformers' `generate` takes them; every sampling setting is given, so that no default leaks in.

        That draws from the originals' distribution, but for one case: a token whose likelier ones add up to exactly
        top_p is left out here and was kept there.
        """
        kwargs: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if self.temperature == 0:
            return {**kwargs, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {**kwargs, "do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


class NoNumbers(ArithmeticError):
    """The model overflowed: what it computed for an input is no number."""

    def __init__(self) -> None:
        super().__init__("the model computed no numbers for this input; give another dtype, such as float32")


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer, and how likely the model held it and others, before temperature and top_p."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()  # the likeliest, in order


@dataclass(frozen=True)
class Result:
    """One answer, or why there is none."""

    text: str
    prompt: str
    n_tokens: int = 0
    finish_reason: str = "stop"  # "stop", "length", "cancelled" or "error"
    seconds: float = 0.0  # from its first token's work to its last's
    error: str | None = None
    prompt_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None  # if they were asked for

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
