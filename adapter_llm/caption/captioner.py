"""One process's work: inputs in, rows out, in the order in which they are finished.

Media are decoded on threads. What has been decoded is encoded together and becomes drafts, and drafts join the batch
that is being written as soon as enough of its rows have ended.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from imagebind_encoder.media.source import MediaError
from imagebind_encoder.media.source import describe as describe_source

from ..encoding import INPUT_ERRORS
from ..processing import LoadedItem, media_items
from ..results import NoNumbers
from ..words import one_line
from .content import Content
from .inputs import Input
from .model import ModelIdentity
from .options import LONGEST, CaptionOptions, failed, make_row
from .outputs import Done
from .reading import ReadAhead

if TYPE_CHECKING:
    from ..batch import RunningBatch
    from ..pipeline import Pipeline
    from ..writing import Draft

GIVEN_UP = 100  # inputs in succession that break off, after which it is not the inputs that are to blame
PATIENCE = 1.0  # seconds for which nothing comes; then whoever takes the rows may see to those it has
JOIN = 4  # rows join when a quarter of the batch is free: to read a prompt costs less together with others


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
        self._broken = 0  # inputs in succession

    def captions(self, inputs: Iterable[Input]) -> Generator[list[Done]]:
        """The rows of all inputs, each once, some at a time; an empty list is a step in which none ended.

        No more inputs are taken than what fits into the batch and what is ready to follow. One that cannot be read,
        or breaks whatever is done with it, becomes a row with its error. Raises what the iterator of inputs raises,
        and what breaks with every input.
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
                        taken = reading.take(size, 0.0 if running or drafted else PATIENCE)
                        if not (taken or drafted or running):
                            if last:
                                return
                            yield done
                            continue
                        drafted += self._drafts(taken, done)
                    joining = nearest(drafted, room)
                    drafted = [one for one in drafted if one not in joining]
                    running |= {id(one.draft): one for one in joining}
                    ended += self._written(batch, [one.draft for one in joining], running, done)
                ended += self._written(batch, None, running, done)
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
            except Exception as error:
                if len(members) > 1:  # one of them is to blame, or so many at once
                    groups += [members[len(members) // 2 :], members[: len(members) // 2]]
                else:
                    done.append(self._break_off(members[0], error))
                continue
            for one, draft in zip(members, drafts, strict=True):
                one.draft, one.items = draft, []
                drafted.append(one)
        return drafted

    def _written(
        self, batch: RunningBatch, joining: list[Draft] | None, running: dict[int, _Underway], done: list[Done]
    ) -> list[Draft]:
        """The drafts that ended with the next token of the batch, or the first of those that join it.

        What breaks together is tried one by one, and the others go on where they were.
        """
        try:
            ended = batch.step() if joining is None else batch.join(joining)
        except Exception as error:
            drafts, ended = batch.clear() if joining is None else joining, []
            for draft in drafts:
                try:
                    if len(drafts) == 1:
                        raise error
                    ended += batch.join([draft])
                except Exception as own:
                    done.append(self._break_off(running.pop(id(draft)), own))
        if ended:
            self._broken = 0
        return ended

    def _break_off(self, one: _Underway, error: Exception) -> Done:
        """The row of an input that is to blame for an error. Raises the error if all inputs are, as it seems."""
        if not isinstance(error, INPUT_ERRORS):
            self._broken += 1
            if self._broken >= GIVEN_UP:
                raise error
        return self.failed(one.entry, error, one.content)

    def _done(self, one: _Underway) -> Done:
        result = one.draft.result()
        if result.error:
            return self.failed(one.entry, NoNumbers(), one.content)
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


def nearest(drafted: Sequence[_Underway], room: int) -> list[_Underway]:
    """As many as there is room for: the one that has waited longest, and those whose prompts are nearest to its length.

    A prompt is padded to the longest that is read with it; and nobody is passed over for ever.
    """
    if len(drafted) <= room:
        return list(drafted)
    length = drafted[0].draft.prompt_tokens
    return sorted(drafted, key=lambda one: abs(one.draft.prompt_tokens - length))[:room]
