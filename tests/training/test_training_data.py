"""Captioned pictures from disk, and questions whose answers are true."""

import random
import re
from collections import Counter

import folders
import pytest
import torch

from adapter_llm.config import PromptConfig
from adapter_llm.data import (
    ASKED,
    FIRST_WORD,
    IS_THERE,
    IS_THIS,
    SCENE_STUFF,
    SCENE_WORDS,
    TELL,
    WHAT,
    CaptionedImage,
    Example,
    ask_about_concept,
    ask_about_scene,
    caption_examples,
    collate,
    is_held_out,
    read_captions,
    tidy,
)
from adapter_llm.prompts import render
from adapter_llm.vocabulary import Concept, with_article

DRAWS = 4000
CONCEPTS = [
    Concept("n0", ("tench", "Tinca tinca"), "freshwater fish", ("fish", "animal")),
    Concept("n1", ("owl",), "nocturnal bird", ("bird", "animal")),
    Concept("n2", ("beagle",), "small hound", ("hound", "dog", "animal")),
    Concept("n3", ("espresso maker",), "a machine", ("machine",)),
    Concept("n4", ("sunglasses",), "against the sun", ()),  # nobody knows what kind of thing they are
    Concept("n5", ("hammer",), "a tool to hit with", ("tool",)),
]


def write_csv(folder, text, pictures=("a.png", "b.png"), encoding="utf-8"):
    for name in pictures:
        folders.picture(1).save(folder / name)
    path = folder / "captions.csv"
    path.write_text(text, encoding=encoding)
    return path


# reading


def test_rows_of_one_picture_are_joined_in_order(tmp_path):
    path = write_csv(tmp_path, 'caption,image,more\n"a dog , running",a.png,1\ntwo cats .,b.png,2\nA Dog,a.png,3\n')
    assert read_captions(path) == [
        CaptionedImage(tmp_path / "a.png", ("A dog, running.", "A Dog.")),
        CaptionedImage(tmp_path / "b.png", ("Two cats.",)),
    ]


def test_pictures_may_lie_elsewhere(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    path = write_csv(images, "").rename(tmp_path / "captions.csv")
    path.write_text("image,caption\na.png,a dog\n")
    assert read_captions(path, images)[0].path == images / "a.png"
    with pytest.raises(ValueError, match="line 2: there is no picture"):
        read_captions(path)


def test_a_mark_that_spreadsheets_write_is_no_part_of_a_name(tmp_path):
    path = write_csv(tmp_path, "image,caption\na.png,ein Käfer\n", encoding="utf-8-sig")
    assert read_captions(path)[0].captions == ("Ein Käfer.",)


def test_a_folder_of_pictures_beside_their_texts(tmp_path):
    write_csv(tmp_path, "image,caption\n")
    (tmp_path / "deep").mkdir()
    folders.picture(2).save(tmp_path / "deep" / "c.jpg")
    (tmp_path / "a.txt").write_text("a dog\n\n  \nit runs\n")
    (tmp_path / "deep" / "c.txt").write_text("a cat")
    (tmp_path / "readme.txt").write_text("belongs to no picture")
    assert read_captions(tmp_path) == [
        CaptionedImage(tmp_path / "a.png", ("A dog.", "It runs.")),
        CaptionedImage(tmp_path / "deep" / "c.jpg", ("A cat.",)),
    ]


@pytest.mark.parametrize("text, message", [
    ("image,text\na.png,x\n", "needs the columns image and caption, it has .*'text'"),
    ("", "needs the columns image and caption, it has None"),
    ("image,caption\n", "has no captioned pictures; see docs/training.md"),
    ("image,caption\na.png,x\nc.png,y\n", "line 3: there is no picture .*c.png"),
    ("image,caption\na.png,x\n,y\n", "line 3: there is no picture"),
    ("image,caption\na.png,x\nb.png\n", "line 3: b.png has no caption"),
    ("image,caption\na.png, \n", "line 2: a.png has no caption"),
])  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    path = write_csv(tmp_path, text)
    with pytest.raises(ValueError, match=message) as raised:
        read_captions(path)
    assert str(path) in str(raised.value)


def test_an_empty_folder_and_an_empty_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no captioned pictures"):
        read_captions(tmp_path)
    folders.picture(1).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"a\.txt holds no caption for a\.png"):
        read_captions(tmp_path)


