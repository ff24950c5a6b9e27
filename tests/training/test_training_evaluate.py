"""Scores: what counts as a right answer, and that questions are fair."""

from pathlib import Path

import folders
import pytest

from adapter_llm.data import CaptionedImage, is_held_out
from adapter_llm.evaluate import (
    EMPTY_WORDS,
    WHAT,
    LabelledImage,
    Score,
    content_words,
    held_out,
    measure,
    read_labels,
    score_captions,
    score_names,
    score_yes_no,
    thing_questions,
    word_questions,
)
from adapter_llm.results import Result
from adapter_llm.vocabulary import Concept


class Answers:
    """Gives prepared answers, by file name, and remembers what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def caption(self, images, prompt=None, *, batch_size, **options):
        prompts = [prompt] * len(images) if prompt is None or isinstance(prompt, str) else prompt
        self.asked += zip([path.name for path in images], prompts, strict=True)
        self.options = options
        found = [self.answers[path.name] for path in images]
        return [one if isinstance(one, Result) else Result(one, "") for one in found]


BROKEN = Result("", "", finish_reason="error", error="a.jpg is no picture")


def test_content_words():
    assert content_words("The dog's 2 Red-hats are in this picture, running!") == {"dog", "s", "red", "hats", "running"}
    assert content_words("This is a photo of what is there") == set()
    assert all(word == word.lower() and word.isalpha() for word in EMPTY_WORDS)


def test_names_count_when_the_label_or_a_synonym_is_said():
    photos = [
        LabelledImage(Path("a.jpg"), "n01440764", "tench"),
        LabelledImage(Path("b.jpg"), "n01440764", "tench"),
        LabelledImage(Path("c.jpg"), "n02084071", "dog"),  # a synset of no class: its label still counts
        LabelledImage(Path("d.jpg"), "n01440764", "tench"),
        LabelledImage(Path("e.jpg"), "n01440764", "tench"),
    ]
    pipe = Answers(
        {"a.jpg": "A Tinca tinca.", "b.jpg": "A goldfish.", "c.jpg": "Dogs!", "d.jpg": BROKEN, "e.jpg": "Tenches."}
    )
    score = score_names(pipe, photos)
    assert score == Score(
        1 - 2 / 5, 5, (("b.jpg", "tench", "A goldfish."), ("d.jpg", "tench", "(a.jpg is no picture)"))
    )
    assert pipe.asked == [(photo.path.name, WHAT) for photo in photos]
    assert "temperature" not in pipe.options  # greedy, as the pipeline is by itself
    assert str(score) == "0.600 of 5"


def test_captions_count_when_a_content_word_is_shared():
    photos = [
        CaptionedImage(Path(name), ("Two dogs run.", "A brown animal on grass.")) for name in ("a", "b", "c", "d")
    ]
    pipe = Answers({"a": "This is a photo of grass.", "b": "A cat in the picture on a sofa.", "c": "Dogs", "d": BROKEN})
    score = score_captions(pipe, photos)
    assert (score.share, score.count) == (0.5, 4)
    assert [file for file, _, _ in score.missed] == ["b", "d"]


def test_yes_and_no_count_at_the_beginning_of_an_answer():
    truths = [("a", True, "Yes, there is."), ("b", True, "No."), ("c", False, "no dog"), ("d", False, "Yes"),
              ("e", True, "There is, yes."), ("f", False, "")]  # fmt: skip
    pipe = Answers({name: answer for name, _, answer in truths})
    score = score_yes_no(pipe, [(Path(name), f"{name}?", truth) for name, truth, _ in truths])
    assert (score.share, score.count) == (pytest.approx(2 / 6), 6)
    assert [file for file, _, _ in score.missed] == ["b", "d", "e", "f"]
    assert score.missed[0] == ("b", "b? Yes", "No.")
    assert pipe.asked == [(name, f"{name}?") for name, _, _ in truths]


def test_held_out_are_those_that_training_leaves_alone():
    items = [LabelledImage(Path(f"any/{n}.jpg"), "n", "x") for n in range(200)]
    kept = held_out(items, 0.3)
    assert kept == [item for item in items if is_held_out(item.path.name, 0.3)]
    assert 30 < len(kept) < 90
    elsewhere = [LabelledImage(Path(f"other/{n}.jpg"), "n", "x") for n in range(200)]
    assert [item.path.name for item in held_out(elsewhere, 0.3)] == [item.path.name for item in kept]
    assert held_out(items, 1.0) == items


def test_labels_are_read_and_their_columns_checked(tmp_path):
    (tmp_path / "objects.csv").write_text("label,image,synset\ntench,a.jpg,n01440764\n")
    photo = read_labels(tmp_path / "objects.csv", tmp_path / "objects")[0]
    assert photo == LabelledImage(tmp_path / "objects" / "a.jpg", "n01440764", "tench")
    assert photo.names == ("tench", "tench", "Tinca tinca")
    (tmp_path / "objects.csv").write_text("image,label\na.jpg,tench\n")
    with pytest.raises(ValueError, match="needs the columns image, synset and label"):
        read_labels(tmp_path / "objects.csv", tmp_path)


SCENES = [
    CaptionedImage(Path(f"{n}.jpg"), ("A puppy runs." if n % 3 == 0 else "A man jumps.", "It is sunny."))
    for n in range(20)
]


@pytest.mark.parametrize("word, count", [("dog", 7), ("man", 7), ("car", 0)])
def test_word_questions_are_balanced_and_true(word, count):
    questions = word_questions(SCENES, word)
    assert len(questions) == 2 * count
    assert sum(truth for _, _, truth in questions) == count
    assert len({path for path, _, _ in questions}) == 2 * count
    for path, question, truth in questions:
        said = int(path.stem) % 3 == 0
        assert truth == (said if word == "dog" else not said)
        assert question == f"Is there a {word} in this picture?"
    assert word_questions(SCENES, word) == questions


def test_thing_questions_ask_for_what_is_there_and_for_what_is_not():
    concepts = [
        Concept("a", ("tench",), "", ("fish", "animal")), Concept("b", ("owl",), "", ("bird", "animal")),
        Concept("c", ("pen",), "", ()), Concept("d", ("gown",), "", ("dress", "clothing")),
    ]  # fmt: skip
    photos = [LabelledImage(Path(c.synset), c.synset, c.name) for c in concepts]
    questions = thing_questions(photos, concepts)
    assert [path.name for path, _, _ in questions] == ["a", "a", "b", "b", "d", "d"]
    assert [truth for _, _, truth in questions] == [True, False] * 3
    kinds = {c.synset: {f"Is there a {kind} in this picture?" for kind in c.kinds} for c in concepts}
    assert all((question in kinds[path.name]) == truth for path, question, truth in questions)


def test_nothing_to_score_is_no_success():
    pipe = Answers({})
    for score in (score_names(pipe, []), score_captions(pipe, []), score_yes_no(pipe, [])):
        assert score == Score(0.0, 0)


def test_a_pipeline_answers_what_is_scored(pipe, tmp_path):
    folders.picture(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    photos = [LabelledImage(tmp_path / name, "n01440764", "tench") for name in ("a.png", "b.png")]
    with folders.says(pipe, "A tench."):
        score = score_names(pipe, photos)
    assert (score.share, score.count) == (0.5, 2)
    assert score.missed[0][:2] == ("b.png", "tench")
    assert "b.png" in score.missed[0][2]


def test_measure_scores_a_folder(tmp_path):
    for kind in ("objects", "scenes"):
        (tmp_path / kind).mkdir()
        for n in range(4):
            folders.picture(n).save(tmp_path / kind / f"{n}.png")
    (tmp_path / "objects.csv").write_text(
        "image,synset,label\n"
        + "".join(f"{n}.png,{'n01440764,tench' if n else 'n02088364,beagle'}\n" for n in range(4))
    )
    (tmp_path / "scenes.csv").write_text(
        "image,caption\n" + "".join(f"{n}.png,{'a dog' if n % 2 else 'a woman'} runs\n" for n in range(4))
    )
    pipe = Answers({f"{n}.png": "Yes, a tench runs." for n in range(4)})
    concepts = [
        Concept("n01440764", ("tench",), "", ("fish", "animal")),
        Concept("n02088364", ("beagle",), "", ("dog", "animal")),
    ]  # fmt: skip
    scores = {name: (score.share, score.count) for name, score in measure(pipe, tmp_path, concepts, 1.0, 1.0).items()}
    assert scores == {
        "objects: named when asked what is in the picture": (0.75, 4),
        "objects: named in a description": (0.75, 4),
        "scenes: shares a content word when asked what is in the picture": (1.0, 4),
        "scenes: shares a content word in a description": (1.0, 4),
        "yes or no, dog, in scenes": (0.5, 4),
        "yes or no, person, in scenes": (0.5, 4),
        "yes or no, twenty common kinds, in objects": (0.5, 8),
        "yes or no, dog, in objects": (0.5, 2),
    }
    without = measure(pipe, tmp_path, None, 1.0, 1.0)
    assert without.keys() == set(list(scores)[:6])
    assert measure(pipe, tmp_path, None, 0.0, 1.0)["objects: named in a description"].count == 0
