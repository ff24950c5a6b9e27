"""Texts for the text trunk: WordNet as its files are, nothing of what is held out, captions that stay captions."""

import random
import re
from collections import Counter

import pytest

from adapter_llm.corpus import (
    CAPTION_COPIES,
    CLASS_COPIES,
    HELD_OUT,
    JOINTS,
    LONGEST,
    MOTION,
    PHOTO,
    SOUND,
    TWO,
    about_class,
    about_synset,
    gerund,
    held_out_nouns,
    read_wordnet,
    recombine,
    sentence_corpus,
)
from adapter_llm.data import TELL, WHAT, is_held_out
from adapter_llm.vocabulary import Concept

CAPTIONS = [
    "A man in a hat is riding a horse on the beach.",
    "Two dogs are running in the snow.",
    "A woman with a bag is walking on a street.",
    "Children.",
]
NOUNS = 400


def entry(offset, kind, words, above, gloss):
    """One line of a data file: wndb(5)."""
    listed = " ".join(f"{word} 0" for word in words)
    pointers = f"001 @ {above} n 0000" if above else "000"
    return f"{offset} 05 {kind} {len(words):02x} {listed} {pointers} | {gloss}  \n"


def noun_word(number):
    return "".join(chr(97 + int(digit)) for digit in f"{number:03}") + "oth"


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    """400 physical nouns, an abstract one, verbs, and an adjective that shares a word with each tenth noun."""
    folder = tmp_path_factory.mktemp("dict")
    nouns = [
        entry("00000001", "n", ["entity"], None, "all there is"),
        entry("00000002", "n", ["physical_entity"], "00000001", "what can be touched"),
        entry("00000003", "n", ["thing"], "00000002", 'a separate one; "a thing of beauty"'),
        entry("00000004", "n", ["idea", "deep_thought"], "00000001", 'a thought; "it was a good idea"; "no idea"'),
    ]
    nouns += [entry(f"1{n:07}", "n", [noun_word(n)], "00000003", f"thing number {n}") for n in range(NOUNS)]
    nouns.append(entry("00000005", "n", ["long"], "00000001", "x" * (LONGEST + 1)))
    verbs = "".join(entry(f"2{n:07}", "v", [word], None, f"do {word}") for n, word in enumerate(("run", "give_up")))
    adjectives = [entry("30000000", "a", ["red(a)"], None, "of blood"), entry("30000001", "s", ["blue"], None, "sad")]
    adjectives += [entry(f"31{n:06}", "s", [noun_word(n).title()], None, f"like {n}") for n in range(0, NOUNS, 10)]
    licence = "  1 This software and database\n"
    for part, lines in (("noun", nouns), ("verb", verbs), ("adj", adjectives), ("adv", [])):
        (folder / f"data.{part}").write_text(licence + "".join(lines), encoding="utf-8")
    (folder / "index.sense").write_text(
        "thing%1:03:00:: 00000003 1 7\nthing%1:03:01:: 00000003 1 0\nidea%1:09:00:: 00000004 1 0\n"
        "red%3:00:01:: 30000000 1 4\nblue%5:00:00:sad:00 30000001 1 2\nrun%2:38:00:: 20000000 1 1\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def held_number():
    """Of a noun that the hash would hold out."""
    return next(n for n in range(NOUNS) if is_held_out(f"noun 1{n:07}", HELD_OUT))


def concept(*names):
    return Concept("n1", names, "a made one", ("fish", "animal"))


def test_synsets_are_read_with_their_kind_and_use(wordnet):
    synsets = read_wordnet(wordnet)
    idea, thing = synsets["noun 00000004"], synsets["noun 00000003"]
    assert idea.words == ("idea", "deep thought")
    assert (idea.definition, idea.examples) == ("a thought", ("it was a good idea", "no idea"))
    assert (idea.part, idea.physical, idea.common) == ("noun", False, False)
    assert (thing.physical, thing.common, thing.examples) == (True, True, ("a thing of beauty",))
    assert synsets[f"noun 1{5:07}"].physical  # a kind of a kind of a physical entity
    assert synsets["adj 30000000"].words == ("red",)
    assert {key for key, synset in synsets.items() if synset.common} == {
        "noun 00000003", "adj 30000000", "adj 30000001", "verb 20000000",
    }  # fmt: skip
    assert len(synsets) == 5 + NOUNS + 2 + 2 + NOUNS // 10


def test_held_out_nouns_occur_in_no_text_nor_does_what_shares_a_word(wordnet):
    held = held_out_nouns(read_wordnet(wordnet), [])
    assert 2 <= len(held) <= 30
    texts = "\n".join(sentence_corpus(wordnet, [concept("tench")], CAPTIONS, recombined=500)).lower()
    for synset in held:
        assert synset.words[0].lower() not in texts
        assert not re.search(rf"{synset.definition}$", texts, re.MULTILINE)
    shown = [n for n in range(NOUNS) if noun_word(n) in texts]
    assert len(shown) == NOUNS - len([synset for synset in held if synset.physical])
    adjectives = {f"like {n}" for n in range(0, NOUNS, 10)}
    assert {line for line in texts.splitlines() if line.startswith("like ")} < adjectives


def test_names_of_classes_are_never_held_out(wordnet, held_number):
    synsets, word = read_wordnet(wordnet), noun_word(held_number)
    assert word in {synset.words[0] for synset in held_out_nouns(synsets, [])}
    assert word not in {synset.words[0] for synset in held_out_nouns(synsets, [concept("tench", word.upper())])}


def test_the_corpus_has_all_kinds_of_text_and_counts_captions_and_classes_more(wordnet):
    corpus = sentence_corpus(wordnet, [concept("tench", "Tinca tinca")], CAPTIONS, recombined=300)
    counts = Counter(corpus)
    assert counts.keys() >= {*WHAT, *TELL, "idea, deep thought", "it was a good idea", "a made one"}
    assert {"a thought", "idea, deep thought: a thought"} & counts.keys()
    assert counts["A photo of a tench."] == CLASS_COPIES
    for caption in CAPTIONS:
        assert counts[caption] - CAPTION_COPIES in (0, 1)  # one more where its own pieces came together
        assert counts[caption.rstrip(".").lower()] >= CAPTION_COPIES
    assert max(map(len, corpus)) <= LONGEST
    assert all(text == " ".join(text.split()) != "" for text in corpus)
    starts = [template.split("{}")[0] for template in MOTION if template != "{}"]
    assert any(text.startswith(tuple(starts)) for text in corpus) or "running" in counts
    assert any(re.fullmatch(r"an? (red|blue) .+ (and|with|next to|in front of) an? .+", text) for text in corpus)


def test_the_corpus_of_a_seed_never_changes(wordnet):
    one, same, other = (sentence_corpus(wordnet, [], CAPTIONS, seed, recombined=50) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_sounds_are_of_physical_things_alone(wordnet):
    synsets, rng = read_wordnet(wordnet), random.Random(0)
    endings = tuple(re.split(r"{[an]}", template)[0] for template in SOUND if not template.startswith("{"))

    def heard(key):
        return [text for _ in range(80) for text in about_synset(synsets[key], rng) if text.startswith(endings)]

    assert 5 < len(heard("noun 00000003")) < 40  # a quarter of 80, most templates of which begin so
    assert heard("noun 00000004") == []


def test_what_is_said_of_a_class():
    texts = about_class(concept("tench", "Tinca tinca"), random.Random(0))
    assert {"a photo of a Tinca tinca", "a photo of the tench", "a tench, a kind of fish"} <= set(texts)
    assert set(concept("tench", "Tinca tinca").sentences()) <= set(texts)
    assert not any("{" in text for text in texts)
    assert len(texts) == 4 + 2 * (len(PHOTO) + 3) + 2


@pytest.mark.parametrize("verb, expected", [
    ("run", "running"), ("dance", "dancing"), ("lie", "lying"), ("see", "seeing"), ("walk", "walking"),
    ("play", "playing"), ("fix", "fixing"), ("swim", "swimming"), ("eat", "eating"), ("dye", "dyeing"),
])  # fmt: skip
def test_gerund(verb, expected):
    assert gerund(verb) == expected


def test_pieces_are_only_replaced_by_such_as_begin_alike():
    texts = recombine(CAPTIONS, [], random.Random(0), 400)
    assert len(texts) == 400
    cut = re.compile(rf" (?=(?:{'|'.join(JOINTS)}) )")
    known = {piece.lower() for caption in CAPTIONS for piece in cut.split(caption.rstrip("."))}
    orders = {tuple(piece.split()[0] for piece in cut.split(c.rstrip("."))[1:]) for c in CAPTIONS}
    whole = 0
    for text in texts:
        head, *tails = cut.split(text.rstrip(".").lower())
        starts = tuple(tail.split()[0] for tail in tails)
        assert any(order[: len(starts)] == starts for order in orders), text
        if {head, *tails} <= known:
            whole += 1
    assert whole > 280  # three quarters; the others stop half-way
    assert len(set(texts)) > 60


def test_a_thing_takes_the_place_of_what_was_in_the_photo():
    texts = recombine(["A man sees a horse."], ["zebra"], random.Random(0), 600)
    whole = {text.lower().rstrip(".") for text in texts if len(text.split()) == 5}
    assert whole == {"a man sees a horse", "a zebra sees a horse", "a man sees a zebra"}
    assert 0.15 < sum("zebra" in text for text in texts) / 600 < 0.4


def test_without_captions_there_is_nothing_to_recombine():
    assert recombine([], ["zebra"], random.Random(0), 9) == []


def test_templates_have_a_place_for_the_name():
    assert all("{a}" in template or "{n}" in template for template in PHOTO + SOUND)
    assert all(template.count("{}") == 2 for template in TWO)
    assert all(template.count("{}") == 1 for template in MOTION)
