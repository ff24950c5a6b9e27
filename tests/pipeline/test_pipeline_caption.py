"""Many pictures at once: each gets the answer it would get alone, and a bad one spoils nothing."""

import folders
import pytest

QUESTIONS = ["What is in this picture?", "Describe it.", "Is it raining on the grass?", "Hello", "A cat or a dog?"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_batches_equal_single_questions(pipe, photos, batch_size):
    results = pipe.caption(photos, QUESTIONS, batch_size=batch_size, max_new_tokens=10)
    singles = [pipe.result(q, image=photo, max_new_tokens=10) for q, photo in zip(QUESTIONS, photos, strict=True)]
    for result, single in zip(results, singles, strict=True):
        assert (result.text, result.prompt, result.n_tokens) == (single.text, single.prompt, single.n_tokens)
        assert result.finish_reason == single.finish_reason
    assert len({result.text for result in results}) == len(results)


@pytest.mark.parametrize("prompt", [None, "What is in this picture?"])
def test_one_prompt_for_all(pipe, photos, prompt):
    results = pipe.caption(photos, prompt, batch_size=3, max_new_tokens=6)
    assert [r.text for r in results] == [pipe.ask(prompt, image=photo, max_new_tokens=6) for photo in photos]
    assert {r.prompt for r in results} == {prompt or "Describe this picture."}


def test_beams_in_batches(pipe, photos):
    results = pipe.caption(photos, QUESTIONS, batch_size=5, max_new_tokens=6, num_beams=3)
    assert [r.text for r in results] == [
        pipe.ask(q, image=photo, max_new_tokens=6, num_beams=3) for q, photo in zip(QUESTIONS, photos, strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_bad_files_are_results_and_spoil_no_others(pipe, photos, tmp_path, batch_size):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(photos[3].read_bytes()[:60])
    bad = [tmp_path / "missing.png", tmp_path / "text.jpg", tmp_path / "empty.jpg", tmp_path / "cut.png", tmp_path]
    images = [bad[0], photos[0], bad[1], bad[2], photos[1], bad[3], bad[4], None, photos[2]]
    prompts = [f"{QUESTIONS[0]} {n}" for n in range(len(images))]
    results = pipe.caption(images, prompts, batch_size=batch_size, max_new_tokens=8)
    assert [result.prompt for result in results] == prompts
    for image, prompt, result in zip(images, prompts, results, strict=True):
        if image in photos:
            assert result.error is None
            assert result.text == pipe.ask(prompt, image=image, max_new_tokens=8)
        else:
            assert (result.text, result.finish_reason, result.n_tokens) == ("", "error", 0)
            assert image is None or image.name in result.error
            assert "\n" not in result.error


def test_several_pictures_a_question(pipe, photos):
    images = [[photos[0], (photos[1], 0.5)], photos[2], (photos[3], 2.0)]
    results = pipe.caption(images, batch_size=3, max_new_tokens=8)
    assert [r.text for r in results] == [pipe.ask(image=image, max_new_tokens=8) for image in images]


def test_ends_are_each_ones_own(pipe, photos):
    """A short answer in a batch is not as long as its longest."""
    with folders.says(pipe, "A dog."):
        results = pipe.caption(photos[:3], batch_size=3, max_new_tokens=30)
    assert {(r.text, r.finish_reason) for r in results} == {("A dog.", "stop")}


def test_wrong_use(pipe, photos):
    with pytest.raises(ValueError, match="5 inputs and 2 prompts"):
        pipe.caption(photos, ["a", "b"])
    with pytest.raises(ValueError, match="batch_size"):
        pipe.caption(photos, batch_size=0)
    with pytest.raises(ValueError, match="a prompt is empty"):
        pipe.caption(photos, ["a", "b", " ", "d", "e"])
    assert pipe.caption([]) == []


def test_errors_of_the_program_are_not_taken_for_bad_files(pipe, photos, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr(pipe.model.encoder, "forward", fail)
    with pytest.raises(ValueError, match="a bug"):
        pipe.caption(photos)
