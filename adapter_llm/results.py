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

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError("max_new_tokens and num_beams must be at least 1")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ValueError("temperature must be 0 or more, and top_p above 0 and at most 1")

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


@dataclass(frozen=True)
class Result:
    """One answer, or why there is none."""

    text: str
    prompt: str
    n_tokens: int = 0
    finish_reason: str = "stop"  # "stop", "length" or "error"
    seconds: float = 0.0  # of its batch
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
