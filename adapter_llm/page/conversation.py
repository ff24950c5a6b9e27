"""What was asked and answered so far, and what it is about. Knows neither the page nor the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..words import listed
from .attachments import LONGEST, MOST, Attachment

Message = dict[str, str]


@dataclass
class Turn:
    """A question and its answer, as far as there is one."""

    question: str
    shown: tuple[Attachment, ...] = ()  # what came with it
    answer: str = ""
    waiting: str = ""  # why there is no answer yet
    problem: str = ""  # why there will be none
    note: str = ""  # what should be known about the answer
    asked: dict[str, Any] = field(default_factory=dict)  # what the model was given, and
    ids: list[int] = field(default_factory=list)  # the tokens that it wrote: to explain the answer later

    @property
    def answered(self) -> bool:
        return bool(self.answer) and not self.problem


class Conversation:
    """Turns, and attachments that stay for all questions that follow."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.attachments: list[Attachment] = []

    def attach(self, attachment: Attachment) -> None:
        """Raises ValueError if there are too many."""
        if len(self.attachments) >= MOST:
            raise ValueError(f"a conversation has at most {MOST} attachments; remove one first")
        self.attachments.append(attachment)

    def change(self, place: int, **changes: Any) -> None:
        """Change the attachment in this place; a place that is not there (any more) is no matter."""
        if 0 <= place < len(self.attachments):
            self.attachments[place] = replace(self.attachments[place], **changes)

    def remove(self, place: int) -> Attachment | None:
        """Take an attachment out of all that follows."""
        return self.attachments.pop(place) if 0 <= place < len(self.attachments) else None

    def ask(self, question: str, stand_in: Callable[[Sequence[str]], str]) -> Turn:
        """A new turn, with what was attached since the last one.

        Without words `stand_in` says what is asked about these keywords. Raises ValueError if there is nothing to
        ask about, and for attachments that cannot be looked at.
        """
        question = _short(question)
        if broken := [one.name for one in self.attachments if one.problem]:
            them = "it" if len(broken) == 1 else "them"
            raise ValueError(f"{listed(broken)} cannot be looked at; remove {them}, then ask again")
        fresh = [one for one in self.attachments if not one.sent]
        if not question:
            about = [one.keyword for one in fresh or self.attachments if one.usable]
            if not about:
                raise ValueError("write a question, or attach something to be described")
            question = stand_in(about)
        if self.attachments and not any(one.weight > 0 for one in self.attachments):
            raise ValueError("all weights are 0; give at least one attachment a weight above 0")
        self.attachments = [replace(one, sent=True, in_box=False) for one in self.attachments]
        turn = Turn(question, tuple(fresh))
        self.turns.append(turn)
        return turn

    def again(self, place: int, question: str | None = None) -> Turn | None:
        """The turn in this place as if it had not been answered, the last one now; with other words if given.

        Turns behind it go, and what came with them. Raises ValueError for words that are too long.
        """
        question = _short(question or "")
        if not 0 <= place < len(self.turns):
            return None
        old = self.turns[place]
        gone = {one.id for turn in self.turns[place + 1 :] for one in turn.shown}
        self.attachments = [one for one in self.attachments if one.id not in gone]
        del self.turns[place:]
        turn = Turn(question or old.question, old.shown)
        self.turns.append(turn)
        return turn

    def messages(self, fits: Callable[[Sequence[Message]], bool]) -> tuple[list[Message], int]:
        """The last question and what went before, as messages, and how many of the oldest turns were left out.

        Turns are left out until `fits` holds; the last question never is.
        """
        before = [turn for turn in self.turns[:-1] if turn.answered]
        for left_out in range(len(before) + 1):
            found: list[Message] = []
            for turn in before[left_out:]:
                found.append({"role": "user", "content": turn.question})
                found.append({"role": "assistant", "content": turn.answer})
            found.append({"role": "user", "content": self.turns[-1].question})
            if left_out == len(before) or fits(found):
                return found, left_out
        raise AssertionError("a conversation has a last turn")


def _short(question: str) -> str:
    question = question.strip()
    if len(question) > LONGEST:
        raise ValueError(f"the question has {len(question)} characters; ask with at most {LONGEST}")
    return question