@pytest.mark.parametrize("caption, expected", [
    ("two dogs run .", "Two dogs run."), ("  a  man ,\n smiling ", "A man, smiling."), ("A cat.", "A cat."),
    ('the "big" one !', "The big one!."), ("x", "X."), ("NASA rocket", "NASA rocket."), ("wait ...", "Wait."),
])  # fmt: skip
def test_tidy(caption, expected):
    assert tidy(caption) == expected
    assert tidy(expected) == expected


# held out


def test_the_split_depends_on_the_name_alone_and_never_moves():
    """Other values here would train on the photos that the published quality was measured on."""
    names = ["a.jpg", "b.jpg", "coffee.jpg", "0001.png", "Käfer.jpg"]
    assert [is_held_out(name, 0.45) for name in names] == [True, False, False, True, False]
    assert [is_held_out(name, 0.316) for name in names] == [True, False, False, False, False]  # sha256 509b...
    assert not is_held_out("a.jpg", 0.314)
    assert not any(is_held_out(name, 0.0) for name in names)
    assert all(is_held_out(name, 1.0) for name in names)


def test_a_larger_share_holds_out_more_of_the_same():
    names = [f"{number}.jpg" for number in range(4000)]
    smaller, larger = ({n for n in names if is_held_out(n, share)} for share in (0.2, 0.3))
    assert smaller < larger
    assert abs(len(smaller) / 4000 - 0.2) < 0.03  # four and a half standard deviations
    assert abs(len(larger) / 4000 - 0.3) < 0.03


# questions about things


def draw_concept(concept, seed=1):
    others = [other for other in CONCEPTS if other is not concept]
    rng = random.Random(seed)
    return [ask_about_concept(concept, others, rng) for _ in range(DRAWS)]


def asked_thing(question):
    """What a yes-or-no question asks for, None for another question."""
    for template in sorted(IS_THERE + IS_THIS, key=len, reverse=True):  # "Is this a picture of" before "Is this"
        before, after = template.split("{}")
        if question.startswith(before) and question.endswith(after) and " or " not in question:
            return question[len(before) : len(question) - len(after)]
    return None


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_yes_if_and_only_if_a_name_or_kind_fits(concept):
    true = {with_article(word) for word in (concept.name, *concept.kinds)}
    counts = Counter()
    for question, answer in draw_concept(concept):
        if answer.startswith(("Yes", "No")):
            thing = asked_thing(question)
            assert thing is not None, question
            assert answer.startswith("Yes, ") == (thing in true), f"{question} {answer}"
            assert answer.split(", ", 1)[1] == f"this is a photo of {with_article(concept.name)}."
            counts[answer[:2], thing in {with_article(kind) for kind in concept.kinds}] += 1
    yes, no = (sum(n for (word, _), n in counts.items() if word == said) for said in ("Ye", "No"))
    assert abs(yes - no) < 5 * (yes + no) ** 0.5  # balanced: saying yes always wins nothing
    assert yes + no > 0.25 * DRAWS
    if set(concept.kinds) & set(ASKED):
        assert counts["Ye", True] > counts["Ye", False] > 0
    else:  # what nobody asks for is asked for by its name alone
        assert counts["Ye", True] == 0 < counts["Ye", False]


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_every_other_answer_is_the_things_name_or_kind(concept):
    name = with_article(concept.name)
    others = {with_article(other.name) for other in CONCEPTS if other is not concept}
    fact = f"This is a photo of {name}."
    kind = concept.kinds[0] if concept.kinds else None
    seen = set()
    for question, answer in draw_concept(concept):
        if answer.startswith(("Yes", "No")):
            continue
        if question in WHAT:
            assert answer == fact
        elif question in TELL:
            assert answer == (f"This is a photo of {name}, a kind of {kind}." if kind else fact)
        elif question.startswith("What kind of "):
            assert question == f"What kind of {'animal' if concept.is_animal else 'thing'} is this?"
            assert answer == (f"This is a kind of {kind}." if kind else fact)
        else:
            pair = re.fullmatch(r"Is this (.+) or (.+)\?", question).groups()
            assert answer == fact
            assert name in pair
            assert set(pair) - {name} < others
            seen.add(pair.index(name))
        seen.add(question)
    assert seen >= {*WHAT, *TELL, 0, 1}  # everything is asked, and the true one stands first or second


def test_the_draw_of_a_seed_never_changes():
    assert draw_concept(CONCEPTS[0]) == draw_concept(CONCEPTS[0])
    assert draw_concept(CONCEPTS[0]) != draw_concept(CONCEPTS[0], seed=2)


