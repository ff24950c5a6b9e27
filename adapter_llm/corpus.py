"""Texts for the text trunk to learn from: WordNet's words and sentences, class names, captions put together anew.

What people write into a search field is short: a word, a caption, a question. So most of this is, too.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data import IS_THERE, IS_THIS, SCENE_STUFF, SCENE_WORDS, TELL, WHAT, is_held_out
from .vocabulary import Concept, _read_nouns, with_article

HELD_OUT = 0.03  # of the noun synsets
RECOMBINED = 80_000  # captions put together from pieces of others, and half as many sentences of two things
LONGEST = 400  # characters; few texts have more
CAPTION_COPIES, CLASS_COPIES = 4, 2  # what counts most comes several times
PARTS = ("noun", "verb", "adj", "adv")
PHOTO = (
    "a photo of {a}", "A photo of {a}.", "a photo of the {n}", "This is a photo of {a}.", "a picture of {a}",
    "an image showing {a}", "{a}", "the {n}", "{a} seen from close up", "{a} far away", "a blurred picture of {a}",
    "somebody drew {a}", "There is {a} in this picture.", "a little {n}", "a big {n}", "several {n}s",
    "somebody holding {a}", "{a} on a table", "{a} outdoors", "the {n} that I saw",
)  # fmt: skip
SOUND = (
    "the sound of {a}", "This is the sound of {a}.", "a recording of {a}", "{a} can be heard", "I hear {a}.",
    "the noise that {a} makes",
)  # fmt: skip
MOTION = ("a person is {}", "{}", "someone is {} outside", "This person is {}.", "a man {}", "a woman {}")
TWO = ("{} and {}", "{} next to {}", "{} in front of {}", "{} with {}", "Is this {} or {}?", "a photo of {} and {}")
ASK = IS_THERE + IS_THIS
JOINTS = (  # a caption is cut before these, and what begins alike may take another's place
    "is are be in on with while and through near wearing holding at by over into as from to off of down up along "
    "across next behind standing sitting running jumping playing walking riding"
).split()
_JOINT = re.compile(rf" (?=(?:{'|'.join(JOINTS)}) )")
_ONE_SYLLABLE = re.compile(r"[^aeiou]*[aeiou][^aeiouwxy]")  # whose last consonant doubles: run, running


@dataclass(frozen=True)
class Synset:
    """One meaning of WordNet."""

    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    part: str  # of speech, one of PARTS
    physical: bool  # a noun for something that can be seen
    common: bool  # somebody met it in running text


def sentence_corpus(
    wordnet: Path, concepts: Sequence[Concept], captions: Sequence[str], seed: int = 0, recombined: int = RECOMBINED
) -> list[str]:
    """Texts about all that WordNet has but `held_out_nouns`, about `concepts` and of `captions`, in no order.

    `wordnet` is the folder with data.noun, data.verb, data.adj, data.adv and index.sense. Some texts come twice.
    """
    rng = random.Random(seed)
    synsets = read_wordnet(wordnet)
    hidden = _lower(word for synset in held_out_nouns(synsets, concepts) for word in synset.words)
    known = [synset for synset in synsets.values() if hidden.isdisjoint(_lower(synset.words))]
    texts = [text for synset in known for text in about_synset(synset, rng)]
    things = [word for synset in known if synset.physical and synset.common for word in synset.words]
    things += [name for concept in concepts for name in concept.names]
    qualities = [synset.words[0] for synset in known if synset.part == "adj" and synset.common]
    texts += recombine(captions, things, rng, recombined)
    for _ in range(recombined // 2):
        texts.append(rng.choice(TWO).format(*(_thing(things, qualities, rng) for _ in range(2))))
    texts += [*WHAT, *TELL]
    classes = [text for concept in concepts for text in about_class(concept, rng)]
    spoken = [form for caption in captions for form in (caption, caption.rstrip(".").lower())]
    once = dict.fromkeys(" ".join(text.split()) for text in texts)
    return [text for text in once if 0 < len(text) <= LONGEST] + classes * CLASS_COPIES + spoken * CAPTION_COPIES


def read_wordnet(folder: Path) -> dict[str, Synset]:
    """Every synset by part of speech and offset, such as "noun 00001740"; the formats are wndb(5) and senseidx(5)."""
    counts: dict[str, int] = defaultdict(int)
    for line in (folder / "index.sense").read_text(encoding="utf-8").splitlines():
        key, offset, _, count = line.split()
        part = (*PARTS, "adj")[int(key.partition("%")[2][0]) - 1]  # 5 are adjectives that resemble another one
        counts[f"{part} {offset}"] += int(count)
    found = {}
    for part in PARTS:
        entries = _read_nouns(folder / f"data.{part}")
        seen = _below_physical(entries) if part == "noun" else set()
        for offset, (words, _, gloss) in entries.items():
            found[f"{part} {offset}"] = Synset(
                tuple(re.sub(r"\(\w+\)$", "", word) for word in words),  # where an adjective may stand
                re.sub(r'[;:]?\s*"[^"]*"', "", gloss).strip(" ;"),
                tuple(re.findall(r'"([^"]+)"', gloss)),
                part,
                offset in seen,
                counts[f"{part} {offset}"] > 0,
            )
    return found


def _below_physical(nouns: dict) -> set[str]:
    """Offsets of all nouns whose kind, or its kind, is a physical entity."""
    below = defaultdict(list)
    for offset, (_, above, _) in nouns.items():
        for one in above:
            below[one].append(offset)
    waiting, found = [offset for offset, (words, _, _) in nouns.items() if "physical entity" in words], set()
    while waiting:
        more = [offset for offset in below[waiting.pop()] if offset not in found]
        found.update(more)
        waiting += more
    return found


def held_out_nouns(synsets: dict[str, Synset], concepts: Sequence[Concept]) -> list[Synset]:
    """Nouns to measure the trunk on: some of each hundred, by the hash of their name, but no name of a class.

    No text is made of a synset, of any part of speech, that has a word of theirs.
    """
    names = _lower(name for concept in concepts for name in concept.names)
    return [
        synset for key, synset in synsets.items()
        if synset.part == "noun" and is_held_out(key, HELD_OUT) and names.isdisjoint(_lower(synset.words))
    ]  # fmt: skip


def _lower(words: Iterable[str]) -> set[str]:
    return {word.lower() for word in words}


def about_synset(synset: Synset, rng: random.Random) -> list[str]:
    """Its words, definition and examples, and sentences with one of the words."""
    names = ", ".join(synset.words)
    definition = synset.definition if rng.random() < 0.5 else f"{names}: {synset.definition}"
    word = rng.choice(synset.words)
    texts = [definition, *synset.examples, names, word]
    if synset.part == "noun" and synset.physical:
        texts.append(fill(rng.choice(PHOTO), word))
        if rng.random() < 0.25:
            texts += [fill(rng.choice(SOUND), word), rng.choice(ASK).format(with_article(word))]
    elif synset.part == "verb" and " " not in word:
        texts.append(rng.choice(MOTION).format(gerund(word)))
    return texts


def about_class(concept: Concept, rng: random.Random) -> list[str]:
    """All that is said of other nouns, of each of its names, and what kinds of thing it is."""
    texts = [*concept.sentences(), concept.definition]
    for name in concept.names:
        texts += [fill(template, name) for template in (*PHOTO, *rng.sample(SOUND, 2))]
        texts.append(rng.choice(ASK).format(with_article(name)))
    return texts + [f"{with_article(concept.name)}, a kind of {kind}" for kind in concept.kinds]


def fill(template: str, name: str) -> str:
    """{a}: the name with its article; {n}: without."""
    return template.format(a=with_article(name), n=name)


def gerund(verb: str) -> str:
    """"running", "dancing", "lying", "seeing"; right for most regular verbs."""
    if verb.endswith("ie"):
        return f"{verb[:-2]}ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return f"{verb[:-1]}ing"
    return f"{verb}{verb[-1] if _ONE_SYLLABLE.fullmatch(verb) else ''}ing"


def recombine(captions: Sequence[str], things: Sequence[str], rng: random.Random, count: int) -> list[str]:
    """Captions whose pieces are others' that begin alike, some with a thing in the place of what was in the photo."""
    cut = [_JOINT.split(caption.rstrip(".")) for caption in captions]
    alike = defaultdict(list)
    for _, *tails in cut:
        for tail in tails:
            alike[tail.split()[0]].append(tail)
    shown = {word for meaning in (*SCENE_WORDS.values(), *SCENE_STUFF.values()) for word in meaning.split()}
    texts = []
    for _ in range(count if cut else 0):
        head, *tails = rng.choice(cut)
        if rng.random() < 0.4:
            head = rng.choice(cut)[0]
        tails = [rng.choice(alike[tail.split()[0]]) if rng.random() < 0.45 else tail for tail in tails]
        words = " ".join([head, *tails]).split()
        places = [number for number, word in enumerate(words) if word.lower() in shown]
        if places and things and rng.random() < 0.35:
            words[rng.choice(places)] = rng.choice(things)
        text = " ".join(words if rng.random() < 0.75 else words[: len(words) // 2 + 1])
        texts.append(text.lower() if rng.random() < 0.35 else f"{text[:1].upper()}{text[1:]}.")
    return texts


def _thing(things: Sequence[str], qualities: Sequence[str], rng: random.Random) -> str:
    thing = rng.choice(things)
    return with_article(f"{rng.choice(qualities)} {thing}" if qualities and rng.random() < 0.4 else thing)
