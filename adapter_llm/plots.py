"""An explanation as one figure. matplotlib is an extra, `plot`, and its global state is left alone.

Shapes: L adapted layers, H heads, Q query_len, T text tokens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

from imagebind_encoder.config import Modality

from .words import listed

if TYPE_CHECKING:  # `check` is to cost nothing
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from torch import Tensor

    from .explain import Explanation, View

WIDTH, DPI = 15.0, 100  # inches, and pixels an inch
VIEWS = 3  # that are drawn; all of them are in the explanation
PROMPT, ANSWER = 24, 60  # tokens that are drawn: the prompt's last, the answer's first
LABEL = 14  # characters of a token
SEQUENTIAL, DIVERGING = "viridis", "PuOr"  # told apart with any kind of colour blindness
BARS = "#3b528b"  # of the sequential scale
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei")


class PlotError(ValueError):
    """An explanation cannot be drawn, or not into this file."""


def check(path: str | Path) -> None:
    """Raise PlotError, before there is any work lost, if a figure could not be written to this file."""
    path = Path(path)
    kinds = sorted(_figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise PlotError(f"{path} is no file to draw into; give it one of the endings {listed(kinds, len(kinds))}")
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is no folder"
        raise PlotError(f"{path} {reason}; name a file in a folder that exists")


def save(explanation: Explanation, path: str | Path) -> None:
    """Draw an explanation into a file, whose ending says of what kind it is. Raises PlotError."""
    check(path)
    draw(explanation).savefig(path)


def draw(explanation: Explanation) -> Figure:
    """The figure of an explanation: what was seen and said, how open each head was, and token by token.

    At most 1500 pixels wide. Raises PlotError where matplotlib is not installed.
    """
    lines = _said(explanation)
    heights = [max(3.7 if explanation.views else 0.0, 0.3 + 0.24 * len(lines)), 3.3, 5.2]
    figure = _figure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    seen, heads, tokens = figure.subfigures(3, 1, height_ratios=heights)
    _draw_seen(seen, explanation, lines)
    _draw_heads(heads, explanation)
    _draw_tokens(tokens, explanation)
    return figure


def _figure(**options: Any) -> Figure:
    """A figure of nobody else's: pyplot would keep it, and might look for a screen."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError('drawing an explanation needs matplotlib; pip install "adapter-llm[plot]"') from error
    return Figure(**options)


def _said(told: Explanation) -> list[str]:
    """Question and answer in lines as wide as the room beside the views."""
    drawn = min(len(told.views), VIEWS)
    columns = round(118 * _room(drawn) / (_room(drawn) + 2 * drawn))
    lines = ["Question:", *_wrapped(told.question, columns, 5), "", "Answer:", *_wrapped(told.answer, columns, 6)]
    return [*lines, "", f"(views not drawn: {len(told.views) - drawn})"] if len(told.views) > drawn else lines


def _chosen(views: Sequence[View]) -> Sequence[View]:
    """As many views as there is room for, from the first to the last: of a film's clips not the beginning alone."""
    if len(views) <= VIEWS:
        return views
    return [views[round(number * (len(views) - 1) / (VIEWS - 1))] for number in range(VIEWS)]


def _room(views: int) -> float:
    """The width of the words, in pictures."""
    return max(1.2, 3.8 - 1.2 * views)


def _draw_seen(part: Any, told: Explanation, lines: list[str]) -> None:
    """Each view as it is, and with its map on it; question and answer beside them."""
    views = _chosen(told.views)
    widths = [*[1] * 2 * len(views), _room(len(views))]
    axes = part.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for number, view in enumerate(views):
        _draw_view(axes[2 * number], view, "what the model saw")
        _draw_map(axes[2 * number + 1], view)
    axes[-1].axis("off")
    place = {"transform": axes[-1].transAxes, "va": "top", "fontsize": 12, "linespacing": 1.4}
    axes[-1].text(0, 1, _drawable("\n".join(lines)), **place, **_plainly())


def _draw_view(axes: Axes, view: View, title: str, **style: Any) -> None:
    height, width = view.shown.shape[:2]
    axes.imshow(view.shown.numpy(), extent=(0, width, height, 0), cmap="gray", **style)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    if view.modality is Modality.AUDIO:
        axes.set(ylim=(0, height), xlabel="time", ylabel="frequency")
    axes.set_title(title, fontsize=9)


def _draw_map(axes: Axes, view: View) -> None:
    """The map over the input, whose own colours are taken away."""
    grey = view.shown if view.shown.ndim == 2 else view.shown.float().mean(2)
    _draw_view(axes, replace(view, shown=grey), "where the connector looked", alpha=0.9)
    axes.imshow(
        view.patch_map.numpy(), extent=view.extent, interpolation="bicubic", cmap=SEQUENTIAL, vmin=0, alpha=0.55
    )


