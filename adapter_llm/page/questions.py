"""Events of questions and answers: ask, ask again in other words, write, stop, begin anew, explain."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from ..prompts import describe
from ..results import GenerationOptions
from ..retrieval import RetrievalOptions
from .asking import explained, write
from .chat import from_text, messages
from .context import Context, Shown, cards, conversation, problem, same
from .examples import Example
from .explaining import explain
from .footer import footer
from .media import MediaEvents
from .sessions import Session, Writing

SMALLEST_TOP_P = 1e-3  # a slider's 0: the likeliest word alone
EMPTY = {"text": "", "files": []}


class QuestionEvents:
    def __init__(self, context: Context, media: MediaEvents, examples: Sequence[Example]) -> None:
        self.context, self.media, self.examples = context, media, examples

    def ask(self, box: dict[str, Any], request: gr.Request) -> Shown:
        return self._asked(
            request, box["text"], lambda session: self.media.sync(session, request, box["files"] or [])
        )

    def example(self, event: gr.SelectData, request: gr.Request) -> Shown:
        example = self.examples[int(event.index)]

        def attach(session: Session) -> None:
            session.conversation.attach(self.context.copied(example.path, session))

        return self._asked(request, example.question, attach)

    def _asked(self, request: gr.Request, question: str, attach: Callable[[Session], object]) -> Shown:
        """Attach what there is and begin a turn; or say why not, and leave the question where it is."""
        try:
            session = self.context.session(request)
        except ValueError as error:
            return [gr.skip(), gr.skip(), problem(str(error)), *same()]
        with session.looking:
            talk = session.conversation
            try:
                session.require_rest()
                attach(session)
                asked = session.begin(lambda: talk.ask(question, describe), talk)
            except Exception as error:
                return [gr.skip(), gr.skip(), problem(explained(error)), *cards(session)]
            return [conversation(session), _busy(value=EMPTY) if asked else gr.skip(), "", *cards(session)]

    def retry(self, event: gr.RetryData, request: gr.Request) -> Shown:
        return self._again(event.index, None, request)

    def edit(self, event: gr.EditData, request: gr.Request) -> Shown:
        return self._again(event.index, from_text(str(event.value)), request)

    def _again(self, index: Any, question: str | None, request: gr.Request) -> Shown:
        """Answer the turn of this message once more; what came after it goes."""
        try:
            session = self.context.session(request)
            with session.looking:
                talk = session.conversation
                place = messages(talk.turns)[1][int(index[0] if isinstance(index, (list, tuple)) else index)]
                asked = session.begin(lambda: talk.again(place, question), talk)
                return [conversation(session), _busy() if asked else gr.skip(), "", *cards(session)]
        except Exception as error:
            return [gr.skip(), gr.skip(), problem(explained(error)), *same()]

    def write(self, request: gr.Request, *chosen: Any) -> Iterator[Any]:
        """Answer the question that was just asked, if there is one."""
        yield gr.skip()  # of an event that yields nothing Gradio empties the outputs
        try:
            session = self.context.session(request)
        except ValueError:  # said by `ask`
            return
        if (writing := session.claim()) is None:
            return
        for _ in self._steps(session, writing, chosen):
            if writing.conversation is session.conversation:  # not forgotten in the meantime
                yield conversation(session)

    def _steps(self, session: Session, writing: Writing, chosen: Sequence[Any]) -> Iterator[None]:
        tokens, temperature, top_p, seed = chosen[:4]
        try:
            options = GenerationOptions(
                max_new_tokens=int(tokens),
                temperature=float(temperature),
                top_p=max(float(top_p), SMALLEST_TOP_P),
                seed=_seed(seed),
            )
            retrieval = None
            if self.context.pipe.index is not None:
                weight, neighbours, sharpness = chosen[4:]
                retrieval = RetrievalOptions(int(neighbours), float(sharpness), float(weight))
        except (TypeError, ValueError) as error:
            writing.turn.problem = explained(error)
            session.finish(writing)
            yield
            return
        yield from write(session, writing, self.context.pipe, self.context.engine, options, retrieval)

    def rest(self, request: gr.Request) -> Shown:
        """Take questions again, unless an answer is still being written."""
        busy = False
        with suppress(ValueError):
            busy = self.context.session(request).turn is not None
        return [gr.skip() if busy else _idle(), footer(self.context.pipe, self.context.settings.name)]

    def stop(self, request: gr.Request) -> None:
        with suppress(ValueError):
            self.context.session(request).stop()

    def clear(self, request: gr.Request) -> Shown:
        nothing = ["", gr.Image(value=None, visible=False)]
        try:
            session = self.context.session(request)
        except ValueError as error:
            return [gr.skip(), gr.skip(), problem(str(error)), *same(), *nothing]
        session.forget()
        return [[], _idle(value=EMPTY), "", *cards(session), *nothing]

    def explain(self, request: gr.Request) -> Shown:
        try:
            words, drawn = self._explained(self.context.session(request))
        except Exception as error:
            return [problem(explained(error)), gr.Image(value=None, visible=False)]
        return [words, gr.Image(value=drawn and str(drawn), visible=drawn is not None)]

    def _explained(self, session: Session) -> tuple[str, Path | None]:
        """The last answer; one at a time of each page, for the model can do nothing else meanwhile."""
        session.require_rest()
        if not session.explaining.acquire(blocking=False):
            raise ValueError("the answer is being explained already; wait for it")
        try:
            turns = session.conversation.turns
            figure = self.context.new_folder(session) / "explanation.png"
            return explain(turns[-1] if turns else None, self.context.pipe, self.context.engine, figure)
        finally:
            session.explaining.release()


def _seed(words: str | None) -> int | None:
    """A whole number that somebody wrote; None for nothing. Raises ValueError for anything else."""
    words = (words or "").strip()
    if words and not re.fullmatch(r"\d{1,18}", words):
        raise ValueError(f"the seed is {words!r}; write a whole number, or nothing")
    return int(words) if words else None


def _busy(**changes: Any) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(submit_btn=False, stop_btn=True, **changes)


def _idle(**changes: Any) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False, **changes)
