"""Prompt templates: a question in, the text the decoder continues out.

"chat" is the tokenizer's own chat template; "alpaca" is what the published adapters were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .config import PromptConfig

DESCRIBE = "Describe this picture."
IGNORED = -100  # the label of a token the loss does not count

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response:"
)


def render(
    tokenizer: PreTrainedTokenizerBase,
    config: PromptConfig,
    question: str | Sequence[dict[str, str]],
    has_media: bool,
) -> list[int]:
    """Token ids of a question, up to where the answer begins.

    A list of {"role", "content"} messages is a conversation; the alpaca template takes its last one.
    Without media a chat model gets exactly its own template, so that it answers as it always does.
    Raises ValueError for a chat template that the tokenizer does not have, and for an empty question.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    if not messages or not messages[-1]["content"].strip():
        raise ValueError("the prompt is empty; ask something, or give no prompt for a description")
    if config.template == "alpaca":
        return tokenizer(ALPACA.format(question=messages[-1]["content"])).input_ids
    if tokenizer.chat_template is None:
        raise ValueError(
            'this language model has no chat template; use weights whose prompt template is "alpaca", '
            "or an instruction-tuned model"
        )
    if has_media and config.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system}, *messages]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def supervise(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Input ids and labels of a training example: only the answer is learned."""
    return [*prompt_ids, *answer_ids], [IGNORED] * len(prompt_ids) + list(answer_ids)
