"""A conversation in a real browser: asked, seen to be answered word by word, stopped, asked again, begun anew."""

from itertools import pairwise
from pathlib import Path

import pytest

PHOTO = Path(__file__).parent.parent.parent / "examples" / "coffee.jpg"
WHAT = "What is in this picture?"
MARKUP = "<img src=//far.test/a onerror=document.title=1> ![a](//far.test/b) <b>1 < 2</b> **c** <aside>"


@pytest.fixture
def expected(talkative):
    """What the pipeline answers by itself."""

    def ask(question=WHAT, *said, **inputs):
        roles = ["user", "assistant"] * len(said) + ["user"]
        words = [*said, question]
        messages = [{"role": role, "content": one} for role, one in zip(roles, words, strict=False)]
        return talkative.pipe.ask(messages, **{"max_new_tokens": 24, **inputs})

    return ask


def test_a_question_about_an_example_photo(visit, expected):
    ann = visit()
    ann.find("#chat .example").filter(has_text=WHAT).click()
    ann.until(lambda: ann.answers, "an answer")
    assert ann.answer() == expected(image=PHOTO)
    ann.until(lambda: ann.questions == [WHAT] and ann.cards.count() == 1, "one question and one card")
    assert ann.find("#chat [data-testid=user] img").evaluate("image => image.naturalWidth") > 100


def test_the_answer_grows_while_it_is_written(visit, expected, talkative):
    ann = visit()
    ann.attach(PHOTO)
    with talkative.slowly(0.1):
        answer = ann.ask(WHAT)
    assert answer == expected(image=PHOTO) and ann.said[-1] == answer
    assert len(ann.said) >= 5 and all(later.startswith(earlier) for earlier, later in pairwise(ann.said))


def test_a_follow_up_is_about_the_same_photo_which_is_not_encoded_again(visit, expected, talkative):
    ann = visit()
    before = talkative.encoded
    ann.attach(PHOTO)
    first = ann.ask(WHAT)
    assert ann.box.input_value() == "" and ann.find("#question .thumbnail-item").count() == 0  # it was sent
    once = talkative.encoded
    second = ann.ask("And what else?")
    assert once <= before + 1 and talkative.encoded == once
    assert second == expected("And what else?", WHAT, first, image=PHOTO)
    assert ann.answers == [first, second] and ann.cards.count() == 1
    assert ann.find("#chat [data-testid=user] img").count() == 1


def test_a_stopped_answer_stays_as_it_is_and_the_next_question_is_answered(visit, site, expected, talkative):
    ann = visit()
    with talkative.slowly(0.3):
        ann.begin(WHAT)
        ann.stop()
        stopped = ann.answer()
        assert not site.engine.counts.running
    whole = expected()
    assert whole.startswith(stopped) and 0 < len(stopped) < len(whole)
    assert "You stopped this answer." in ann.find("#chat .note").inner_text()
    assert ann.ask("And now?") == expected("And now?", WHAT, stopped)


def test_retry_answers_the_last_question_once_more(visit, expected, talkative):
    ann = visit()
    ann.attach(PHOTO)
    first = ann.ask(WHAT)
    with talkative.says("another answer"):
        ann.find("#chat [aria-label=Retry]").last.click()
        ann.until(lambda: ann.answers == ["another answer"], "another answer")
    assert first == expected(image=PHOTO) and ann.questions == [WHAT]
    ann.until(lambda: not ann.writing, "the end")
    ann.find("#chat [aria-label=Retry]").last.click()
    ann.until(lambda: ann.answers == [first], "the first answer")


def test_an_edited_question_takes_back_what_came_after_it(visit, expected):
    ann = visit()
    ann.attach(PHOTO)
    ann.ask(WHAT)
    ann.ask("And what else?")
    ann.find("#chat [aria-label=Edit]").first.click()
    ann.find("#chat textarea").fill("Is it a dog?")
    ann.find("#chat [aria-label=Submit]").click()
    ann.until(lambda: ann.questions == ["Is it a dog?"] and ann.answers, "the new question")
    assert ann.answer() == expected("Is it a dog?", image=PHOTO) and len(ann.answers) == 1


def test_a_new_conversation_knows_nothing_of_the_old_one(visit, site, expected):
    ann = visit()
    ann.attach(PHOTO)
    ann.ask(WHAT)
    ann.find("#new").click()
    ann.until(lambda: not ann.questions and not ann.cards.count(), "an empty page")
    assert not list(site.folder.glob("visitors/**/coffee.jpg"))
    assert ann.ask(WHAT) == expected() != expected(image=PHOTO)


def test_the_settings_are_those_of_the_pipeline(visit, expected):
    ann = visit()
    ann.unfold("settings")
    for name, value in {"max-new-tokens": 11, "temperature": 1, "top-p": 0.9, "seed": 5}.items():
        ann.set(name, value)
    drawn = ann.ask(WHAT)
    assert drawn == expected(max_new_tokens=11, temperature=1.0, top_p=0.9, seed=5)
    assert "11 tokens" in ann.find("#chat .note").inner_text()
    ann.find("#new").click()
    ann.until(lambda: not ann.questions, "an empty page")
    ann.set("seed", 6)
    assert ann.ask(WHAT) == expected(max_new_tokens=11, temperature=1.0, top_p=0.9, seed=6) != drawn


def test_nothing_to_ask_about_is_said_at_the_question_and_nothing_happens(visit):
    ann = visit()
    ann.send("  ")
    ann.problem("write a question, or attach something")
    assert ann.questions == [] and not ann.writing
    assert ann.ask(WHAT) and ann.problems == []


def test_a_photo_alone_is_described(visit, expected):
    from adapter_llm.prompts import describe

    ann = visit()
    ann.attach(PHOTO)
    assert ann.ask("") == expected(describe(["image"]), image=PHOTO)
    assert ann.questions == [describe(["image"])]


def test_markup_in_questions_and_answers_is_text(visit, talkative):
    """What a model writes is anybody's: nothing of it runs, and no picture in it is fetched from anywhere."""
    ann = visit()
    ann.unfold("settings")
    ann.set("max-new-tokens", 200)
    with talkative.says(MARKUP):
        assert ann.ask(f"{MARKUP} again").replace("\u200b", "") == MARKUP
    assert ann.questions[0].replace("\u200b", "") == f"{MARKUP} again" and ann.page.title() != "1"
    assert ann.find("#chat .message-content").locator("img, a, b, strong, aside, [onerror]").count() == 0


def test_an_answer_can_be_copied(visit):
    ann = visit(permissions=["clipboard-read", "clipboard-write"])
    answer = ann.ask(WHAT)
    ann.find("#chat [aria-label='Copy message']:visible").last.click()
    ann.until(lambda: ann.page.evaluate("navigator.clipboard.readText()") == answer, "the answer on the clipboard")


def test_what_the_model_looked_at_is_shown(visit):
    pytest.importorskip("matplotlib")
    ann = visit()
    ann.attach(PHOTO)
    ann.ask(WHAT)
    ann.unfold("explain")
    ann.find("#explain-button").click()
    ann.until(lambda: ann.find("#explain-words mark").count() > 5, "marked words")
    figure = ann.find("#explain-figure img")
    ann.until(lambda: figure.count() and figure.evaluate("image => image.naturalWidth") > 100, "a figure")


def test_there_is_nothing_to_explain_before_an_answer(visit):
    ann = visit()
    ann.unfold("explain")
    ann.find("#explain-button").click()
    ann.problem("there is no answer yet")
