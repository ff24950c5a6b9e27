"""One conversation for each open page, and its files, which go when the page is closed."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import OrderedDict, deque
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING

from .conversation import Conversation, Turn

if TYPE_CHECKING:
    from ..engine import Answer

MOST_OPEN = 1000  # pages; beyond, one that was not used for long gives way
MOST_OF_ONE = 20  # visitor's pages; beyond, the one that was not used longest gives way
LONG = 3600.0  # seconds
ENDED = 4000  # that are remembered


class Session:
    """An open page: its conversation, the answer that is being written, and folders that hold its files."""

    def __init__(self, visitor: str) -> None:
        self.visitor = visitor
        self.conversation = Conversation()
        self.lock = RLock()  # for whoever changes the conversation
        self.turn: Turn | None = None  # asked, and its answer is not finished
        self.answer: Answer | None = None  # the engine's, while it is written
        self.stopped = False
        self.used = time.monotonic()
        self._folders: set[Path] = set()

    def keep(self, folder: Path) -> None:
        """From now on this folder is the page's, and goes with it."""
        self._folders.add(folder)

    def begin(self, turn: Turn | None) -> None:
        """This turn is to be answered now."""
        self.turn, self.stopped = turn, False

    def stop(self) -> None:
        """Stop the answer that is being written, or about to be."""
        self.stopped = True
        if (answer := self.answer) is not None:
            answer.cancel()

    def forget(self) -> None:
        """Begin anew: no turns, no attachments, no files."""
        self.stop()
        self.turn = None
        self.conversation.clear()
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)


class PageClosed(ValueError):
    """The page went away, and its files with it."""


class Sessions:
    """Sessions by the name that their page has chosen for itself, a random one. For several threads.

    `folder` holds a folder for each visitor, that is for each browser; a visitor may have several pages open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._ended: deque[str] = deque(maxlen=ENDED)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str, visitor: str) -> Session:
        """The session of this page. Raises PageClosed for one that has ended, is another visitor's or one too many."""
        if not visitor:
            raise PageClosed("this page keeps people's files apart by a cookie; allow it, and reload the page")
        crowded = None
        with self._lock:
            if name in self._ended:
                raise PageClosed(
                    "the connection to this page was lost, and its files were deleted; reload the page to go on"
                )
            session = self._open.get(name)
            if session is None:
                crowded = self._crowded(visitor)
                session = self._open[name] = Session(visitor)
            if session.visitor != visitor:
                raise PageClosed("this page belongs to another browser; reload it")
            self._open.move_to_end(name)
            session.used = time.monotonic()
        if crowded is not None:
            self.end(crowded)
        return session

    def _crowded(self, visitor: str) -> str | None:
        """The page that has to give way to a new one of this visitor's, if any. Raises PageClosed."""
        own = [name for name, session in self._open.items() if session.visitor == visitor]
        if len(own) >= MOST_OF_ONE:
            return own[0]
        if len(self._open) < MOST_OPEN:
            return None
        name, session = next(iter(self._open.items()))
        if time.monotonic() - session.used < LONG:
            raise PageClosed("too many pages are open; try again later")
        return name

    def has(self, visitor: str) -> bool:
        """Whether a page of this visitor's is open."""
        with self._lock:
            return any(session.visitor == visitor for session in self._open.values())

    def end(self, name: str, visitor: str | None = None) -> None:
        """Close a page: stop its answer, delete its files, and the visitor's if this was the last page.

        With a visitor's name only a page of theirs.
        """
        with self._lock:
            if visitor is not None and name in self._open and self._open[name].visitor != visitor:
                return
            session = self._open.pop(name, None)
            self._ended.append(name)
            last = session is not None and all(other.visitor != session.visitor for other in self._open.values())
        if session is None:
            return
        session.forget()
        if last and session.visitor:
            with contextlib.suppress(OSError):
                shutil.rmtree(self.folder / session.visitor)

    def close(self) -> None:
        for name in list(self._open):
            self.end(name)
