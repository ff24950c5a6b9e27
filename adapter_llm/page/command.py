"""The chat page from the command line: what demo.py was told, as settings of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results import GenerationOptions
from ..retrieval import RetrievalOptions
from .address import find_port
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


def serve(load: Callable[[], Pipeline], weights: str, given: Mapping[str, Any]) -> None:
    """Load the pipeline, open the page, and close it at Ctrl-C.

    Raises, before anything is loaded, ValueError for settings that are none and an address that cannot be had, and
    ImportError where Gradio is missing.
    """
    settings = settings_of(weights, given)
    find_port(settings.host, settings.port)
    from .launch import serve as serve_page  # and what it needs: Gradio may be missing

    serve_page(load(), settings)
