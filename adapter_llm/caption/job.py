"""Many inputs to one output: what is finished stays, what is left is captioned, what cannot be read says why."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from imagebind_encoder.media.source import MediaError

from ..encoding import INPUT_ERRORS
from ..processing import MediaItem
from ..words import one_line
from .captioner import Captioner
from .content import Content
from .inputs import Input, Inputs, Problem, SourceOptions, read_inputs
from .interrupts import undisturbed
from .model import ModelFolders
from .options import CaptionOptions, failed
from .outputs import Done, Output
from .workers import WHOLE, Share

FLUSH = 5.0  # seconds after which finished rows are written, however few there are
TOLD = 10  # errors that are told while it runs; rows have them all


class CaptionError(RuntimeError):
    """An input that cannot be read, where that is to be the end."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    captioned: int = 0
    kept: int = 0  # were there already
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0  # without loading the model

    def __str__(self) -> str:
        total = self.captioned + self.kept + self.failed
        words = [f"{self.captioned} captioned"]
        words += [f"{self.kept} there already"] if self.kept else []
        words += [f"{self.failed} failed"] if self.failed else []
        seconds = max(self.seconds, 1e-9)
        speed = f", {self.captioned / seconds:.3g} captions/s, {self.tokens / seconds:.3g} tokens/s"
        said = f"{total} input{'s'[: total != 1]}: {', '.join(words)}; {self.seconds:.1f} s"
        return said + (speed if self.captioned else "")


@dataclass(frozen=True)
class Refused:
    """An input that is not read, and why."""

    entry: Input
    message: str


@dataclass(frozen=True)
class Job:
    """What is to be captioned, with what, and this process's share of it."""

    model: ModelFolders
    given: Sequence[str]
    sources: SourceOptions
    options: CaptionOptions
    share: Share = WHOLE
    on_error: str = "skip"  # or "fail": stop at the first input that cannot be read

    def __post_init__(self) -> None:
        if self.on_error not in ("skip", "fail"):
            raise ValueError(f"on_error must be skip or fail, not {self.on_error!r}")

    def left(self, inputs: Inputs, output: Output) -> Iterator[Input | Refused | Problem | None]:
        """What is to be done of this process's share; None for each input that is finished."""
        for entry in inputs:
            name = entry.id if isinstance(entry, Input) else entry.id or entry.input
            if name not in self.share:
                continue
            if isinstance(entry, Problem) and entry.id is not None:
                keyword = self.sources.forced or self.sources.keywords[0]
                entry = Refused(Input(entry.id, entry.input, keyword, None, _nothing), entry.message)
            if isinstance(entry, Input):
                if output.finished(entry.id, self.options.config_hash(self.model.identity, entry)):
                    entry = None
                elif message := output.refuses(entry):
                    entry = Refused(entry, message)
            yield entry

    def captioner(self, kinds: set[str] | None, keep_content: bool = False) -> Captioner:
        """With the model loaded, and of its trunks those of these kinds; None: all.

        Raises, beside what loading does, ValueError for what cannot be done with any input.
        """
        pipe = self.model.load(kinds)
        for keyword in kinds or pipe.keywords:
            pipe.perception.check([MediaItem(keyword, None)], self.options.reading, self.options.retrieval)
        return Captioner(pipe, self.model.identity, self.options, keep_content)


# what writes captions: a job, the kinds of its inputs if they are known, whether outputs keep contents, the inputs
Writer = Callable[[Job, set[str] | None, bool, Iterator[Input]], Generator[list[Done]]]


def write_here(
    job: Job, kinds: set[str] | None, keep_content: bool, inputs: Iterator[Input]
) -> Generator[list[Done]]:
    """In this process."""
    return job.captioner(kinds, keep_content).captions(inputs)


def run_job(job: Job, output: Output, show: bool = True, writer: Writer = write_here) -> Outcome:
    """Write a row for each input of this process's share that has none yet.

    The writer, and with it the model, is called for if there is something to do. Raises CaptionError at the first bad
    input, if `on_error` says so; what was finished until then is written, as it is when the user stops the job.
    """
    return _Run(job, output, show, writer)()


