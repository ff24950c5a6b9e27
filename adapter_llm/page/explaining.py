"""The panel that shows what the model looked at: the last answer once more, watched, and drawn."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from imagebind_encoder.config import Modality
from imagebind_encoder.media.patience import reading_limits

from ..engine import Engine
from ..plots import PlotError, save
from .conversation import Turn

if TYPE_CHECKING:
    from torch import Tensor

    from ..explain import Explanation, View
    from ..pipeline import Pipeline

MUCH = 4.0  # natural log of how much likelier a word became, that is drawn in full colour
SHOWN = 2  # views; the figure has more
COLOURS = ((37, 52, 94), (38, 130, 142), (253, 231, 37))  # of nothing, some, and most
WIDTH = 320  # pixels
READING = 30.0  # seconds that a recording may take to be read


def explain(turn: Turn | None, pipe: Pipeline, engine: Engine, figure: Path) -> tuple[str, Path | None]:
    """What is to be said about the last answer, as HTML, and the drawn figure, if it could be drawn.

    It is the very answer that was written, also one that was stopped: looked at once more, not written anew.

    Raises ValueError if there is nothing to explain, and what the pipeline raises.
    """
    if turn is None or not turn.answered:
        raise ValueError("there is no answer yet; ask something about a picture or another input first")

    def look() -> Explanation:
        with reading_limits(READING):  # of the thread that reads: nobody's answer grows meanwhile
            return pipe.explain(**turn.asked, answer=turn.ids)

    told = engine.run(look)
    words = _words(told) + "".join(map(_picture, told.views[:SHOWN]))
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


def _picture(view: View) -> str:
    """What the model saw, in grey, and on it in colour where the connector looked: an HTML image."""
    from PIL import Image, ImageOps

    shown = view.shown.float()
    shown = (shown - shown.min()) / (shown.max() - shown.min()).clamp(min=1e-6) * 255
    grey = Image.fromarray(shown.byte().numpy()).convert("L")
    patches = Image.fromarray((view.patch_map / view.patch_map.max().clamp(min=1e-6) * 255).byte().numpy())
    left, right, bottom, top = map(round, view.extent)
    looked = Image.new("L", grey.size)
    looked.paste(patches.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BICUBIC), (left, top))
    colours = ImageOps.colorize(looked, COLOURS[0], COLOURS[2], mid=COLOURS[1])
    drawn = Image.blend(grey.convert("RGB"), colours, 0.5)
    if view.modality is Modality.AUDIO:
        drawn = ImageOps.flip(drawn)  # low notes below
    drawn = drawn.resize((WIDTH, max(1, round(WIDTH * drawn.height / drawn.width))))
    file = BytesIO()
    drawn.save(file, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
    return f"<img class='looked' src='{source}' alt='brighter where the model looked'>"


def _share(gain: Tensor) -> float:
    return min(max(float(gain) / MUCH, 0.0), 1.0)
