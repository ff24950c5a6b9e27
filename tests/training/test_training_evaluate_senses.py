"""Scores of sounds, motion and search, against a pipeline that says what it is told to."""

from pathlib import Path

import pytest
import torch

from adapter_llm.evaluate import LabelledImage, Score
from adapter_llm.evaluate_senses import (
    QUESTIONS,
    held_out_clips,
    measure_senses,
    score_recordings,
    score_retrieval,
)
from adapter_llm.pipeline import Result
from adapter_llm.sounds import Clip, Sound

SOUNDS = [Sound(("dog", "hound"), "a dog barks"), Sound(("rain",), "it rains"), Sound(("bell",), "a bell rings")]
PLACES = {"goldfish": [1.0, 0.0, 0.1], "owl": [0.0, 1.0, 0.2], "axe": [0.7, 0.6, 0.0]}


class Fake:
    """Answers by the name of the file; pictures lie where `seen` says, words where PLACES does."""

    def __init__(self, answers=None, seen=None, keywords=("image", "text", "audio")):
        self.answers, self.seen, self.keywords, self.asked = answers or {}, seen or {}, list(keywords), []

    def caption(self, sources, prompt=None, *, keyword="image", batch_size=8, **options):
        self.asked.append((prompt, keyword, batch_size, options))
        found = [self.answers[path.name] for path in sources]
        return [one if isinstance(one, Result) else Result(one, "") for one in found]

    def embed(self, *, image=None, text=None):
        if image is not None:
            return torch.tensor(self.seen[image.name])
        name = text.removeprefix("a photo of ").split(maxsplit=1)[1]
        assert text == f"a photo of {'an' if name[0] in 'ao' else 'a'} {name}"
        return torch.tensor(PLACES[name])


def clip(name, label, held_out=True):
    return Clip(Path("any") / name, label, "g", held_out)


def test_recordings_that_were_left_out_so_many_a_class_always_the_same():
    clips = [clip(f"{label}{n}.wav", label, n % 2 == 0) for label in (2, 0) for n in range(20)]
    clips += [clip("only.wav", 1), clip("seen.wav", 3, held_out=False)]
    chosen = held_out_clips(clips, most=4)
    assert [one.label for one in chosen] == [0] * 4 + [1] + [2] * 4
    assert all(one.held_out for one in chosen)
    assert held_out_clips(clips[::-1], most=4) == chosen
    elsewhere = [Clip(Path("other") / one.path.name, one.label, one.group, one.held_out) for one in clips]
    assert [one.path.name for one in held_out_clips(elsewhere, most=4)] == [one.path.name for one in chosen]
    assert [one.path.name for one in chosen[:4]] != sorted(one.path.name for one in chosen[:4])  # by hash, not order
    assert len(held_out_clips(clips)) == 6 + 1 + 6


def test_a_class_counts_when_its_name_or_a_synonym_is_said():
    broken = Result("", "", finish_reason="error", error="d.wav is no recording")
    pipe = Fake({"a.wav": "Two hounds bark.", "b.wav": "A dog.", "c.wav": "A BELL rings.", "d.wav": broken})
    clips = [clip("a.wav", 0), clip("b.wav", 1), clip("c.wav", 2), clip("d.wav", 0)]
    score = score_recordings(pipe, "audio", SOUNDS, clips, batch_size=3)
    assert score == Score(0.5, 4, (("b.wav", "rain", "A dog."), ("d.wav", "dog", "(d.wav is no recording)")))
    ((prompt, keyword, batch_size, options),) = pipe.asked
    assert (prompt, keyword, batch_size) == (QUESTIONS["audio"], "audio", 3)
    assert "temperature" not in options  # greedy, as the pipeline is by itself
    score_recordings(pipe, "imu", SOUNDS, clips)
    assert pipe.asked[1][:2] == (QUESTIONS["imu"], "imu")


PHOTOS = [
    LabelledImage(Path(f"{label}{n}.jpg"), "n", label)
    for label, count in (("goldfish", 2), ("owl", 1), ("axe", 1)) for n in range(count)
]  # fmt: skip


def test_a_label_is_found_when_one_of_its_photos_is_that_near():
    seen = {"goldfish0.jpg": [0.9, 0.0, 0.1], "goldfish1.jpg": [-1.0, 0.0, 0.0], "owl0.jpg": [0.1, 0.5, 0.0],
            "axe0.jpg": [0.6, 0.6, 0.0]}  # fmt: skip
    first, second, third = score_retrieval(Fake(seen=seen), PHOTOS, ranks=(1, 2, 3))
    # nearest to the owl is the axe's photo, to the axe its own: 0.78 against 0.63
    assert first == Score(1 - 1 / 3, 3, (("owl", "owl", "axe"),))
    assert (second.share, second.count, third.share) == (1.0, 3, 1.0)


def test_labels_count_once_however_many_photos_they_have():
    seen = {photo.path.name: PLACES[photo.label] for photo in PHOTOS}
    assert [score.count for score in score_retrieval(Fake(seen=seen), PHOTOS)] == [3, 3]


@pytest.fixture
def recordings(tmp_path):
    (tmp_path / "classes.csv").write_text("name,synonyms,caption\ndog,hound,a dog barks\nrain,,it rains\n")
    (tmp_path / "clips.csv").write_text(
        "class,path,group,split\ndog,a.wav,1,train\ndog,b.wav,2,held_out\nrain,c.wav,3,train\nrain,d.wav,4,held_out\n"
    )
    return tmp_path


def test_everything_there_are_data_for_is_scored(recordings):
    seen = {photo.path.name: PLACES[photo.label] for photo in PHOTOS}
    pipe = Fake({"b.wav": "A dog.", "d.wav": "A dog."}, seen)
    scores = measure_senses(pipe, PHOTOS, {"audio": recordings, "imu": None})
    assert {name: (score.share, score.count) for name, score in scores.items()} == {
        "audio: named when asked, 2 classes": (0.5, 2),
        "photos found by their label, at 1": (1.0, 3),
        "photos found by their label, at 5": (1.0, 3),
    }
    without = measure_senses(Fake(keywords=["image"]), PHOTOS, {"audio": None, "imu": None})
    assert without == {}
