"""A conversation as the messages of Gradio's Chatbot, and which message belongs to which turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from .attachments import CALLED, Attachment
from .conversation import Turn

# Gradio shows a text as HTML, without what is dangerous in it, but for the tags that it is told to show as they are:
# so it is told all there are, except one for the page's own words
OWN_TAG = "aside"
TAGS = """
a abbr acronym address applet area article aside audio b base basefont bdi bdo big blink blockquote body br button
canvas caption center cite code col colgroup command content data datalist dd del details dfn dialog dir div dl dt
element em embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr
html i iframe image img input ins isindex kbd keygen label legend li link listing main map mark marquee math menu
menuitem meta meter multicol nav nextid nobr noembed noframes noscript object ol optgroup option output p param picture
plaintext portal pre progress q rb rp rt rtc ruby s samp script search section select shadow slot small source spacer
span strike strong style sub summary sup svg table tbody td template textarea tfoot th thead time title tr track tt u
ul var video wbr xmp
"""
SHOWN = ("image", "video", "audio")  # kinds that a browser can show or play


def messages(turns: Sequence[Turn]) -> tuple[list[dict[str, Any]], list[int]]:
    """The messages, and the number of the turn that each is part of."""
    found: list[dict[str, Any]] = []
    places: list[int] = []
    for place, turn in enumerate(turns):
        for role, content in _parts(turn):
            found.append({"role": role, "content": content})
            places.append(place)
    return found, places


def _parts(turn: Turn) -> list[tuple[str, Any]]:
    shown = [part for one in turn.shown for part in _attachment(one)]
    parts: list[tuple[str, Any]] = [("user", part) for part in [*shown, as_text(turn.question)]]
    if turn.waiting:
        parts.append(("assistant", _words("waiting", turn.waiting)))
    if turn.answer:
        parts.append(("assistant", as_text(turn.answer)))
    if turn.problem:
        parts.append(("assistant", _words("problem", turn.problem)))
    if turn.note:
        parts.append(("assistant", _words("note", turn.note)))
    return parts


def _attachment(one: Attachment) -> list[Any]:
    if one.problem:
        return []
    if one.path is not None and one.keyword in SHOWN and one.path.suffix.lower() not in (".tif", ".tiff"):
        return [{"path": str(one.path), "alt_text": one.name}]
    return [_words("attached", f"{CALLED[one.keyword]}: {one.name}")]


def _words(kind: str, words: str) -> str:
    """Words of the page's own; what they quote is text, never markup."""
    return f'<{OWN_TAG} class="{kind}">{escape(words)}</{OWN_TAG}>'


def as_text(words: str) -> str:
    """Somebody's words, that cannot be taken for the page's own."""
    words = re.sub(rf"<(?=/?{OWN_TAG}\b)", "<\u200b", words, flags=re.IGNORECASE)
    return re.sub(r"&(?=#?\w+;)", "&\u200b", words)  # would be shown as the character that it stands for


def from_text(words: str) -> str:
    """The words again, as they were before `as_text`."""
    return words.replace("\u200b", "")
