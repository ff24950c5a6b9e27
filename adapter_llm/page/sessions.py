"""One conversation for each open page, and its files, which go when the page is closed."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
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
LOST = "the connection to this page was lost, and its files were deleted; reload the page to go on"


@dataclass(eq=False)
class Writing:
    """A question on its way to its answer."""

    conversation: Conversation
    turn: Turn
    claimed: bool = False  # somebody has it written
    stopped: bool = False
    answer: Answer | None = None  # the engine's, once there is one

    def start(self, answer: Answer) -> None:
        self.answer = answer
        if self.stopped:  # before there was one: while media were looked at
            answer.cancel()

    def stop(self) -> None:
        self.stopped = True
        if self.answer is not None:
            self.answer.cancel()


class Session:
    """An open page: its conversation, the answer that is being written, and folders that hold its files."""

    def __init__(self, visitor: str) -> None:
        self.visitor = visitor
        self.conversation = Conversation()
        self.looking = RLock()  # for whoever changes what the conversation is about: held while files are looked at
        self.explaining = Lock()
        self.used = time.monotonic()
        self.writing: Writing | None = None  # what was asked, until its answer is finished
        self._lock = Lock()  # never held for long
        self._folders: set[Path] = set()
        self._ended = False

    @property
    def turn(self) -> Turn | None:
        """The question whose answer is not finished."""
        return None if (writing := self.writing) is None else writing.turn

    def keep(self, folder: Path) -> None:
        """From now on this folder is the page's, and goes with it; at once, and raises PageClosed, if it has gone."""
        with self._lock:
            if not self._ended:
                self._folders.add(folder)
                return
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # if it was made for this folder alone
        raise PageClosed(LOST)

    def require_rest(self) -> None:
        """Raises ValueError while a question is being answered."""
        if self.writing is not None:
            raise ValueError("an answer is still being written; stop it first, or wait for it")

    def begin(self, ask: Callable[[], Turn | None], conversation: Conversation | None = None) -> bool:
        """Have the turn that `ask` makes answered; False if the conversation was begun anew since.

        Raises ValueError while another is being answered, and what `ask` raises.
        """
        with self._lock:
            if conversation is not None and conversation is not self.conversation:
                return False
            self.require_rest()
            if (turn := ask()) is not None:
                self.writing = Writing(self.conversation, turn)
        return True

    def claim(self) -> Writing | None:
        """What is to be written, for the first who asks: it is written once."""
        with self._lock:
            writing = self.writing
            if writing is None or writing.claimed:
                return None
            writing.claimed = True
            return writing

    def finish(self, writing: Writing) -> None:
        """It is written, or given up."""
        with self._lock:
            if self.writing is writing:
                self.writing = None

    def stop(self) -> None:
        """Stop the answer that is being written, or about to be."""
        if (writing := self.writing) is not None:
            writing.stop()

    def forget(self, ended: bool = False) -> None:
        """Begin anew: no turns, no attachments, no files. What is under way ends, or is about what is forgotten."""
        with self._lock:
            self.stop()
            self.writing, self.conversation = None, Conversation()
            folders, self._folders = self._folders, set()
            self._ended = self._ended or ended
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


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
                raise PageClosed(LOST)
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
        if session is None:
            return
        session.forget(ended=True)
        with self._lock:  # so that nobody opens another page of this visitor's meanwhile
            if all(other.visitor != session.visitor for other in self._open.values()):
                shutil.rmtree(self.folder / session.visitor, ignore_errors=True)

    def close(self) -> None:
        for name in list(self._open):
            self.end(name)
