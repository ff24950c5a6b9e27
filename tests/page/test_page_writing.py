"""The page's events around an answer that is being written, without a browser: each question is answered, and once."""

from types import SimpleNamespace

import pytest
from test_page_asking import idle

from adapter_llm.engine import Engine
from adapter_llm.page.owners import new_name
from adapter_llm.page.sessions import Sessions
from adapter_llm.page.settings import PageSettings

WHAT, OTHER = "What is in this picture?", "Is it a dog?"
LONG = (200, 0.0, 1.0, "")  # what the sliders say


class Person:
    """Somebody at the page: the events that their browser would set off."""

    def __init__(self, events, cookie):
        self.events = events
        self.request = SimpleNamespace(session_hash="page", cookies={cookie: new_name()})

    @property
    def session(self):
        return self.events.context.session(self.request)

    @property
    def turns(self):
        return self.session.conversation.turns

    def ask(self, words):
        """What the status line says."""
        return self.events.ask({"text": words, "files": []}, self.request)[2]

    def writing(self, *chosen):
        """What the chat becomes, step by step: that of the page before, first."""
        return self.events.write(self.request, *(chosen or LONG))

    def clear(self):
        return self.events.clear(self.request)


@pytest.fixture
def person(talkative, tmp_path):
    from adapter_llm.page.context import Context
    from adapter_llm.page.media import MediaEvents
    from adapter_llm.page.questions import QuestionEvents

    engine = Engine(talkative.pipe, batch_size=2, waiting=2)
    context = Context(talkative.pipe, engine, PageSettings(), Sessions(tmp_path), "cookie")
    yield Person(QuestionEvents(context, MediaEvents(context), []), "cookie")
    assert engine.close(drain=False, timeout=5)


def until_words(person, writing):
    while not person.turns[-1].answer:
        next(writing)


def test_a_conversation_begun_anew_while_an_answer_is_written_has_answers(person, talkative):
    engine = person.events.context.engine
    assert person.ask(WHAT) == ""
    with talkative.slowly(0.01):
        writing = person.writing()
        until_words(person, writing)
        person.clear()
        assert list(writing) == [] and person.turns == []
        assert idle(engine) and engine.counts.tokens < 100
    assert person.ask(OTHER) == ""
    list(person.writing())
    assert [turn.answer for turn in person.turns] == [talkative.pipe.ask(OTHER, max_new_tokens=200)]
    assert person.session.turn is None


def test_a_conversation_begun_anew_while_an_answer_is_prepared_has_answers(person, talkative, monkeypatch):
    draft = talkative.pipe.draft

    def reading(*arguments, **options):
        monkeypatch.undo()
        person.clear()
        assert person.ask(OTHER) == ""
        return draft(*arguments, **options)

    engine = person.events.context.engine
    person.ask(WHAT)
    monkeypatch.setattr(talkative.pipe, "draft", reading)
    with talkative.slowly(0.01):
        list(person.writing())  # of what nobody wants to know any more
        assert idle(engine) and engine.counts.tokens < 50
    assert [turn.answer for turn in person.turns] == [""]
    list(person.writing())
    assert [turn.answer for turn in person.turns] == [talkative.pipe.ask(OTHER, max_new_tokens=200)]


def test_a_second_enter_while_a_question_is_prepared_is_refused_and_writes_nothing(person, talkative, monkeypatch):
    draft, seen = talkative.pipe.draft, []

    def reading(*arguments, **options):
        monkeypatch.undo()
        seen.append(person.ask(WHAT))
        seen.extend(person.writing())  # comes after every asking, also one that was refused
        return draft(*arguments, **options)

    person.ask(WHAT)
    monkeypatch.setattr(talkative.pipe, "draft", reading)
    list(person.writing())
    assert "still being written" in seen[0] and len(seen) == 2  # the second leaves the chat as it is
    assert [turn.answer for turn in person.turns] == [talkative.pipe.ask(WHAT, max_new_tokens=200)]


def test_a_seed_that_is_none_is_said_and_the_next_question_is_answered(person):
    person.ask(WHAT)
    list(person.writing(9, 0.0, 1.0, "seven"))
    assert "the seed is 'seven'" in person.turns[0].problem
    assert person.ask(OTHER) == ""
    list(person.writing())
    assert person.turns[1].answered
