"""From a question on the page to the engine's answer, piece by piece. Knows nothing of Gradio."""

from __future__ import annotations

import secrets
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from imagebind_encoder.media.patience import reading_limits

from ..cli import sentence
from ..encoding import INPUT_ERRORS
from ..engine import Engine, EngineBusy, EngineClosed, Piece
from ..results import GenerationOptions, Result
from .attachments import Attachment, media_of
from .conversation import Message, Turn
from .sessions import Session

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..retrieval import RetrievalOptions

PATIENCE = 0.5  # seconds between two looks at the queue
SEEDS = 2**31
READING, STRANGERS_READING = 600.0, 30.0  # seconds that a recording may take to be read
EXPECTED = (*INPUT_ERRORS, EngineBusy, EngineClosed)  # what a person can cause; the rest goes to the log, too


def checked(attachment: Attachment, pipe: Pipeline, strangers: bool = False) -> Attachment:
    """The same, looked at: what is wrong with it is known before a question is asked, and its features are cached.

    What `strangers` give is looked at with more care: by its header first, and with less patience.
    """
    if not attachment.keyword:
        return attachment
    try:
        if strangers and attachment.path is not None and attachment.keyword in ("image", "video", "audio"):
            from ..strangers.headers import check_header
            from ..strangers.limits import MediaLimits

            check_header(attachment.keyword, attachment.path.read_bytes(), MediaLimits())
        with reading_limits(STRANGERS_READING if strangers else READING):
            pipe.features(**{attachment.keyword: attachment.source})
    except Exception as error:
        return replace(attachment, problem=explained(error, [attachment]))
    return replace(attachment, problem=None)


def write(
    session: Session,
    turn: Turn,
    pipe: Pipeline,
    engine: Engine,
    options: GenerationOptions,
    retrieval: RetrievalOptions | None = None,
) -> Iterator[None]:
    """Have the last turn answered; it grows from one yield to the next. What goes wrong becomes its problem."""
    attachments, answer = list(session.conversation.attachments), None
    try:
        _prepare(session, turn, pipe, options, retrieval)
        events: SimpleQueue = SimpleQueue()
        with reading_limits(READING):
            draft = pipe.draft(**turn.asked)
        answer = session.answer = engine.submit(draft, events.put)
        if session.stopped:  # while media were looked at
            answer.cancel()
        while isinstance(event := _next(events), str):
            before = answer.position
            turn.waiting = _places(before) if before else ""
            turn.answer += event
            yield
        if isinstance(event, Exception):
            raise event
        _finish(turn, event)
    except Exception as error:
        turn.problem = explained(error, attachments)
    finally:
        turn.waiting = ""
        if answer is not None:
            answer.cancel()  # the page is gone; an answer that has ended stays as it is
        if session.turn is turn:
            session.turn = session.answer = None
    yield


def explained(error: Exception, attachments: Sequence[Attachment] = ()) -> str:
    """An error in one sentence. One that nobody could have caused is logged with its traceback."""
    if not isinstance(error, EXPECTED):
        traceback.print_exception(error, file=sys.stderr)
    words = sentence(error).removesuffix("; run again with --debug for the traceback")
    for one in attachments:
        words = one.in_words(words)
    return words


def _prepare(
    session: Session, turn: Turn, pipe: Pipeline, options: GenerationOptions, retrieval: RetrievalOptions | None
) -> None:
    """What the model is given: as much of the conversation as there is room for, the media, the settings."""
    media = media_of(session.conversation.attachments)
    if options.temperature > 0 and options.seed is None:
        options = replace(options, seed=secrets.randbelow(SEEDS))  # known, so that the answer can be explained
    limit = pipe.answerer.max_length

    def fits(messages: Sequence[Message]) -> bool:
        length = pipe.processor.tokenize([messages], [bool(media)], pipe.device)[0].shape[1]
        return limit is None or length + min(options.max_new_tokens, limit // 4) <= limit

    messages, left_out = session.conversation.messages(fits)
    if left_out:
        oldest = "oldest question no longer fits" if left_out == 1 else f"{left_out} oldest questions no longer fit"
        turn.note = f"The {oldest} into the model's {limit} tokens: this answer does not know of it."
    looking = {"retrieval": retrieval} if media and retrieval is not None else {}
    turn.asked = {"prompt": messages, **media, **looking, **vars(options)}


def _next(events: SimpleQueue) -> str | Result | Exception:
    """All words that are there, or after a while none; the end once there are no more words before it."""
    words = ""
    with suppress(Empty):
        event = events.get(timeout=PATIENCE)
        while isinstance(event, Piece):
            words += event.text
            event = events.get_nowait()
        if not words:
            return event
        events.put(event)  # the last one: nothing comes behind it
    return words


def _places(before: int) -> str:
    return "1 question is before yours" if before == 1 else f"{before} questions are before yours"


def _finish(turn: Turn, result: Result) -> None:
    turn.answer = result.text
    notes = {
        "length": f"This is where the longest answer that the settings allow ends: {result.n_tokens} tokens.",
        "cancelled": "You stopped this answer.",
    }
    if not result.text and result.finish_reason == "stop":
        turn.problem = "the model had nothing to say; ask in other words"
    turn.note = " ".join(filter(None, [turn.note, notes.get(result.finish_reason, "")]))