# questions about scenes

SCENES = [
    ("A brown dog runs on the sand.", "A puppy near the ocean."),
    ("Two women in hats ride bikes.",),
    ("An abstract pattern.",),
]


@pytest.mark.parametrize("captions", SCENES)
def test_scene_answers_are_captions_or_follow_from_them(captions):
    said = set(re.findall("[a-z]+", " ".join(captions).lower()))
    words = {**SCENE_WORDS, **SCENE_STUFF}
    things = {(word if word in SCENE_STUFF else with_article(word)): word for word in words}
    rng, counts = random.Random(3), Counter()
    for _ in range(DRAWS):
        question, answer = ask_about_scene(captions, rng)
        if answer in captions:
            assert question in WHAT + TELL
            counts["caption"] += 1
            continue
        thing = asked_thing(question)
        word = things[thing]
        present = bool(said & set(words[word].split()))
        wanted = f"Yes, there is {thing} in this picture." if present else f"No, there is no {word} in this picture."
        assert answer == wanted, question
        counts[present] += 1
    assert abs(counts["caption"] / DRAWS - 0.55) < 0.05
    if captions is SCENES[2]:
        assert counts[True] == 0 < counts[False]
    else:
        assert counts[True] > 0.1 * DRAWS and counts[False] > 0.1 * DRAWS


def test_scene_words_are_words_that_a_caption_can_hold():
    for meaning in (*SCENE_WORDS.values(), *SCENE_STUFF.values()):
        assert all(re.fullmatch("[a-z]+", word) for word in meaning.split())


# captioned pictures as examples


def test_each_picture_is_encoded_once_and_keeps_its_captions(tmp_path):
    photos = [CaptionedImage(tmp_path / f"{n}.png", (f"{n} one.", f"{n} two.")) for n in range(3)]
    encoded = []

    def features_of(path):
        encoded.append(path)
        return torch.full((2, 5), float(path.stem))

    sample = caption_examples(photos, features_of, seed=4)
    drawn = [example for _ in range(40) for example in sample(5)]
    assert encoded == [photo.path for photo in photos]
    assert {example.question for example in drawn} == {*WHAT, *TELL}
    assert {(int(example.features[0, 0]), example.answer) for example in drawn} == {
        (n, f"{n} {word}.") for n in range(3) for word in ("one", "two")
    }
    again = caption_examples(photos, features_of, seed=4)
    repeated = [example for _ in range(40) for example in again(5)]
    assert [(e.question, e.answer) for e in repeated] == [(e.question, e.answer) for e in drawn]


def test_a_picture_that_cannot_be_read_stops_it_all(pipe, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png"):
        caption_examples([CaptionedImage(tmp_path / "a.png", ("x",))], lambda path: pipe.features(image=path))


# batches


@pytest.mark.parametrize("has_pad", [True, False])
def test_collate_learns_the_answer_and_its_end_alone(tokenizer, has_pad):
    tokenizer = folders.tokenizer()
    if not has_pad:
        tokenizer.pad_token = None
    prompt, rows = (
        PromptConfig(system="See."),
        [("What is this?", "A dog and a cat."), ("Rain?", "No."), ("What?", "Yes, rain.")],
    )
    examples = [Example(torch.full((7, 20), n, dtype=torch.float16), *row) for n, row in enumerate(rows)]
    batch = collate(examples, tokenizer, prompt)
    assert set(batch) == {"features", "input_ids", "attention_mask", "labels", "weights"}
    assert torch.equal(batch["features"], torch.arange(3.0)[:, None, None].expand(3, 7, 20))
    pad = tokenizer.pad_token_id if has_pad else tokenizer.eos_token_id
    lengths = []
    for row, (question, answer) in enumerate(rows):
        asked = render(tokenizer, prompt, question, has_media=True)
        answered = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        rest = batch["input_ids"].shape[1] - len(asked) - len(answered)
        assert batch["input_ids"][row].tolist() == asked + answered + [pad] * rest
        assert batch["labels"][row].tolist() == [-100] * len(asked) + answered + [-100] * rest
        assert batch["attention_mask"][row].tolist() == [1] * (len(asked) + len(answered)) + [0] * rest
        counted = batch["weights"][row][batch["labels"][row] != -100].tolist()
        assert counted == [FIRST_WORD] + [1.0] * (len(answered) - 1)
        lengths.append(rest)
    assert min(lengths) == 0 < max(lengths)
    assert "See." in tokenizer.decode(batch["input_ids"][0])
