"""One process's work: inputs in, rows out, in the order in which they are finished.

Media are decoded on threads. What has been decoded is encoded together and becomes drafts, and drafts join the batch
that is being written as soon as enough of its rows have ended.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from imagebind_encoder.media.source import MediaError
from imagebind_encoder.media.source import describe as describe_source

from ..encoding import INPUT_ERRORS
from ..processing import InputOptions, LoadedItem, media_items
from ..prompts import describe
from ..results import GenerationOptions
from ..retrieval import RetrievalOptions
from ..words import one_line
from .content import Content
from .inputs import Input
from .model import ModelIdentity
from .outputs import Done
from .reading import ReadAhead
from .rows import CaptionRow, config_hash

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..writing import Draft

DRAWN = ("max_new_tokens", "temperature", "top_p", "seed")  # what rows and hashes say of how answers are drawn
LONGEST = 1000  # characters of an error
JOIN = 4  # rows join when a quarter of the batch is free: to read a prompt costs less together with others


@dataclass(frozen=True)
class CaptionOptions:
    """What is asked, how answers are drawn, and how many at once."""

    prompt: str | None = None  # for inputs that have none of their own; None asks for a description
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    reading: InputOptions = field(default_factory=InputOptions)
    retrieval: RetrievalOptions | None = None  # None: with an index, its defaults
    batch_size: int = 16  # answers that are written together
    readers: int = 4  # threads that read and decode

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.readers < 1:
            raise ValueError("batch_size and readers must be at least 1")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("the prompt is empty; ask something, or give none for a description")

    def prompt_of(self, entry: Input) -> str:
        return entry.prompt or self.prompt or describe([entry.keyword])

    @property
    def drawn(self) -> dict[str, Any]:
        return {name: getattr(self.generation, name) for name in DRAWN}

    def config_hash(self, model: ModelIdentity, entry: Input) -> str:
        """Of all that an input's caption depends on beside its bytes."""
        blend = None if self.retrieval is None else asdict(self.retrieval)
        reading = {"keyword": entry.keyword, "blend": blend, **asdict(self.reading)}
        return config_hash(model.fingerprint, self.prompt_of(entry), self.drawn, reading, model.dtype)


@dataclass
class _Underway:
    """An input on its way: what was read of it, and then its draft."""

    entry: Input
    began: float
    content: Content | None = None
    items: list[LoadedItem] = field(default_factory=list)
    draft: Draft | None = None


