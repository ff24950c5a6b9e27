"""The page: its parts, and which event each of them sets off."""

from __future__ import annotations

import gradio as gr

from .context import Context, Shown, cards, conversation, problem, same
from .examples import examples
from .footer import footer
from .layout import Parts, arrange
from .media import MediaEvents
from .owners import visitor_of
from .questions import QuestionEvents
from .readers import WAITING

NOW = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
LATER = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
READING = {**LATER, "concurrency_limit": WAITING, "concurrency_id": "reading"}  # each keeps a thread


def build(context: Context) -> gr.Blocks:
    """The page, to be launched. Belongs to the event loop of one server."""
    offered = examples(context.pipe.keywords)
    with gr.Blocks(title="adapter_llm", analytics_enabled=False, fill_width=True) as page:
        parts = arrange(context.pipe, context.settings, offered)
        media = MediaEvents(context)
        _begin_and_end(page, context, parts)
        _questions(QuestionEvents(context, media, offered), parts)
        _media(media, parts)
    return page


def _cards(parts: Parts) -> list[gr.components.Component]:
    return [part for slot in parts.slots for part in slot.parts] + [parts.nothing]


def _begin_and_end(page: gr.Blocks, context: Context, parts: Parts) -> None:
    def load(request: gr.Request) -> Shown:
        below = footer(context.pipe, context.settings.name)
        try:
            session = context.session(request)
        except ValueError as error:
            return [gr.skip(), problem(str(error)), below, *same()]
        return [conversation(session), "", below, *cards(session)]

    def unload(request: gr.Request) -> None:
        context.sessions.end(request.session_hash, visitor_of(request, context.cookie) or "")

    page.load(load, None, [parts.chat, parts.status, parts.footer, *_cards(parts)], **NOW)
    page.unload(unload)


def _questions(events: QuestionEvents, parts: Parts) -> None:
    asked = [parts.chat, parts.box, parts.status, *_cards(parts)]
    begun = [
        parts.box.submit(events.ask, parts.box, asked, **LATER),
        parts.chat.example_select(events.example, None, asked, **LATER),
        parts.chat.retry(events.retry, None, asked, **NOW),
        parts.chat.edit(events.edit, None, asked, **NOW),
    ]
    chosen = [*parts.sampling, *parts.retrieval]
    for event in begun:
        written = event.then(events.write, chosen, parts.chat, **LATER)
        written.then(events.rest, None, [parts.box, parts.footer], **NOW)
    parts.box.stop(events.stop, None, None, **NOW)
    gr.on([parts.new.click, parts.chat.clear], events.clear, None, [*asked, parts.told, parts.figure], **NOW)
    parts.explain.click(events.explain, None, [parts.told, parts.figure], **{**LATER, "show_progress": "minimal"})


def _media(events: MediaEvents, parts: Parts) -> None:
    shown = _cards(parts)
    parts.chips.change(events.gather, parts.box, [parts.status, *shown], **READING)
    for place, slot in enumerate(parts.slots):
        at = gr.State(place)
        slot.weight.input(events.weigh, [at, slot.weight], None, trigger_mode="always_last", **NOW)
        slot.kind.input(events.read_as, [at, slot.kind], [parts.status, *shown], **READING)
        slot.remove.click(events.remove, [at, parts.box], [parts.box, *shown], **NOW)
    if parts.add_words is not None:
        parts.add_words.click(events.add_words, parts.words, [parts.words, parts.status, *shown], **READING)
    if parts.camera is not None:
        parts.camera.input(events.add_recording, parts.camera, [parts.camera, parts.status, *shown], **READING)
    if parts.film is not None:  # which has no input when something was recorded
        parts.film.change(events.add_recording, parts.film, [parts.film, parts.status, *shown], **READING)
