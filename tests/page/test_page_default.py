"""The page with the default weights: its examples are answered, and rightly. What is not in the cache is fetched."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "weights" / "default"

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(
        not FOLDER.is_dir(), reason="weights/default is not in this checkout; docs/training.md makes it"
    ),
]


@pytest.fixture(scope="module")
def site():
    from adapter_llm.page.launch import PageSettings, open_page
    from adapter_llm.pipeline import Pipeline

    with open_page(Pipeline.from_pretrained(FOLDER, device="cpu"), PageSettings(port=0)) as page:
        yield page


def test_every_example_is_answered_rightly(visit):
    ann = visit()
    examples = [("What is in this picture?", "espresso"), ("What animal is this?", "cat"), ("hear", "dog"),
                ("person doing", "running")]  # fmt: skip
    for question, word in examples:
        ann.find("#chat .example").filter(has_text=question).click()
        ann.until(lambda: ann.answers, "an answer")
        assert word in ann.answer() and len(ann.said) > 1, question
        ann.find("#new").click()
        ann.until(lambda: ann.find("#chat .example").count() == len(examples), "the examples again")


def test_weights_say_what_they_take_and_what_they_do_not(visit):
    ann = visit()
    assert "thermal" in ann.find("#lacking").inner_text() and "point clouds" in ann.find("#lacking").inner_text()
    assert "SmolLM2-135M" in ann.find("#footer").inner_text()
    assert ann.page.evaluate("document.querySelector('#question input[type=file]').accept.includes('.ply')") is False
