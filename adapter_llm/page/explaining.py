"""The panel that shows what the model looked at: the last answer once more, watched, and drawn."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine import Engine
from ..plots import PlotError, save
from .conversation import Turn

if TYPE_CHECKING:
    from torch import Tensor

    from ..explain import Explanation
    from ..pipeline import Pipeline

MUCH = 4.0  # natural log of how much likelier a word became, that is drawn in full colour


def explain(turn: Turn | None, pipe: Pipeline, engine: Engine, figure: Path) -> tuple[str, Path | None]:
    """What is to be said about the last answer, as HTML, and the drawn figure, if it could be drawn.

    Raises ValueError if there is nothing to explain, and what the pipeline raises.
    """
    if turn is None or not turn.answered:
        raise ValueError("there is no answer yet; ask something about a picture or another input first")
    told = engine.run(lambda: pipe.explain(**turn.asked))
    words = _words(told)
    try:
        save(told, figure)
    except PlotError as error:
        return f"{words}<p class='fine'>There is no figure: {escape(str(error))}.</p>", None
    return words, figure


def _words(told: Explanation) -> str:
    """The answer, each token the darker the more likely it became through what was looked at."""
    marked = "".join(
        f"<mark style='--much: {_share(gain):.2f}' title='{float(gain):+.1f}'>{escape(token)}</mark>"
        for token, gain in zip(told.tokens[told.prompt_length :], told.gain, strict=False)
    )
    return (
        f"<p class='told'>{marked}</p><p class='fine'>The darker a word, the more of it is owed to what you showed: "
        "its log-probability, less what it would have been without.</p>"
    )


def _share(gain: Tensor) -> float:
    return min(max(float(gain) / MUCH, 0.0), 1.0)
