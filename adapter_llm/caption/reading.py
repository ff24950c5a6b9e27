"""Inputs that threads read and decode while the model writes. What waits is bounded, however many inputs there are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from threading import Condition, Lock, Semaphore, Thread
from typing import Generic, TypeVar

G = TypeVar("G")
R = TypeVar("R")


class ReadAhead(Generic[G, R]):
    """What `read` makes of each input, or the exception that it raised, in the order in which they are ready.

    The iterator of inputs is walked by the threads, one at a time, so that one that is slow itself (a listing, an
    archive over the network) delays nobody who is not waiting for it. At most `ahead` inputs are being read or wait to
    be taken.
    """

    def __init__(self, read: Callable[[G], R], inputs: Iterable[G], threads: int, ahead: int) -> None:
        self._read, self._inputs = read, iter(inputs)
        self._walking, self._room = Lock(), Semaphore(ahead)
        self._changed, self._ready = Condition(), deque()
        self._working, self._closed = threads, False
        self._broken: BaseException | None = None
        for number in range(threads):
            # a source that never answers must not keep the program from ending
            Thread(target=self._work, name=f"read-{number}", daemon=True).start()

    def __len__(self) -> int:
        """How many are ready to be taken."""
        return len(self._ready)

    @property
    def ended(self) -> bool:
        """Whether nothing is to come beside what is ready."""
        return self._working == 0

    def take(self, limit: int, wait: float = 0.0) -> list[tuple[G, R | Exception]]:
        """Up to `limit` inputs that are ready; at least one, unless all were taken before or `wait` seconds went by.

        Raises what the iterator of inputs raised, after everything that came before it was taken.
        """
        end = time.monotonic() + wait
        with self._changed:
            while not self._ready and self._working and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.5))  # Windows hears Ctrl-C between two waits alone
            taken = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        for _ in taken:
            self._room.release()
        if not taken and not self._working and self._broken is not None:
            raise self._broken
        return taken

    def close(self) -> None:
        """Let the threads end; what they are reading is dropped."""
        self._closed = True
        for _ in range(self._working):
            self._room.release()

    def _work(self) -> None:
        try:
            while True:
                self._room.acquire()
                with self._walking:
                    if self._closed or self._broken is not None:
                        return
                    given = next(self._inputs)
                try:
                    result = self._read(given)
                except Exception as error:  # whatever a library says of a file belongs to that file
                    result = error
                with self._changed:
                    self._ready.append((given, result))
                    self._changed.notify()
        except StopIteration:
            pass
        except BaseException as error:  # it belongs to whoever takes what was read
            self._broken = error
        finally:
            self._room.release()  # for another thread that would wait for ever
            with self._changed:
                self._working -= 1
                self._changed.notify()
