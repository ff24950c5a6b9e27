"""Training examples: captioned pictures from disk, and the questions and answers made of them."""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from .prompts import DESCRIBE, IGNORED, render, supervise
from .vocabulary import Concept, with_article

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .config import PromptConfig

FIRST_WORD = 4.0  # weight of an answer's first token: yes or no, a thing or a scene, is decided there

WHAT = (
    "What is in this picture?",
    "What is this?",
    "What do you see?",
    "What does this picture show?",
    "What can you see in this image?",
    "Can you tell me what this is?",
)
TELL = (
    DESCRIBE,
    "Describe this image in one sentence.",
    "Write a caption for this picture.",
    "What is happening here?",
)
IS_THERE = (
    "Is there {} in this picture?",
    "Is there {} in this image?",
    "Do you see {} in this picture?",
    "Does this picture show {}?",
    "Can you see {} here?",
)
IS_THIS = ("Is this {}?", "Is this a picture of {}?")

# kinds that questions are about: few enough to be learned from a few thousand of them
ASKED = (
    "dog cat bird fish snake insect animal vehicle car boat building furniture food fruit instrument clothing "
    "person flower bottle ball"
).split()

# words of everyday captions, each with the words that also mean it
SCENE_WORDS = {
    "dog": "dog dogs puppy",
    "man": "man men guy",
    "woman": "woman women lady ladies",
    "boy": "boy boys",
    "girl": "girl girls",
    "child": "child children kid kids boy boys girl girls toddler baby",
    "person": "person people man men woman women boy boys girl girls child children kid kids guy lady someone "
    "player players skier surfer rider climber swimmer biker hiker toddler baby",
    "ball": "ball football soccer baseball basketball tennis volleyball",
    "bicycle": "bicycle bike bikes bicyclist biker cyclist",
    "car": "car cars",
    "horse": "horse horses",
    "cat": "cat cats kitten",
    "bird": "bird birds seagull",
    "beach": "beach",
    "mountain": "mountain mountains cliff",
    "tree": "tree trees",
    "boat": "boat boats kayak canoe",
    "hat": "hat cap hats",
}
SCENE_STUFF = {
    "water": "water ocean sea lake river pool wave waves swimming splashes surfing",
    "snow": "snow snowy ski skier skiing snowboard snowboarder",
    "grass": "grass grassy lawn field",
    "sand": "sand sandy beach",
}


@dataclass(frozen=True)
class CaptionedImage:
    path: Path
    captions: tuple[str, ...]


