"""What all events of the page share: who is asking, whose file it is, and how a session is shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..engine import Engine
from ..pipeline import Pipeline
from .asking import checked, explained
from .attachments import CALLED, MOST, Attachment, from_file
from .chat import messages
from .owners import new_folder, owned, visitor_of
from .readers import Readers
from .sessions import Session, Sessions
from .settings import PageSettings

Shown = list[Any]  # what the outputs of an event become
SLOT = 4  # outputs of an attachment's place


@dataclass(frozen=True)
class Context:
    """The model, the engine, and all sessions. `cookie` is the name of the visitors' cookie."""

    pipe: Pipeline
    engine: Engine
    settings: PageSettings
    sessions: Sessions
    cookie: str
    readers: Readers = field(default_factory=Readers)

    def session(self, request: gr.Request) -> Session:
        """The session of the page that asks. Raises PageClosed."""
        return self.sessions.get(request.session_hash, visitor_of(request, self.cookie) or "")

    def uploaded(self, file: str, session: Session, request: gr.Request) -> Attachment:
        """An uploaded file, looked at. It has to be this browser's, and is this page's from now on."""
        path = owned(file, self.sessions.folder, visitor_of(request, self.cookie))
        session.keep(path.parent.parent)
        return self.checked(from_file(path, self.pipe.keywords))

    def copied(self, path: Path, session: Session) -> Attachment:
        """A file of the project's, as if it had been uploaded."""
        copy = shutil.copy(path, self.new_folder(session))
        return self.checked(from_file(Path(copy), self.pipe.keywords))

    def checked(self, attachment: Attachment) -> Attachment:
        """Raises ValueError if too many files are waiting to be looked at."""
        with self.readers.place():
            return checked(attachment, self.pipe, self.settings.strangers)

    def new_folder(self, session: Session) -> Path:
        """A folder that goes with the session."""
        folder = new_folder(self.sessions.folder / session.visitor)
        session.keep(folder)
        return folder

    def changed(self, request: gr.Request, change: Callable[[Session], object]) -> Iterator[Shown]:
        """The status and the cards, while what the conversation is about changes, and when it has."""
        try:
            session = self.session(request)
        except ValueError as error:
            yield [problem(str(error)), *same()]
            return
        yield [_looking(self.readers.before), *same()]
        status = ""
        with session.looking:
            try:
                change(session)
            except Exception as error:
                status = problem(explained(error))
            shown = cards(session)
        yield [status, *shown]


def conversation(session: Session) -> list[dict[str, Any]]:
    return messages(session.conversation.turns)[0]


def cards(session: Session) -> Shown:
    """Each place for an attachment, and last whether there is nothing."""
    found: Shown = []
    attachments = session.conversation.attachments
    for place in range(MOST):
        if place >= len(attachments):
            found += [gr.Row(visible=False), *[gr.skip()] * (SLOT - 1)]
            continue
        one = attachments[place]
        choices = [(CALLED[keyword], keyword) for keyword in one.choices]
        found += [
            gr.Row(visible=True),
            _name(one),
            gr.Dropdown(choices=choices, value=one.keyword or None, visible=len(choices) > 1),
            gr.Slider(value=one.weight, visible=one.problem is None),
        ]
    return [*found, gr.HTML(visible=not attachments)]


def same() -> Shown:
    """The cards as they are."""
    return [gr.skip()] * (SLOT * MOST + 1)


def problem(words: str) -> str:
    return f"<div class='problem' role='alert'>{escape(words)}</div>"


def _looking(before: int) -> str:
    if not before:
        return "Looking at it …"
    return f"{before} file{' is' if before == 1 else 's are'} before yours; then it is looked at …"


def _name(one: Attachment) -> str:
    kind = CALLED.get(one.keyword, "") if len(one.choices) < 2 else ""
    words = problem(one.problem) if one.problem else ""
    return f"<strong title='{escape(one.name)}'>{escape(one.name)}</strong> <span>{kind}</span>{words}"
