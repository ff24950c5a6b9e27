"""A few files are looked at at a time, whoever gave them; who has to wait is told how many are before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

AT_ONCE, WAITING = 2, 16


class Readers:
    """For several threads, in the order in which they come."""

    def __init__(self, at_once: int = AT_ONCE, waiting: int = WAITING) -> None:
        self.at_once, self.waiting = at_once, waiting
        self._there: list[object] = []  # those that read first, then those that wait
        self._news = Condition()

    @property
    def before(self) -> int:
        """How many files are before one that would come now; 0 if it would not have to wait."""
        found = len(self._there)
        return found if found >= self.at_once else 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Inside, a file may be looked at. Raises ValueError if too many are waiting already."""
        own = object()
        with self._news:
            if len(self._there) >= self.at_once + self.waiting:
                raise ValueError("too many files are waiting to be looked at; try again later")
            self._there.append(own)
            while own not in self._there[: self.at_once]:
                self._news.wait(1.0)
        try:
            yield
        finally:
            with self._news:
                self._there.remove(own)
                self._news.notify_all()