def _draw_heads(part: Any, told: Explanation) -> None:
    """Gates, and what came through them while the answer was written: (L, H) each."""
    left, right = part.subplots(1, 2)
    open_most = max(float(told.gates.abs().max()), 1e-6)
    _draw_matrix(left, told.gates, "gates", DIVERGING, -open_most, open_most)
    written = told.contribution[..., told.writing] if len(told.gain) else told.contribution
    through = written.sum(2).mean(2)
    _draw_matrix(right, through, "share of a head's output that the adapter gave", SEQUENTIAL, 0, None)
    for axes in (left, right):
        axes.set(xlabel="head", ylabel="layer")
        _number(axes.yaxis, told.layers)
        _number(axes.xaxis, range(told.gates.shape[1]))


def _draw_tokens(part: Any, told: Explanation) -> None:
    """Attention (Q, T), what came through at each token, and what difference that made to the answer's.

    A column is a position: in the prompt that of the token read there, in the answer that where its token is decided.
    """
    begin = told.writing.start  # the last position of the prompt decides the answer's first token
    start, stop = max(0, begin - PROMPT), min(told.writing.stop, begin + ANSWER)
    labels = told.tokens[start:begin] + told.tokens[begin + 1 : stop + 1]
    attention, share, gain = part.subplots(3, 1, sharex=True, height_ratios=[2.2, 1, 1])
    _draw_matrix(attention, told.mean_attention[:, start:stop], "", SEQUENTIAL, 0, None)
    cut = f" (the first {ANSWER} of {len(told.gain)})" if len(told.gain) > ANSWER else ""
    attention.set_title(
        "attention to adapter tokens; left of the line the prompt's last tokens as they are read, "
        f"right of it the answer's{cut} as they are decided", fontsize=10,
    )  # fmt: skip
    attention.set_ylabel("adapter token")
    _number(attention.yaxis, range(told.attention.shape[2]))
    _draw_bars(share, range(stop - start), told.share[start:stop], "share of the heads' output that the adapter gave")
    _draw_bars(gain, range(begin - start, stop - start), told.gain[: stop - begin], "log-probability that it added")
    gain.axhline(0, color="black", linewidth=0.6)
    for axes, colour in ((attention, "white"), (share, "black"), (gain, "black")):
        axes.axvline(begin - start - 0.5, color=colour, linewidth=1.5)
    gain.set_xlim(-0.5, max(stop - start, 1) - 0.5)
    size = 10 if len(labels) <= 50 else 8
    gain.set_xticks(range(len(labels)), map(_label, labels), rotation=90, fontsize=size, **_plainly())


def _draw_matrix(axes: Axes, values: Tensor, title: str, colours: str, low: float, high: float | None) -> None:
    image = axes.imshow(values.numpy(), aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=high)
    axes.figure.colorbar(image, ax=axes, pad=0.01)
    axes.set_title(title, fontsize=10)


def _number(axis: Axis, names: Sequence[int]) -> None:
    """Ticks for some eight of the rows or columns of a matrix."""
    every = max(1, round(len(names) / 8))
    axis.set_ticks(range(0, len(names), every), names[::every])


def _draw_bars(axes: Axes, places: range, heights: Tensor, name: str) -> None:
    axes.bar(places, heights.numpy(), color=BARS)
    axes.set_title(name, fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _wrapped(text: str, columns: int, lines: int) -> list[str]:
    """At most so many lines, of half as many letters where letters are as wide as they are high."""
    if any(east_asian_width(letter) in "FW" for letter in text):
        columns //= 2
    return textwrap.wrap(text, columns, max_lines=lines, placeholder=" …")


def _label(token: str) -> str:
    """A token's text for an axis: blanks can be seen, and long ones are cut."""
    text = token.strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣"
    return _drawable(text if len(text) <= LABEL else text[: LABEL - 1] + "…")


def _drawable(text: str) -> str:
    """The text with a box for what no font here can write, about which matplotlib would warn."""
    known = _fonts()[1]
    return "".join(letter if letter == "\n" or ord(letter) in known else "□" for letter in text)


def _plainly() -> dict[str, Any]:
    """How a text is drawn as it is: in a font that has its letters, and dollar signs make no formulas."""
    return {"family": _fonts()[0], "parse_math": False}


@cache
def _fonts() -> tuple[list[str], frozenset[int]]:
    """Fonts of this machine for many languages, in order, and the characters that they have."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    families = [name for name in FONTS if name in fontManager.get_font_names()]
    letters = (FT2Font(fontManager.findfont(name)).get_charmap() for name in families)
    return families, frozenset().union(*letters)