def read_captions(captions: Path, images: Path | None = None) -> list[CaptionedImage]:
    """A CSV file with the columns `image` and `caption`, or a folder of pictures each beside its `.txt`.

    Paths in the file are relative to `images`, or to the file's own folder. Rows of one image are joined.
    Raises ValueError, naming the line, for what is missing.
    """
    found: dict[Path, list[str]] = {}
    if captions.is_dir():
        for text in sorted(captions.rglob("*.txt")):
            pictures = [p for p in text.parent.glob(f"{text.stem}.*") if p != text]
            if pictures:
                lines = [line for line in text.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
                if not lines:
                    raise ValueError(f"{text} holds no caption for {pictures[0].name}")
                found[pictures[0]] = lines
    else:
        with captions.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark in front
            rows = csv.DictReader(file)
            if not {"image", "caption"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{captions} needs the columns image and caption, it has {rows.fieldnames}")
            for row in rows:
                path = (images or captions.parent) / (row["image"] or "")
                if not path.is_file():
                    raise ValueError(f"{captions}, line {rows.line_num}: there is no picture {path}")
                if not (row["caption"] or "").strip():
                    raise ValueError(f"{captions}, line {rows.line_num}: {path.name} has no caption")
                found.setdefault(path, []).append(row["caption"])
    if not found:
        raise ValueError(f"{captions} has no captioned pictures; see docs/training.md for the layout")
    return [CaptionedImage(path, tuple(map(tidy, lines))) for path, lines in found.items()]


def tidy(caption: str) -> str:
    """One clean sentence: no blanks before punctuation, a capital in front, a full stop at the end."""
    caption = re.sub(r"\s+([.,!?;:])", r"\1", " ".join(caption.split())).replace('"', "").rstrip(" .")
    return f"{caption[:1].upper()}{caption[1:]}."


def is_held_out(name: str, share: float) -> bool:
    """Whether a file is for validation; depends on its name alone, so that every run splits alike."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8 < share


@dataclass(frozen=True)
class Example:
    """One thing to learn: features (N, E), a question about them and its answer."""

    features: Tensor
    question: str
    answer: str


def ask_about_concept(
    concept: Concept, others: Sequence[Concept], rng: random.Random, yes_no: float = 0.5
) -> tuple[str, str]:
    """A question about a picture of `concept` and its answer; `others` are what it is not.

    `yes_no` is the share of questions for yes or no, half of which are answered with yes.
    """
    name = with_article(concept.name)
    fact = f"This is a photo of {name}."
    if rng.random() < yes_no:
        question = IS_THERE[0] if rng.random() < 0.5 else rng.choice(IS_THERE + IS_THIS)
        if rng.random() < 0.5:
            asked = _thing_to_ask(concept, (), rng)
            return question.format(with_article(asked)), f"Yes, this is a photo of {name}."
        asked = _thing_to_ask(rng.choice(others), (*concept.kinds, *concept.names), rng)
        return question.format(with_article(asked)), f"No, this is a photo of {name}."
    draw = rng.random()
    if draw < 0.68:
        return (WHAT[0] if rng.random() < 0.5 else rng.choice(WHAT)), fact
    if draw < 0.83:
        return rng.choice(TELL), f"This is a photo of {name}, a kind of {concept.kinds[0]}." if concept.kinds else fact
    if draw < 0.94:
        what = "animal" if concept.is_animal else "thing"
        return f"What kind of {what} is this?", f"This is a kind of {concept.kinds[0]}." if concept.kinds else fact
    pair = [name, with_article(rng.choice(others).name)]
    rng.shuffle(pair)
    return f"Is this {pair[0]} or {pair[1]}?", fact


def _thing_to_ask(concept: Concept, excluded: Sequence[str], rng: random.Random) -> str:
    """A common kind that the concept is, most often the nearest, or its name; none of the excluded words.

    Drawn alike for yes and no, so that the word alone does not give the answer away.
    """
    kinds = [kind for kind in concept.kinds if kind in ASKED and kind not in excluded]
    if kinds and rng.random() < 0.85:
        return kinds[0] if rng.random() < 0.7 else rng.choice(kinds)
    if concept.name not in excluded:
        return concept.name
    return rng.choice([kind for kind in ASKED if kind not in excluded])


def scene_words(captions: Sequence[str]) -> list[str]:
    """The common things that the captions speak of."""
    said = set(re.findall("[a-z]+", " ".join(captions).lower()))
    words = {**SCENE_WORDS, **SCENE_STUFF}
    return [word for word, meaning in words.items() if said & set(meaning.split())]


def ask_about_scene(captions: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """A question about a captioned picture and its answer; what no caption mentions counts as absent."""
    if rng.random() < 0.55:
        question = WHAT[0] if rng.random() < 0.4 else rng.choice(WHAT[:1] + WHAT[2:5] + TELL)
        # long captions tell details that no small encoder sees, and teach to ramble
        return question, rng.choice(sorted(captions, key=len)[:3])
    present = scene_words(captions)
    absent = [word for word in (*SCENE_WORDS, *SCENE_STUFF) if word not in present]
    if rng.random() < 0.35:
        word = "dog"  # half of the photos show one: a question that its word alone does not answer
    else:
        word = rng.choice(present if present and rng.random() < 0.5 else absent)
    answer = "Yes, there is {} in this picture." if word in present else "No, there is no {} in this picture."
    thing = word if word in SCENE_STUFF else with_article(word)
    answer = answer.format(thing if answer.startswith("Yes") else word)
    return (IS_THERE[0] if rng.random() < 0.5 else rng.choice(IS_THERE)).format(thing), answer


def caption_examples(
    photos: Sequence[CaptionedImage], features_of: Callable[[Path], Tensor], seed: int = 0
) -> Callable[[int], list[Example]]:
    """A sampler of questions about captioned pictures, each encoded once; one that cannot be read stops it all."""
    with tqdm(photos, desc="encoding pictures") as progress:  # closed before an error is told
        features = [features_of(photo.path) for photo in progress]
    rng = random.Random(seed)

    def sample(count: int) -> list[Example]:
        chosen = [rng.randrange(len(photos)) for _ in range(count)]
        return [Example(features[n], rng.choice(WHAT + TELL), rng.choice(photos[n].captions)) for n in chosen]

    return sample


def collate(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig
) -> dict[str, Tensor]:
    """Features (B, N, E); input_ids, attention_mask, labels and weights (B, T), padded on the right."""
    rows = []
    for example in examples:
        question = render(tokenizer, prompt, example.question, has_media=True)
        answer = tokenizer(example.answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        rows.append(supervise(question, answer))
    length = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    labels = torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows])
    first = ((labels != IGNORED).cumsum(1) == 1).float()
    return {
        "features": torch.stack([example.features for example in examples]).float(),
        "input_ids": torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]),
        "labels": labels,
        "weights": 1 + (FIRST_WORD - 1) * first,
    }
