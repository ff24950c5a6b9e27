"""Training examples of inputs other than photos: sounds, words, movement, films.

All modalities share one space, so an example is features, whatever made them, and words about them. What sets the
kinds apart is how people ask: a photo of a dog shows one, its bark is heard.
Shapes: M examples, N features, E encoder width.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Example, tidy
from .prompts import DESCRIBE_KINDS
from .sounds import Sound
from .vocabulary import with_article

SOUND_QUESTIONS = (
    "What is this sound?",
    "What do you hear?",
    "What can you hear?",
    "What is in this recording?",
    "What makes this sound?",
    DESCRIBE_KINDS["audio"],
)
SOUND_YES_NO = ("Do you hear {}?", "Is this the sound of {}?", "Is there {} in this recording?")
YES_NO_SHARE = 0.2  # of the questions about sounds
MOTION_QUESTIONS = (
    "What is this person doing?",
    "What activity is this?",
    "What is the person doing?",
    DESCRIBE_KINDS["imu"],
)
# what one hears without an article; plurals are told by their ending
UNCOUNTED = "speech laughter applause rain thunder wind water fire wood glass".split()
TEXT_QUESTIONS = ("What is this?", "What is this about?", "What does it say?", DESCRIBE_KINDS["text"])


def heard(name: str) -> str:
    """A sound's name as it stands in a sentence: "a dog", "rain", "footsteps"."""
    last = name.split()[-1]
    return name if last.endswith("s") or last in UNCOUNTED else with_article(name)


@dataclass(frozen=True)
class Sense:
    """Features of one kind of input, and what may be said about each."""

    features: Tensor  # (M, N, E)
    answers: Sequence[Sequence[str]]  # of each
    questions: tuple[str, ...]
    share: float  # of all examples
    classes: Sequence[Sound] = ()  # of each; without them there are no questions for yes or no


def imagine_sounds(names: Tensor, captions: Tensor, copies: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (M, 2, E) of sounds that nobody recorded, and their classes (M,): M is `copies` a class.

    `names` and `captions` (classes, E) are sentence embeddings. A hearer is never quite sure: each feature is a
    mixture of a class and what resembles it, weighted as a classifier would: just what the audio trunk's tokens are.
    """
    generator = torch.Generator().manual_seed(seed)
    similar = names @ names.T
    labels = torch.arange(len(names)).repeat(copies)
    certainty = torch.rand(len(labels), 1, generator=generator) * 0.7 + 0.3
    doubt = torch.softmax(12 * similar[labels] + 3 * torch.randn(len(labels), len(names), generator=generator), -1)
    belief = certainty * F.one_hot(labels, len(names)) + (1 - certainty) * doubt
    right = belief.argmax(-1) == labels
    belief, labels = belief[right], labels[right]
    features = torch.stack([belief @ names, belief @ captions], dim=1)
    return F.normalize(features, dim=-1), labels


class SenseExamples:
    """Draws from several senses, and from photos, which may also be frames of a film."""

    def __init__(
        self,
        senses: Sequence[Sense],
        photos: Callable[[int], Sequence[Example]],
        film_share: float,
        noise: float,
        seed: int = 0,
    ) -> None:
        self.senses, self.photos, self.film_share, self.noise = senses, photos, film_share, noise
        self.rng = random.Random(seed)

    def draw(self, count: int) -> list[Example]:
        examples: list[Example] = []
        for _ in range(count):
            place = self.rng.random()
            for sense in self.senses:
                if place < sense.share:
                    examples.append(self._of(sense))
                    break
                place -= sense.share
        missing = count - len(examples)
        photos = self.photos(missing) if missing else []
        return examples + [as_film(one) if self.rng.random() < self.film_share else one for one in photos]

    def _of(self, sense: Sense) -> Example:
        row = self.rng.randrange(len(sense.features))
        features = sense.features[row].float()
        features = features + self.noise * torch.randn(features.shape)
        answer = tidy(self.rng.choice(sense.answers[row]))
        if sense.classes and self.rng.random() < YES_NO_SHARE:
            return self._yes_no(sense.classes, row, features, answer)
        return Example(features, self.rng.choice(sense.questions), answer)

    def _yes_no(self, classes: Sequence[Sound], row: int, features: Tensor, answer: str) -> Example:
        asked, own = classes[row], set(classes[row].names)
        others = [] if self.rng.random() < 0.5 else [other for other in classes if not own & set(other.names)]
        if others:
            asked = self.rng.choice(others)
        yes = not others
        question = self.rng.choice(SOUND_YES_NO).format(heard(asked.name))
        return Example(features, question, f"{'Yes' if yes else 'No'}, {answer[:1].lower()}{answer[1:]}")


def as_film(example: Example) -> Example:
    """The same, asked about a film instead of a photo."""

    def words(text: str) -> str:
        return re.sub(r"\b(picture|photo|image)\b", "video", text)

    return Example(example.features, words(example.question), words(example.answer))
