"""Events of what a conversation is about: files come and go, count more or less, are read as something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from .attachments import from_words
from .context import Context, Shown, cards, same
from .sessions import Session


class MediaEvents:
    def __init__(self, context: Context) -> None:
        self.context = context

    def gather(self, box: dict[str, Any], request: gr.Request) -> Iterator[Shown]:
        """The files in the question box have changed."""
        yield from self.context.changed(request, lambda session: self.sync(session, request, box["files"]))

    def sync(self, session: Session, request: gr.Request, files: list[str]) -> None:
        """Let what is attached from the question box be what is in it."""
        conversation = session.conversation
        there = [Path(file).resolve() for file in files]
        conversation.attachments[:] = [one for one in conversation.attachments if not one.in_box or one.path in there]
        known = {one.path for one in conversation.attachments}
        for path in there:
            if path not in known:
                found = self.context.uploaded(str(path), session, request)
                conversation.attach(replace(found, in_box=True))

    def add_words(self, words: str | None, request: gr.Request) -> Iterator[Shown]:
        def add(session: Session) -> None:
            if not (words or "").strip():
                raise ValueError("write the words first")
            session.conversation.attach(self.context.checked(from_words(words)))

        for status, *shown in self.context.changed(request, add):
            yield ["" if not status else gr.skip(), status, *shown]  # what was not taken stays

    def add_recording(self, file: str | None, request: gr.Request) -> Iterator[Shown]:
        if not file:  # it was taken away here, below
            yield [gr.skip(), gr.skip(), *same()]
            return

        def add(session: Session) -> None:
            session.conversation.attach(self.context.uploaded(file, session, request))

        for shown in self.context.changed(request, add):
            yield [gr.skip(), *shown]
        yield [None, gr.skip(), *same()]

    def weigh(self, place: int, weight: float, request: gr.Request) -> None:
        with suppress(ValueError):
            self.context.session(request).conversation.change(place, weight=float(weight))

    def read_as(self, place: int, keyword: str, request: gr.Request) -> Iterator[Shown]:
        def change(session: Session) -> None:
            attachments = session.conversation.attachments
            if place < len(attachments) and keyword in attachments[place].choices:
                attachments[place] = self.context.checked(replace(attachments[place], keyword=keyword))

        yield from self.context.changed(request, change)

    def remove(self, place: int, box: dict[str, Any], request: gr.Request) -> Shown:
        """Take an attachment out, of the question box, too."""
        try:
            session = self.context.session(request)
        except ValueError:
            return [gr.skip(), *same()]
        with session.looking:
            gone = session.conversation.remove(place)
            if gone is None or not gone.in_box:
                return [gr.skip(), *cards(session)]
            files = [file for file in box["files"] if Path(file).resolve() != gone.path]
            return [{"text": box["text"], "files": files}, *cards(session)]
