"""Questions that the page offers as long as nothing was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent.parent / "examples"


@dataclass(frozen=True)
class Example:
    file: str
    keyword: str
    question: str

    @property
    def path(self) -> Path:
        return FOLDER / self.file

    def card(self) -> dict[str, Any]:
        """As Gradio's Chatbot takes it."""
        return {"text": self.question, "files": [str(self.path)]}


EXAMPLES = (
    Example("coffee.jpg", "image", "What is in this picture?"),
    Example("cat.jpg", "image", "What animal is this?"),
    Example("dog.ogg", "audio", "What do you hear?"),
    Example("running.csv", "imu", "What is this person doing?"),
)


def examples(taken: Sequence[str]) -> list[Example]:
    """Those that weights which take these keywords can answer, and whose files are there."""
    return [example for example in EXAMPLES if example.keyword in taken and example.path.is_file()]
