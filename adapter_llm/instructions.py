"""Training rows from records as the published datasets have them: instructions, questions about a picture, captions.

One record is one of
    {"instruction": ..., "output": ..., "input": ...}                 the input may be missing
    {"conversations": [{"value": question}, {"value": answer}, ...]}  the first question and its answer; "image"
    {"caption": ...}                                                  what the first stage is trained on
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .prompts import IGNORED, alpaca, render, with_context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .config import PromptConfig

CAPTION = "Generate caption of this image"  # word for word what the published weights were asked
PLACEHOLDER = "<image>"  # where a record says that its picture is; here a picture takes no place in the text


@dataclass(frozen=True)
class Instruction:
    """What is asked, perhaps about a context, and the answer to learn."""

    question: str
    context: str | None
    answer: str
    has_media: bool

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Instruction:
        """Raises ValueError for a record of no known shape, and for a part of it that is no text."""
        if "conversations" in record:
            turns = record["conversations"]
            if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, Mapping) for turn in turns):
                raise ValueError(f"a conversation needs a question and an answer, not {turns!r}")
            return cls(_text(turns[0], "value"), None, _text(turns[1], "value"), "image" in record)
        if "instruction" in record and "output" in record:
            context = _text(record, "input") if record.get("input") is not None else None
            return cls(_text(record, "instruction"), context, _text(record, "output"), "image" in record)
        if "caption" in record:
            return cls(CAPTION, None, _text(record, "caption"), True)
        raise ValueError(
            f"a record with the keys {', '.join(map(str, record)) or '(none)'} is no training record; it needs "
            "instruction and output, or conversations, or caption"
        )


@dataclass(frozen=True)
class TrainingRow:
    """Token ids, which of them are there (1) and what is learned, all of one length."""

    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]


def training_row(
    record: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptConfig,
    max_words: int,
    *,
    faithful: bool = False,
) -> TrainingRow:
    """The row of one record, at most `max_words` tokens long, its labels IGNORED except for the answer.

    A row that is too long is cut and still ends with the end token. `faithful` gives the originals' rows, which are
    filled up to `max_words`: see `published_row`. Raises ValueError for a record that `Instruction` does not know, and
    for a prompt that leaves no room for an answer.
    """
    asked = Instruction.of(record)
    if faithful:
        return published_row(asked, tokenizer, prompt, max_words)
    question = asked.question.replace(PLACEHOLDER, "").strip() if asked.has_media else asked.question
    prompt_ids = render(tokenizer, prompt, with_context(question, asked.context), asked.has_media)
    room = max_words - len(prompt_ids) - 1
    if room < 1:
        raise ValueError(
            f"the prompt {question[:40]!r}... has {len(prompt_ids)} tokens, which leaves no room for an answer "
            f"within {max_words}; shorten it or allow more"
        )
    answer_ids = tokenizer(asked.answer, add_special_tokens=False).input_ids
    if prompt.template == "alpaca":  # nothing separates the two: the answer's tokens depend on what is before them
        whole = tokenizer(alpaca(prompt, question, asked.context) + asked.answer).input_ids
        if whole[: len(prompt_ids)] == prompt_ids:  # otherwise a token reaches over, which no answer begins with
            answer_ids = whole[len(prompt_ids) :]
    ids = [*prompt_ids, *answer_ids[:room], tokenizer.eos_token_id]
    return TrainingRow(ids, [1] * len(ids), [IGNORED] * len(prompt_ids) + ids[len(prompt_ids) :])


def published_row(
    asked: Instruction, tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, max_words: int
) -> TrainingRow:
    """The row that the published weights were trained on, to the token.

    Instructions without a picture are written as a tuple of one, ("Name three colours.",). Tokens and labels are 0
    where there is nothing to learn, so that token 0 is never learned; the prompt's length is that of the prompt alone;
    a row that is too long is cut without an end token, and one whose prompt is too long has no label at all.
    """
    question = asked.question if asked.has_media else str((asked.question,))
    text = alpaca(prompt, question, asked.context)
    masked = len(tokenizer(text).input_ids)
    ids = [*tokenizer(text + asked.answer).input_ids, tokenizer.eos_token_id][:max_words]
    padding = [0] * (max_words - len(ids))
    return TrainingRow(
        input_ids=ids + padding,
        attention_mask=[1] * len(ids) + padding,
        labels=[0 if n < masked else token for n, token in enumerate(ids)] + padding,
    )


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f'"{key}" of a training record must be a text, not {value!r}')
    return value
