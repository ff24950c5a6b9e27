"""The chat page from the command line: what demo.py was told, as settings of the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results import GenerationOptions
from ..retrieval import RetrievalOptions
from .settings import PageSettings

if TYPE_CHECKING:
    from ..pipeline import Pipeline

SAMPLING = ("max_new_tokens", "temperature", "top_p", "seed")


def settings_of(weights: str, given: Mapping[str, Any]) -> PageSettings:
    """The settings for weights of this path or hub id, from arguments that were given; sizes come in megabytes."""
    chosen = {name: value for name, value in given.items() if name not in (*SAMPLING, "blend")}
    if "max_file_size" in chosen:
        chosen["max_file_size"] = max(1, int(chosen["max_file_size"] * 2**20))
    options = GenerationOptions(**{name: given[name] for name in SAMPLING if name in given})
    retrieval = RetrievalOptions(weight=given["blend"]) if "blend" in given else RetrievalOptions()
    return PageSettings(name=Path(weights).name or weights, options=options, retrieval=retrieval, **chosen)


def serve(pipe: Pipeline, weights: str, given: Mapping[str, Any]) -> None:
    """Open the page, and close it at Ctrl-C. Raises ValueError for an address that cannot be had."""
    settings = settings_of(weights, given)
    from .launch import serve as serve_page

    serve_page(pipe, settings)
