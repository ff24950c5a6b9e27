"""A page whose model is busy: who waits is told how many are before them, and who cannot wait is told that."""

from dataclasses import replace

import pytest

WHAT = "What is in this picture?"


@pytest.fixture(scope="module")
def settings(settings):
    return replace(settings, batch_size=1, queue_size=2)


def test_who_waits_sees_their_place_and_is_answered_when_it_is_their_turn(visit, site, talkative):
    ann, bob, eve, sue = (visit() for _ in range(4))
    with talkative.slowly(0.2):
        ann.begin(WHAT)
        for person, before in [(bob, "1 question is before yours"), (eve, "2 questions are before yours")]:
            person.send(WHAT)
            person.until(lambda person=person, before=before: before in person.page.inner_text("body"), before)
        assert bob.answers == eve.answers == []
        sue.send(WHAT)
        assert "try again later" in sue.problem("waiting")  # the queue is full
        bob.stop()  # who waits can stop, too, and the others move up
        eve.until(lambda: "1 question is before yours" in eve.page.inner_text("body"), "a better place")
        bob.until(lambda: not bob.writing, "the end of waiting")
        assert not ann.problems and ann.writing
    expected = talkative.pipe.ask(WHAT, max_new_tokens=24)
    assert ann.answer() == eve.answer() == expected and bob.answers == []
    assert "before yours" not in eve.page.inner_text("body")
    assert sue.ask(WHAT) and bob.ask(WHAT) and bob.problems == []