class _Run:
    def __init__(self, job: Job, output: Output, show: bool, writer: Writer) -> None:
        self.job, self.output, self.show, self.writer = job, output, show, writer
        self.waiting: list[Done] = []  # to be written
        self.written = time.monotonic()
        self.told: list[Refused | Problem] = []  # added to by the threads that walk through the inputs
        self.captioned = self.kept = self.failed = self.tokens = 0

    def __call__(self) -> Outcome:
        from tqdm import tqdm

        inputs = read_inputs(self.job.given, self.job.sources)
        total, finished, kinds = self._survey(inputs)
        entries = self._entries(inputs)
        first = self._first_of(entries)
        self._hear()
        if first is None:
            self._write(1)
            return self._outcome(inputs, 0.0)
        results = self.writer(self.job, kinds, self.output.keeps_media, chain([first], entries))
        began = time.monotonic()
        disable = None if self.show else True  # none where nobody looks
        with (
            closing(results),
            tqdm(total=total, initial=finished, unit=" inputs", file=sys.stderr, disable=disable) as bar,
        ):
            try:
                for done in results:
                    self._take(done)
                    self._hear()
                    bar.update(self.captioned + self.failed + finished - bar.n)
                    self._write(self.job.options.batch_size)
                self._hear()
            finally:
                self._write(1)
        return self._outcome(inputs, time.monotonic() - began)

    def _survey(self, inputs: Inputs) -> tuple[int | None, int, set[str] | None]:
        """How many inputs there are, how many of them are finished, and of which kinds the others are.

        Nothing is known of those that come by once, or from far away: None, and None for kinds that may be any.
        """
        if inputs.streams:
            return None, 0, self.job.sources.forced and {self.job.sources.forced}
        total, finished, kinds = 0, 0, set()
        for entry in self.job.left(inputs, self.output):
            total += 1
            finished += entry is None
            if isinstance(entry, Input):
                kinds.add(entry.keyword)
        return total, finished, kinds or None

    def _entries(self, inputs: Inputs) -> Iterator[Input]:
        """What is left to do; walked through by the threads that read, one at a time."""
        for entry in self.job.left(inputs, self.output):
            if entry is None:
                self.kept += 1
            elif isinstance(entry, Input):
                yield entry
            else:
                self.told.append(entry)

    def _first_of(self, entries: Iterator[Input]) -> Input | None:
        """The first input that a model is needed for: to say that a file is not there it is not."""
        for entry in entries:
            if entry.place is None or os.path.isfile(entry.place):
                return entry
            try:
                entry.read()
            except INPUT_ERRORS as error:
                self.told.append(Refused(entry, one_line(error)))
            else:
                return entry  # it came just now
        return None

    def _take(self, done: list[Done]) -> None:
        self.waiting += done
        for row in (one.row for one in done):
            if row.ok:
                self.captioned += 1
                self.tokens += row.n_tokens
            else:
                self._fail(row.path, row.error)

    def _hear(self) -> None:
        """Of inputs for which there is nothing to caption."""
        while self.told:
            one = self.told.pop(0)
            if isinstance(one, Problem):
                self._fail(one.input, one.message)
            else:
                error = MediaError(one.message)
                self._take([failed(self.job.model.identity, self.job.options, one.entry, error)])

    def _fail(self, name: str, message: str) -> None:
        from tqdm import tqdm

        self.failed += 1
        message = message if name in message else f"{name}: {message}"
        if self.job.on_error == "fail":
            raise CaptionError(f"{message}; with --on-error fail nothing more is done")
        if self.failed <= TOLD:
            tqdm.write(message, file=sys.stderr)
        if self.failed == TOLD:
            tqdm.write("further errors are in the rows with status error alone", file=sys.stderr)

    def _write(self, least: int) -> None:
        if len(self.waiting) >= least or (self.waiting and time.monotonic() - self.written > FLUSH):
            rows, self.waiting = self.waiting, []
            with undisturbed():
                failed = self.output.write(rows)
            self.written = time.monotonic()
            for row in (one.row for one in failed):  # what was captioned, and could not be kept
                self.captioned -= 1
                self._fail(row.path, row.error)

    def _outcome(self, inputs: Inputs, seconds: float) -> Outcome:
        if self.show and inputs.left_out:
            print(inputs.left_out, file=sys.stderr)
        return Outcome(self.captioned, self.kept, self.failed, self.tokens, seconds)


def _nothing() -> Content:
    raise MediaError("there is nothing to read")
