"""One model, many callers: a thread writes all their answers side by side, a token of each at a time.

Whoever asks makes a draft in a thread of his own (media are read and encoded there) and submits it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, TypeVar

from ..pipeline import Pipeline
from ..results import NoNumbers
from ..writing import Draft
from .answer import Answer, Event, Tell

T = TypeVar("T")


class EngineBusy(RuntimeError):
    """As many are waiting as may wait."""


class EngineClosed(RuntimeError):
    """No more is taken in."""


@dataclass(frozen=True)
class EngineCounts:
    """What the engine is doing, and has done."""

    running: int
    waiting: int
    tokens: int  # written so far
    steps: int  # so far, each of a token for all that were running


class Engine:
    """`batch_size` answers are written at once, `waiting` more may wait."""

    def __init__(self, pipe: Pipeline, batch_size: int = 8, waiting: int = 64) -> None:
        if batch_size < 1 or waiting < 0:
            raise ValueError("batch_size must be at least 1, and waiting at least 0")
        self.batch_size, self.waiting = batch_size, waiting
        self._batch = pipe.batch()
        self._visiting = any(weight.device.type == "meta" for weight in pipe.model.llama.parameters())
        self._running: dict[Draft, Answer] = {}
        self._waiting: deque[Answer] = deque()
        self._cancelled: set[Answer] = set()
        self._tasks: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._closed = False
        self._tokens = self._steps = 0
        self._news = Condition()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, draft: Draft, tell: Tell | None = None) -> Answer:
        """Have a draft written. `tell` is called on the engine's thread and must not wait for anything.

        Raises EngineBusy if too many are waiting, EngineClosed after `close`.
        """
        answer = Answer(self, draft, tell)
        with self._news:
            if self._closed:
                raise EngineClosed("no more questions are taken: the program is ending")
            free = self.batch_size - len(self._running)
            if len(self._waiting) >= self.waiting + max(0, free):
                raise EngineBusy(f"as many questions are waiting as may wait, {self.waiting}; try again later")
            self._waiting.append(answer)
            self._news.notify_all()
        return answer

    @property
    def alive(self) -> bool:
        """Whether it takes questions."""
        return not self._closed and self._thread.is_alive()

    def prepare(self, work: Callable[[], T]) -> T:
        """Make drafts: here, beside what is written; by the engine, if the model's weights come and go meanwhile."""
        return self.run(work) if self._visiting else work()

    def run(self, work: Callable[[], T]) -> T:
        """Call something between two steps, when nothing else uses the model, and return what it returns."""
        future: Future[T] = Future()
        with self._news:
            if self._closed:
                raise EngineClosed("no more questions are taken: the program is ending")
            self._tasks.append((future, work))
            self._news.notify_all()
        return future.result()

    def cancel(self, answer: Answer) -> None:
        with self._news:
            if answer in self._waiting or answer.draft in self._running:
                self._cancelled.add(answer)
                self._news.notify_all()

    def position(self, answer: Answer) -> int:
        with self._news:
            return self._waiting.index(answer) + 1 if answer in self._waiting else 0

    @property
    def counts(self) -> EngineCounts:
        with self._news:
            return EngineCounts(len(self._running), len(self._waiting), self._tokens, self._steps)

    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Take no more. What was taken is finished, or cancelled without `drain`; whether all has ended in time."""
        with self._news:
            self._closed = True
            if not drain:
                self._cancelled |= {*self._waiting, *self._running.values()}
            self._news.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # nobody is to wait for an engine that is gone
            with self._news:
                self._closed = True
                left = [*self._running.values(), *self._waiting]
                tasks, self._tasks = self._tasks, deque()
                self._running.clear()
                self._waiting.clear()
            for answer in left:
                answer.draft.end("error")
                self._end(answer, EngineClosed(f"the engine broke down ({type(error).__name__}: {error})"))
            for future, _ in tasks:
                future.set_exception(EngineClosed("the engine broke down"))
            raise

    def _turn(self) -> bool:
        """Wait for something to do, and take a step; False at the end."""
        with self._news:
            while not (self._waiting or self._running or self._tasks or self._closed):
                self._news.wait()
            if not (self._waiting or self._running or self._tasks):
                return False
            task = self._tasks.popleft() if self._tasks else None
            gone, self._cancelled = self._cancelled, set()
            unwanted = [answer for answer in self._waiting if answer in gone]
            for answer in unwanted:
                self._waiting.remove(answer)
        if task is not None:
            _settle(*task)
        for answer in unwanted:
            answer.draft.end("cancelled")
            self._end(answer, answer.draft.result())
        for answer in gone:
            self._batch.leave(answer.draft)
        self._finish()
        self._advance()
        self._finish()
        return True

    def _advance(self) -> None:
        """A step for those that are being written, and the first one for those that there is room for."""
        if self._batch:
            self._steps += 1
            try:
                self._batch.step()
            except Exception as error:
                self._one_by_one(self._batch.clear(), error)
        with self._news:
            room = self.batch_size - len(self._running)
            newcomers = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            self._running |= {answer.draft: answer for answer in newcomers}
        drafts = [answer.draft for answer in newcomers]
        try:
            self._batch.join(drafts)
        except Exception as error:
            self._one_by_one(drafts, error)

    def _one_by_one(self, drafts: list[Draft], error: Exception) -> None:
        """What breaks together may be one row's fault, and the others go on where they were."""
        for draft in drafts:
            if len(drafts) > 1 and draft.finish_reason is None:
                try:
                    self._batch.join([draft])
                    continue
                except Exception as own:
                    error = own
            if draft.finish_reason is None:
                draft.end("error")
                with self._news:
                    answer = self._running.pop(draft)
                self._end(answer, error)

    def _finish(self) -> None:
        """Tell what is new of each, and let go of those that have ended."""
        for draft, answer in list(self._running.items()):
            try:
                answer.say()
            except Exception as error:  # who cannot be told is not listening any more
                self._batch.leave(draft)
                self._end(answer, error)
            else:
                if draft.finish_reason is None:
                    continue
                self._end(answer, NoNumbers() if draft.error else draft.result())
            with self._news:
                del self._running[draft]
                self._tokens += draft.n_tokens

    def _end(self, answer: Answer, event: Event) -> None:
        with suppress(Exception):  # as above; nothing is left to be stopped
            answer.tell(event)


def _settle(future: Future, work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # it belongs to whoever asked for it
        future.set_exception(error)
