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
DESCRIBE_KINDS = {  # what is asked about other inputs where nothing else is
    "video": "Describe this video.",
    "audio": "Describe this sound.",
    "text": "Describe this.",
    "imu": "Describe this movement.",
    "point": "Describe this object.",
}
IGNORED = -100  # the label of a token the loss does not count

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response:"
)
ALPACA_WITH_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Input:\n{context}\n\n### Response:"
)


def render(
    tokenizer: PreTrainedTokenizerBase,
    config: PromptConfig,
    question: str | Sequence[dict[str, str]],
    has_media: bool,
) -> list[int]:
    """Token ids of a question, up to where the answer begins.

    A list of {"role", "content"} messages is a conversation; the alpaca template takes its last one. A message may
    also have a "context", what it is about: the alpaca template has a place for it, a chat gets it as a paragraph
    below the question. Without media a chat model gets exactly its own template, so that it answers as it always does.
    Raises ValueError for a chat template that the tokenizer does not have, for an empty question and for a context
    that is no text.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    if not messages or not messages[-1]["content"].strip():
        raise ValueError("the prompt is empty; ask something, or give no prompt for a description")
    for message in messages:
        if not isinstance(message.get("context"), str | None):
            raise ValueError(f"the context of a message must be a text, not {message['context']!r}")
    if config.template == "alpaca":
        last = messages[-1]
        return tokenizer(alpaca(config, last["content"], last.get("context"))).input_ids
    if tokenizer.chat_template is None:
        raise ValueError(
            'this language model has no chat template; use weights whose prompt template is "alpaca", '
            "or an instruction-tuned model"
        )
    messages = [_spelled_out(message) if "context" in message else message for message in messages]
    if has_media and config.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system}, *messages]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def alpaca(config: PromptConfig, question: str, context: str | None) -> str:
    """The alpaca prompt; whether an empty context counts as one is what the two published families differ in."""
    if context or (context is not None and config.empty_input):
        return ALPACA_WITH_CONTEXT.format(question=question, context=context)
    return ALPACA.format(question=question)


def describe(keywords: Sequence[str]) -> str:
    """The prompt that stands for none, about inputs of these kinds."""
    prompts = {DESCRIBE_KINDS.get(name, DESCRIBE) for name in keywords}
    return DESCRIBE if not prompts else prompts.pop() if len(prompts) == 1 else "Describe this."


def with_context(question: str | Sequence[dict[str, str]], context: str | None) -> str | list[dict[str, str]]:
    """The same question, with a context for its last turn; None leaves it as it is."""
    if context is None:
        return question
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    return [*messages[:-1], *({**message, "context": context} for message in messages[-1:])]


def supervise(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Input ids and labels of a training example: only the answer is learned."""
    return [*prompt_ids, *answer_ids], [IGNORED] * len(prompt_ids) + list(answer_ids)


def _spelled_out(message: dict[str, str]) -> dict[str, str]:
    """A chat message with its context below its content."""
    context = message["context"]
    rest = {key: value for key, value in message.items() if key != "context"}
    return {**rest, "content": f"{message['content']}\n\n{context}"} if context else rest
