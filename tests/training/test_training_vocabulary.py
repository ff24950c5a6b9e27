"""Names of things: articles, mentions, the classifier's classes, and WordNet's files."""

import pytest

from adapter_llm import vocabulary
from adapter_llm.vocabulary import COMMON_KINDS, Concept, class_names, load_concepts, mentions, with_article

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, as it is.  \n"


@pytest.mark.parametrize("name, expected", [
    ("tench", "a tench"), ("owl", "an owl"), ("African elephant", "an African elephant"),
    ("Siamese cat", "a Siamese cat"),
    ("umbrella", "an umbrella"), ("unicycle", "a unicycle"), ("European fire salamander", "a European fire salamander"),
    ("one-armed bandit", "a one-armed bandit"), ("sunglasses", "sunglasses"),
    ("swimming trunks", "swimming trunks"), ("the moon", "the moon"), ("An apple", "An apple"), ("x", "a x"),
    ("anemone fish", "an anemone fish"), ("theater curtain", "a theater curtain"),
])  # fmt: skip
def test_with_article(name, expected):
    assert with_article(name) == expected


@pytest.mark.parametrize("answer, words, expected", [
    ("This is a photo of a tench.", ("tench",), True),
    ("Two DOGS on grass.", ("dog",), True), ("two buses", ("bus",), True), ("a Bus!", ("BUS",), True),
    ("a hotdog stand", ("dog",), False), ("dogma", ("dog",), False), ("a carpet", ("car",), False),
    ("a bulldog", ("dog", "bulldog"), True), ("a sea-lion", ("sea lion",), False), ("a sea lion.", ("sea lion",), True),
    ("C++ code", ("c.+",), False), ("", ("dog",), False), ("anything", (), False),
    ("it is a T-shirt", ["T-shirt"], True),
])  # fmt: skip
def test_mentions_whole_words_and_their_plurals(answer, words, expected):
    assert mentions(answer, words) is expected


def test_any_synonym_will_do():
    espresso = class_names()["n07920052"]
    assert mentions("A cup of espresso.", espresso)
    tench = class_names()["n01440764"]
    assert tench == ("tench", "Tinca tinca")
    assert mentions("tinca tinca, swimming", tench)
    assert not mentions("a goldfish", tench)


def test_classes_are_in_the_order_of_a_classifiers_outputs():
    names = class_names()
    assert len(names) == 1000
    order = list(names)
    assert order == sorted(order)  # ImageNet numbers its classes by synset
    for number, name in {
        0: "tench",
        1: "goldfish",
        281: "tabby",
        817: "sports car",
        967: "espresso",
        999: "toilet tissue",
    }.items():
        assert names[order[number]][0] == name
    assert all(all(words) for words in names.values())


def test_a_concept_says_what_stands_for_it():
    concept = Concept("n1", ("owl", "night bird"), "nocturnal bird of prey", ("bird", "animal"))
    assert concept.name == "owl"
    assert concept.is_animal
    assert not Concept("n2", ("cup",), "for coffee", ("dish",)).is_animal
    assert concept.sentences() == [
        "a photo of an owl", "owl, night bird", "owl, night bird: nocturnal bird of prey"
    ]  # fmt: skip


def noun(offset, words, hypernyms, definition, others=()):
    """One line of data.noun: wndb(5)."""
    pointers = [f"@ {above} n 0000" for above in hypernyms] + list(others)
    listed = " ".join(f"{word} 0" for word in words)
    return f"{offset} 05 n {len(words):02x} {listed} {len(pointers):03d} {' '.join(pointers)} | {definition}  \n"


@pytest.fixture
def wordnet(tmp_path):
    """A few nouns: a mammal and a machine called crane, a red fox, and what is above them."""
    lines = [
        noun("00000001", ["entity"], [], "all there is"),
        noun("00000002", ["animal", "beast"], ["00000001"], "a living thing that moves", ["~ 00000003 n 0000"]),
        noun("00000003", ["bird"], ["00000002"], "warm-blooded, with feathers"),
        noun("00000004", ["crane"], ["00000003"], "large long-necked wading bird", ["#m 00000002 n 0000"]),
        noun("00000005", ["machine"], ["00000001"], "a device that works"),
        noun("00000006", ["crane", "lifting_crane"], ["00000005"], "lifts and moves heavy objects"),
        noun("00000007", ["carnivore"], ["00000002"], "eats flesh"),
        noun("00000008", ["red_fox", "Vulpes_vulpes"], ["00000007"], "the common fox; with a red coat"),
        "00000009 15 n 01 Rex 0 001 @i 00000008 n 0000 | a fox with a name  \n",
        noun("0000000a", [f"w{n}" for n in range(17)], ["00000001"], "seventeen words, 11 in hexadecimal"),
    ]
    (tmp_path / "data.noun").write_text(LICENCE + "".join(lines), encoding="utf-8")
    return tmp_path


def test_nouns_are_read_as_wordnet_writes_them(wordnet):
    nouns = vocabulary._read_nouns(wordnet / "data.noun")
    assert len(nouns) == 10
    assert nouns["00000008"] == (["red fox", "Vulpes vulpes"], ["00000007"], "the common fox; with a red coat  ")
    assert nouns["00000004"][1] == ["00000003"]  # a part-of pointer is no kind
    assert nouns["00000002"][1] == ["00000001"]  # nor is what is below
    assert nouns["00000009"][1] == ["00000008"]  # an instance is
    assert nouns["0000000a"][0] == [f"w{n}" for n in range(17)]


def test_concepts_get_the_kinds_of_the_right_meaning(wordnet, monkeypatch):
    details = {
        "b": ("crane", "crane: large long-necked wading bird of marshes"),
        "f": ("red fox, Vulpes vulpes", "red fox, Vulpes vulpes: the common fox of the Old World; red coat"),
        "m": ("crane", "crane: lifts and moves heavy objects, by a boom"),
    }

    class Info:
        def label_names(self):
            return list(details)

        def label_name_to_description(self, label, detailed=False):
            return details[label][detailed]

    import timm.data

    monkeypatch.setattr(timm.data, "ImageNetInfo", Info)
    class_names.cache_clear()
    try:
        bird, fox, lifter = load_concepts(wordnet)
    finally:
        class_names.cache_clear()
    assert bird == Concept("b", ("crane",), "large long-necked wading bird of marshes", ("bird", "animal"))
    assert lifter.kinds == ("machine",)
    assert fox.names == ("red fox", "Vulpes vulpes")
    assert fox.kinds == ("animal", "fox")  # a carnivore is not what people say; "fox" is in its name


def test_a_thing_is_no_kind_of_itself(tmp_path):
    synsets = {"a": (["cup"], ["b"], ""), "b": (["cup", "dish"], ["a"], "")}  # and a loop does not hang
    assert vocabulary._common_kinds(synsets, "a", ("cup",)) == ("dish",)


def test_common_kinds_are_single_lower_case_words():
    assert all(kind.isalpha() and kind.islower() for kind in COMMON_KINDS)
