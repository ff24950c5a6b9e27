"""From a question on the page to the engine's answer, piece by piece. Knows nothing of Gradio."""

from __future__ import annotations

import secrets
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from imagebind_encoder.media.patience import reading_limits
from imagebind_encoder.media.source import MediaError, describe

from ..cli import sentence
from ..encoding import INPUT_ERRORS
from ..engine import Engine, EngineBusy, EngineClosed, Piece
from ..results import GenerationOptions, NoNumbers, Result
from ..strangers.headers import check_header
from ..strangers.limits import MediaLimits
from .attachments import Attachment, media_of
from .conversation import Conversation, Message, Turn
from .sessions import Session, Writing

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..retrieval import RetrievalOptions
    from ..writing import Draft

PATIENCE = 0.5  # seconds between two looks at the queue
SEEDS = 2**31
READING = 120.0  # seconds that a recording may take to be read
LIMITS = MediaLimits()
PICTURES = ("image", "depth", "thermal")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what such files begin with
EXPECTED = (*INPUT_ERRORS, EngineBusy, EngineClosed, NoNumbers)  # what people can cause; the rest goes to the log, too


def checked(attachment: Attachment, pipe: Pipeline, strangers: bool = False) -> Attachment:
    """The same, looked at: what is wrong with it is known before a question is asked, and its features are cached.

    Its header is read first, and the rest with `READING` seconds of patience: kilobytes can unpack to gigabytes.
    TIFF, of which no header tells what it unpacks to, is not taken from `strangers`.
    """
    if not attachment.keyword:
        return attachment
    try:
        if attachment.path is not None:
            _check_file(attachment.keyword, attachment.path, strangers)
        with reading_limits(READING):
            pipe.features(**{attachment.keyword: attachment.source})
    except Exception as error:
        return replace(attachment, problem=explained(error, [attachment]))
    return replace(attachment, problem=None)


def _check_file(keyword: str, path: Path, strangers: bool) -> None:
    """Raises MediaError, by the header, for what would take too much to read."""
    picture = keyword in PICTURES and path.suffix.lower() != ".npy"
    if not picture and keyword not in ("video", "audio"):
        return
    data = path.read_bytes()
    if picture and data.startswith(TIFF) and not strangers:
        return
    try:
        check_header("image" if picture else keyword, data, LIMITS)
    except MediaError as error:
        raise MediaError(str(error).replace(describe(data), describe(path))) from error


def write(
    session: Session,
    writing: Writing,
    pipe: Pipeline,
    engine: Engine,
    options: GenerationOptions,
    retrieval: RetrievalOptions | None = None,
) -> Iterator[None]:
    """Have a turn answered; it grows from one yield to the next. What goes wrong becomes its problem.

    `writing` was claimed of the session by whoever calls this.
    """
    turn, answer = writing.turn, None
    attachments = list(writing.conversation.attachments)
    try:
        _prepare(writing.conversation, turn, pipe, options, retrieval)
        events: SimpleQueue = SimpleQueue()
        answer = engine.submit(engine.prepare(lambda: _draft(pipe, turn)), events.put)
        writing.start(answer)
        while isinstance(event := _next(events), str):
            before = answer.position
            turn.waiting = _places(before) if before else ""
            turn.answer += event
            yield
        if isinstance(event, Exception):
            raise event
        turn.ids = answer.draft.ids
        _finish(turn, event)
    except Exception as error:
        turn.problem = explained(error, attachments)
    finally:
        turn.waiting = ""
        if answer is not None:
            answer.cancel()  # the page is gone; an answer that has ended stays as it is
        session.finish(writing)
    yield


def explained(error: Exception, attachments: Sequence[Attachment] = ()) -> str:
    """An error in one sentence. One that nobody could have caused is logged with its traceback."""
    if not isinstance(error, EXPECTED):
        traceback.print_exception(error, file=sys.stderr)
    words = sentence(error).removesuffix("; run again with --debug for the traceback")
    for one in attachments:
        words = one.in_words(words)
    return words


def _draft(pipe: Pipeline, turn: Turn) -> Draft:
    with reading_limits(READING):  # of the thread that reads
        return pipe.draft(**turn.asked)


def _prepare(
    conversation: Conversation,
    turn: Turn,
    pipe: Pipeline,
    options: GenerationOptions,
    retrieval: RetrievalOptions | None,
) -> None:
    """What the model is given: as much of the conversation as there is room for, the media, the settings."""
    media = media_of(conversation.attachments)
    if options.temperature > 0 and options.seed is None:
        options = replace(options, seed=secrets.randbelow(SEEDS))  # known, so that the answer can be explained
    limit = pipe.answerer.max_length

    def fits(messages: Sequence[Message]) -> bool:
        length = pipe.processor.tokenize([messages], [bool(media)], pipe.device)[0].shape[1]
        return limit is None or length + min(options.max_new_tokens, limit // 4) <= limit

    messages, left_out = conversation.messages(fits)
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
