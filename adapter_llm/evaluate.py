"""How often answers are true, on labelled photos: names, captions, yes or no.

Used by `python -m adapter_llm evaluate` and for the numbers in a manifest. Greedy decoding throughout.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data import ASKED, SCENE_WORDS, CaptionedImage, is_held_out, read_captions
from .pipeline import Pipeline, Result
from .vocabulary import Concept, class_names, mentions, with_article

WHAT = "What is in this picture?"
# words that say nothing about a picture
EMPTY_WORDS = frozenset(
    "a an the in on of to and with is are be being at by from for as up down out into over off near next this that "
    "these those there it its he she they his her their them him who which while through across along around behind "
    "front some one two three four other another each all very has have having photo picture image shows showing "
    "kind what or not no yes".split()
)


@dataclass(frozen=True)
class Score:
    """A share, of how many, and the answers that missed, as (file, wanted, answer)."""

    share: float
    count: int
    missed: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def of(cls, missed: Sequence[tuple[str, str, str]], count: int) -> Score:
        """All but those that missed; of nothing at all, the share is 0."""
        return cls(1 - len(missed) / count if count else 0.0, count, tuple(missed))

    def __str__(self) -> str:
        return f"{self.share:.3f} of {self.count}"


@dataclass(frozen=True)
class LabelledImage:
    path: Path
    synset: str
    label: str

    @property
    def names(self) -> tuple[str, ...]:
        """The label and its WordNet synonyms."""
        return (self.label, *class_names().get(self.synset, ()))


def read_labels(labels: Path, images: Path) -> list[LabelledImage]:
    """A CSV file with the columns image, synset and label. Raises ValueError for other columns."""
    with labels.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"image", "synset", "label"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{labels} needs the columns image, synset and label, it has {rows.fieldnames}")
        return [LabelledImage(images / row["image"], row["synset"], row["label"]) for row in rows]


def held_out(items: Sequence, share: float) -> list:
    """Those of the items (with a `path`) that training leaves alone."""
    return [item for item in items if is_held_out(item.path.name, share)]


def content_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) - EMPTY_WORDS


def score_names(pipe: Pipeline, photos: Sequence[LabelledImage], prompt: str = WHAT, batch_size: int = 32) -> Score:
    """Share of photos whose label, or a synonym of it, stands in the answer."""
    wanted = [(photo.path, photo.label, photo.names) for photo in photos]
    return score_mentions(pipe, wanted, prompt, batch_size=batch_size, max_new_tokens=40)


def score_mentions(
    pipe: Pipeline, wanted: Sequence[tuple[Path, str, Sequence[str]]], prompt: str, **options: Any
) -> Score:
    """Share of files, each with its label and all its names, of which a name stands in the answer.

    `options` are those of `pipe.caption`.
    """
    answers = pipe.caption([path for path, _, _ in wanted], prompt, **options)
    missed = [
        (path.name, label, said(answer))
        for (path, label, names), answer in zip(wanted, answers, strict=True)
        if not mentions(answer.text, names)
    ]
    return Score.of(missed, len(wanted))


def score_captions(
    pipe: Pipeline, photos: Sequence[CaptionedImage], prompt: str | None = None, batch_size: int = 32
) -> Score:
    """Share of photos whose answer has a content word in common with one of their captions."""
    answers = pipe.caption([p.path for p in photos], prompt, batch_size=batch_size, max_new_tokens=40)
    missed = [
        (photo.path.name, photo.captions[0], said(answer))
        for photo, answer in zip(photos, answers, strict=True)
        if not content_words(answer.text) & content_words(" ".join(photo.captions))
    ]
    return Score.of(missed, len(photos))


def score_yes_no(pipe: Pipeline, questions: Sequence[tuple[Path, str, bool]], batch_size: int = 32) -> Score:
    """Share of (image, question, truth) that are answered with the right one of yes and no."""
    answers = pipe.caption(
        [path for path, _, _ in questions], [text for _, text, _ in questions],
        batch_size=batch_size, max_new_tokens=24,
    )  # fmt: skip
    missed = [
        (path.name, f"{text} {'Yes' if truth else 'No'}", said(answer))
        for (path, text, truth), answer in zip(questions, answers, strict=True)
        if not answer.text.lower().startswith("yes" if truth else "no")
    ]
    return Score.of(missed, len(questions))


def said(answer: Result) -> str:
    return answer.text if answer.error is None else f"({answer.error})"


def thing_questions(
    photos: Sequence[LabelledImage], concepts: Sequence[Concept], seed: int = 0
) -> list[tuple[Path, str, bool]]:
    """For each photo one common kind it is and one it is not: "Is there a bird in this picture?"."""
    rng = random.Random(seed)
    common = {concept.synset: [kind for kind in concept.kinds if kind in ASKED] for concept in concepts}
    nearest_kinds = [kinds[0] for kinds in common.values() if kinds]  # some are more common than others
    questions = []
    for photo in photos:
        kinds = common[photo.synset]
        if kinds:
            wrong = rng.choice([kind for kind in nearest_kinds if kind not in kinds])
            questions += [(photo.path, ask_for(kinds[0]), True), (photo.path, ask_for(wrong), False)]
    return questions


def word_questions(
    photos: Sequence[CaptionedImage], word: str, seed: int = 0
) -> list[tuple[Path, str, bool]]:
    """As many photos whose captions speak of `word` as photos whose captions do not."""
    meaning = set(SCENE_WORDS[word].split())
    present = [p for p in photos if meaning & content_words(" ".join(p.captions))]
    absent = [p for p in photos if p not in present]
    count = min(len(present), len(absent))
    rng = random.Random(seed)
    chosen = [(p, True) for p in rng.sample(present, count)] + [(p, False) for p in rng.sample(absent, count)]
    return [(photo.path, ask_for(word), truth) for photo, truth in chosen]


def ask_for(thing: str) -> str:
    return f"Is there {with_article(thing)} in this picture?"


def measure(
    pipe: Pipeline, data: Path, concepts: Sequence[Concept] | None, objects_share: float, scenes_share: float
) -> dict[str, Score]:
    """Every score on the held-out photos of a folder with objects.csv, objects/, scenes.csv and scenes/."""
    objects = held_out(read_labels(data / "objects.csv", data / "objects"), objects_share)
    scenes = held_out(read_captions(data / "scenes.csv", data / "scenes"), scenes_share)
    scores = {
        "objects: named when asked what is in the picture": score_names(pipe, objects),
        "objects: named in a description": score_names(pipe, objects, "Describe this picture."),
        "scenes: shares a content word when asked what is in the picture": score_captions(pipe, scenes, WHAT),
        "scenes: shares a content word in a description": score_captions(pipe, scenes),
        "yes or no, dog, in scenes": score_yes_no(pipe, word_questions(scenes, "dog")),
        "yes or no, person, in scenes": score_yes_no(pipe, word_questions(scenes, "person")),
    }
    if concepts is not None:
        scores["yes or no, twenty common kinds, in objects"] = score_yes_no(pipe, thing_questions(objects, concepts))
        dogs = {c.synset for c in concepts if "dog" in c.kinds}
        present = [p for p in objects if p.synset in dogs]
        absent = [p for p in objects if p.synset not in dogs][: len(present)]
        questions = [(p.path, ask_for("dog"), p.synset in dogs) for p in present + absent]
        scores["yes or no, dog, in objects"] = score_yes_no(pipe, questions)
    return scores