class Captioner:
    """Writes captions with a pipeline that is loaded. `keep_content`: each Done holds the bytes that were captioned."""

    def __init__(
        self,
        pipe: Pipeline,
        model: ModelIdentity,
        options: CaptionOptions = CaptionOptions(),
        keep_content: bool = False,
    ) -> None:
        self.pipe, self.model, self.options, self.keep_content = pipe, model, options, keep_content

    def captions(self, inputs: Iterable[Input]) -> Generator[list[Done]]:
        """The rows of all inputs, each once, some at a time; an empty list is a step in which none ended.

        No more inputs are taken than what fits into the batch and what is ready to follow. One that cannot be read
        becomes a row with its error. Raises what the iterator of inputs raises.
        """
        size, readers = self.options.batch_size, self.options.readers
        group = max(1, size // JOIN)
        batch = self.pipe.batch()
        drafted: list[_Underway] = []  # waiting for a place in the batch
        running: dict[int, _Underway] = {}  # by their drafts
        with closing(ReadAhead(self._read, inputs, readers, size + readers)) as reading:
            while True:
                done: list[Done] = []
                ended: list[Draft] = []
                # in this order: what is ready when all has been read stays ready
                last, room = reading.ended, size - len(running)
                waiting = len(drafted) + len(reading)
                if not running or min(waiting, room) >= group or (last and 0 < waiting <= room):
                    if len(drafted) < room:
                        taken = reading.take(size, wait=not running and not drafted)
                        if not (taken or drafted or running):
                            return
                        drafted += self._drafts(taken, done)
                    joining = nearest(drafted, room)
                    drafted = [one for one in drafted if one not in joining]
                    running |= {id(one.draft): one for one in joining}
                    ended += batch.join([one.draft for one in joining])
                ended += batch.step()
                yield done + [self._done(running.pop(id(draft))) for draft in ended]

    def failed(self, entry: Input, error: Exception, content: Content | None = None) -> Done:
        """What stands for an input that has no caption."""
        return failed(self.model, self.options, entry, error, content)

    def _read(self, entry: Input) -> _Underway:
        """On a thread: an input's media, decoded."""
        found = _Underway(entry, time.perf_counter(), entry.read())
        source = found.content.source
        items = media_items(**{entry.keyword: source})
        try:
            self.pipe.perception.check(items, self.options.reading, self.options.retrieval)
            found.items = self.pipe.processor.load(items, self.options.reading)
        except INPUT_ERRORS as error:  # "2 bytes is not a picture"
            raise MediaError(one_line(error, LONGEST).replace(describe_source(source), repr(entry.path))) from error
        if not self.keep_content:  # a batch of photos as they are stored takes more memory than their tensors
            found.content = replace(found.content, source=b"")
        return found

    def _drafts(self, taken: Sequence[tuple[Input, _Underway | Exception]], done: list[Done]) -> list[_Underway]:
        """What was read, encoded; what could not be read or encoded is `done`."""
        found: list[_Underway] = []
        for entry, read in taken:
            if isinstance(read, Exception):
                done.append(self.failed(entry, read))
            else:
                found.append(read)
        # a recording in windows is read while it is encoded, can break off, and cannot be read twice
        alone = [one for one in found if any(item.windows is not None for item in one.items)]
        groups = [[one] for one in alone]
        groups += [together] if (together := [one for one in found if one not in alone]) else []
        drafted = []
        while groups:
            members = groups.pop()
            try:
                drafts = self.pipe.drafts(
                    [self.options.prompt_of(one.entry) for one in members],
                    [one.items for one in members],
                    self.options.generation,
                    self.options.reading,
                    self.options.retrieval,
                )
            except INPUT_ERRORS as error:  # one of them is to blame
                if len(members) > 1:
                    groups += [[one] for one in members]
                else:
                    done.append(self.failed(members[0].entry, error, members[0].content))
                continue
            for one, draft in zip(members, drafts, strict=True):
                one.draft, one.items = draft, []
                drafted.append(one)
        return drafted

    def _done(self, one: _Underway) -> Done:
        result = one.draft.result()
        row = make_row(
            self.model,
            self.options,
            one.entry,
            sha256=one.content.sha256,
            caption=result.text,
            n_tokens=result.n_tokens,
            finish_reason=result.finish_reason,
            seconds=round(time.perf_counter() - one.began, 3),
        )
        return Done(row, one.entry, one.content if self.keep_content else None)


def failed(
    model: ModelIdentity, options: CaptionOptions, entry: Input, error: Exception, content: Content | None = None
) -> Done:
    """What stands for an input that has no caption."""
    message = one_line(error, LONGEST)
    if not isinstance(error, INPUT_ERRORS):
        message = f"unexpected {type(error).__name__}: {message}"
    how = {"n_tokens": 0, "finish_reason": "error", "seconds": 0.0, "status": "error", "error": message}
    return Done(make_row(model, options, entry, sha256=content and content.sha256, caption=None, **how), entry)


def make_row(model: ModelIdentity, options: CaptionOptions, entry: Input, **found: Any) -> CaptionRow:
    """A row of what is known before an input is read, and of what was found."""
    return CaptionRow(
        id=entry.id,
        path=entry.path,
        prompt=options.prompt_of(entry),
        model=model.name,
        config_hash=options.config_hash(model, entry),
        generation=options.drawn,
        **found,
    )


def nearest(drafted: Sequence[_Underway], room: int) -> list[_Underway]:
    """As many as there is room for: the one that has waited longest, and those whose prompts are nearest to its length.

    A prompt is padded to the longest that is read with it; and nobody is passed over for ever.
    """
    if len(drafted) <= room:
        return list(drafted)
    length = drafted[0].draft.prompt_tokens
    return sorted(drafted, key=lambda one: abs(one.draft.prompt_tokens - length))[:room]
