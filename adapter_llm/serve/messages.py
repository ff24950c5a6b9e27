"""OpenAI's messages as a conversation for the chat template, and the media that the question is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ApiError, too_long
from .fields import Fields
from .parts import MediaPart, read_part

if TYPE_CHECKING:
    from ..pipeline import Pipeline

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MOST_MESSAGES = 1000
CHARACTERS = 16  # of a token; few have more
UNSUPPORTED = {"tool_calls": ([],), "function_call": (), "audio": ()}


def read_messages(messages: Any) -> tuple[list[dict[str, str]], list[MediaPart]]:
    """Role and content of each message, and the media of the last user message that has any.

    The adapter shows the language model one set of inputs at a time: earlier ones are not looked at again.
    Raises ApiError.
    """
    if not isinstance(messages, list) or not 1 <= len(messages) <= MOST_MESSAGES:
        raise ApiError(f"messages must be a list of 1 to {MOST_MESSAGES} messages", "messages")
    conversation, shown_last = [], []
    for number, given in enumerate(messages):
        role, text, media = _read(Fields(given, f"messages[{number}]"))
        conversation.append({"role": role, "content": text})
        shown_last = media or shown_last
    if not conversation[-1]["content"].strip() and not (shown_last and conversation[-1]["role"] == "user"):
        raise ApiError("the last message is empty; ask something", f"messages[{len(messages) - 1}].content")
    return conversation, shown_last


def check_messages(messages: Sequence[Mapping[str, str]], pipe: Pipeline) -> None:
    """Raise ApiError for a conversation that this pipeline's prompt has no place for, before anything is done for it.

    Without a chat template it takes the last message alone, as an instruction. A tokenizer takes seconds for a
    megabyte, so that what is absurdly long is refused by its characters.
    """
    if pipe.config.prompt.template == "alpaca":
        messages, place = messages[-1:], f"messages[{len(messages) - 1}].role"
        if messages[0]["role"] != "user":
            raise ApiError(
                f"the last message is of the {messages[0]['role']}, and these weights, which have no chat, answer the "
                "user's last message alone; end with that", place,
            )  # fmt: skip
    room, characters = pipe.answerer.max_length, sum(len(message["content"]) for message in messages)
    if room is not None and characters > CHARACTERS * room:
        raise too_long(
            f"the messages have {characters} characters, and prompt and answer together may have {room} tokens; "
            "shorten them"
        )


def _read(fields: Fields) -> tuple[str, str, list[MediaPart]]:
    if fields.values.get("role") in ("tool", "function"):
        raise ApiError(f"{fields.where} is of a tool, and this server has no tools", f"{fields.where}.role")
    role = fields.choice("role", tuple(ROLES))
    fields.neutral(UNSUPPORTED)
    fields.only(("role", "content", "name", "refusal", "annotations", *UNSUPPORTED))
    content = fields.values.get("content", "")
    if isinstance(content, str):
        return ROLES[role], content, []
    if not isinstance(content, list):
        raise fields.wrong("content", "a text or a list of content parts")
    texts, media = [], []
    for number, part in enumerate(content):
        place = f"{fields.place('content')}[{number}]"
        found = _refusal(part, place) if role == "assistant" else None
        found = read_part(part, place) if found is None else found
        (texts if isinstance(found, str) else media).append(found)
    if media and role != "user":
        place = media[0].where
        raise ApiError(f"{place} is in a message of the {role}; only the user's may have media", place)
    return ROLES[role], "\n".join(texts), media


def _refusal(part: Any, place: str) -> str | None:
    """What an assistant said instead of an answer: to the language model it is a text like others."""
    if not isinstance(part, dict) or part.get("type") != "refusal":
        return None
    return Fields(part, place).text("refusal") or ""
