"""What is asked about inputs and how, and the rows that say so."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..encoding import INPUT_ERRORS
from ..processing import InputOptions
from ..prompts import describe
from ..results import GenerationOptions, NoNumbers
from ..retrieval import RetrievalOptions
from ..words import one_line
from .content import Content
from .done import Done
from .items import Input
from .model import ModelIdentity
from .rows import CaptionRow, config_hash

DRAWN = ("max_new_tokens", "temperature", "top_p", "seed")  # what rows and hashes say of how answers are drawn
LONGEST = 1000  # characters of an error


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
        names = (*DRAWN, "stop") if self.generation.stop else DRAWN
        return {name: getattr(self.generation, name) for name in names}

    def config_hash(self, model: ModelIdentity, entry: Input) -> str:
        """Of all that an input's caption depends on beside its bytes."""
        blend = None if self.retrieval is None else asdict(self.retrieval)
        reading = {"keyword": entry.keyword, "blend": blend, **asdict(self.reading)}
        return config_hash(model.fingerprint, self.prompt_of(entry), self.drawn, reading, model.dtype)


def failed(
    model: ModelIdentity, options: CaptionOptions, entry: Input, error: Exception, content: Content | None = None
) -> Done:
    """What stands for an input that has no caption."""
    message = one_line(error, LONGEST)
    if not isinstance(error, (*INPUT_ERRORS, NoNumbers)):
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
