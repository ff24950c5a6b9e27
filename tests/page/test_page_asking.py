"""From a question to its answer, without a browser: the words are the pipeline's, and whatever goes wrong is said."""

import time
from dataclasses import replace
from itertools import pairwise

import folders
import pytest

from adapter_llm.engine import Engine
from adapter_llm.page.asking import checked, write
from adapter_llm.page.attachments import Attachment, from_file, from_words
from adapter_llm.page.sessions import Session
from adapter_llm.results import GenerationOptions

WHAT = "What is in this picture?"
SHORT = GenerationOptions(max_new_tokens=9)
LONG = GenerationOptions(max_new_tokens=200)


@pytest.fixture
def engine(talkative):
    with_room_for_one = Engine(talkative.pipe, batch_size=1, waiting=1)
    yield with_room_for_one
    assert with_room_for_one.close(drain=False, timeout=5)


@pytest.fixture
def session():
    return Session("ann")


@pytest.fixture
def photo(tmp_path):
    folders.picture(7).save(tmp_path / "photo.png")
    return from_file(tmp_path / "photo.png", ["image"])


def asking(session, talkative, engine, question=WHAT, options=SHORT):
    """A turn, and the generator that has it answered."""
    session.begin(lambda: session.conversation.ask(question, str))
    return session.turn, write(session, session.claim(), talkative.pipe, engine, options)


def answered(*arguments):
    turn, writing = asking(*arguments)
    for _ in writing:
        pass
    return turn


def idle(engine):
    for _ in range(300):
        counts = engine.counts
        if not counts.running and not counts.waiting:
            return True
        time.sleep(0.01)
    return False


def test_an_answer_is_the_pipelines_and_grows_until_it_is_that(session, talkative, engine, photo):
    session.conversation.attach(photo)
    turn, writing = asking(session, talkative, engine, WHAT, LONG)
    with talkative.slowly(0.005):
        seen = [turn.answer for _ in writing]
    assert turn.answer == seen[-1] == talkative.pipe.ask(WHAT, image=photo.path, max_new_tokens=200)
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert len(set(seen)) > 10 and not turn.problem


def test_a_follow_up_is_told_the_media_and_what_was_said(session, talkative, engine, photo):
    session.conversation.attach(photo)
    first, second = answered(session, talkative, engine), answered(session, talkative, engine, "And then?")
    said = [(WHAT, "user"), (first.answer, "assistant"), ("And then?", "user")]
    messages = [{"role": role, "content": words} for words, role in said]
    assert second.answer == talkative.pipe.ask(messages, image=photo.path, max_new_tokens=9)
    assert first.answer != second.answer


def test_weights_and_several_media_count(session, talkative, engine, photo):
    session.conversation.attach(replace(photo, weight=0.25))
    session.conversation.attach(from_words("a dog"))
    turn = answered(session, talkative, engine)
    expected = talkative.pipe.ask(WHAT, image=(photo.path, 0.25), text="a dog", max_new_tokens=9)
    assert turn.answer == expected != talkative.pipe.ask(WHAT, image=photo.path, text="a dog", max_new_tokens=9)


@pytest.mark.parametrize("options", [SHORT, GenerationOptions(max_new_tokens=9, temperature=1.0)])
def test_an_answer_can_be_given_again_from_what_was_asked(session, talkative, engine, options):
    turn = answered(session, talkative, engine, WHAT, options)
    assert talkative.pipe.ask(**turn.asked) == turn.answer
    assert "9 tokens" in turn.note  # it was cut off there


def test_broken_media_are_said_in_words_with_the_owners_name_and_the_next_question_is_answered(
    session, talkative, engine, tmp_path
):
    (tmp_path / "holiday.png").write_bytes(b"no picture at all")
    broken = from_file(tmp_path / "holiday.png", ["image"])
    session.conversation.attach(broken)
    turn = answered(session, talkative, engine)
    assert "holiday.png" in turn.problem and str(tmp_path) not in turn.problem and "Traceback" not in turn.problem
    assert not turn.answered and "\n" not in turn.problem
    told = checked(broken, talkative.pipe).problem  # by its header alone
    assert told.startswith("'holiday.png' is no picture that can be read; give PNG, JPEG,")
    session.conversation.remove(0)
    assert answered(session, talkative, engine).answered


def test_what_can_be_looked_at_has_no_problem(talkative, photo):
    assert checked(photo, talkative.pipe) == photo
    hopeless = Attachment("a.docx", problem="it is not known")
    assert checked(hopeless, talkative.pipe) == hopeless


def test_what_nobody_could_have_caused_is_a_sentence_and_a_log(session, talkative, engine, capfd, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("out of\nmemory")

    with monkeypatch.context() as patch:
        patch.setattr(talkative.pipe, "draft", broken)
        turn = answered(session, talkative, engine)
    assert turn.problem == "unexpected RuntimeError: out of memory" and not turn.answer
    assert "Traceback" in capfd.readouterr().err
    assert answered(session, talkative, engine).answered


def test_stopping_keeps_what_was_written(session, talkative, engine):
    turn, writing = asking(session, talkative, engine, WHAT, LONG)
    with talkative.slowly(0.01):
        while len(turn.answer) < 5:
            next(writing)
        session.stop()
        for _ in writing:
            pass
    whole = talkative.pipe.ask(WHAT, max_new_tokens=200)
    assert whole.startswith(turn.answer) and 5 <= len(turn.answer) < len(whole) / 2
    assert "stopped" in turn.note and not turn.problem and idle(engine)


def test_a_stop_while_media_are_read_is_a_stop(session, talkative, engine, monkeypatch):
    draft = talkative.pipe.draft

    def reading(*arguments, **options):
        session.stop()
        return draft(*arguments, **options)

    with monkeypatch.context() as patch, talkative.slowly(0.01):
        patch.setattr(talkative.pipe, "draft", reading)
        turn = answered(session, talkative, engine, WHAT, LONG)
    assert len(turn.answer) < len(talkative.pipe.ask(WHAT, max_new_tokens=200)) / 2 and not turn.problem
    assert idle(engine)


def test_who_does_not_listen_any_more_is_not_written_for(session, talkative, engine):
    turn, writing = asking(session, talkative, engine, WHAT, LONG)
    with talkative.slowly(0.01):
        while not turn.answer:
            next(writing)
        writing.close()
        assert idle(engine) and engine.counts.tokens < 100


def test_places_in_the_queue_are_told_and_a_full_queue_is_a_sentence(talkative, engine):
    people = [Session(name) for name in ("ann", "bob", "eve")]
    with talkative.slowly(0.01):
        turns, writings = zip(*[asking(session, talkative, engine, WHAT, LONG) for session in people], strict=True)
        while not turns[0].answer:
            next(writings[0])
        next(writings[1])
        assert turns[1].waiting == "1 question is before yours" and not turns[1].answer
        for _ in writings[2]:
            pass
        assert "try again later" in turns[2].problem
        people[0].stop()
        while not turns[1].answer:
            next(writings[1])
        assert turns[1].waiting == "" and not turns[1].problem
        people[1].stop()


def test_the_oldest_questions_are_left_out_where_the_model_has_no_room_and_that_is_said(session, talkative, engine):
    limit = talkative.pipe.answerer.max_length
    turns = [answered(session, talkative, engine, f"Number {number}. {WHAT * 4}") for number in range(9)]
    assert not any(turn.problem for turn in turns) and all(turn.answer for turn in turns)
    notes = [turn.note for turn in turns if "oldest" in turn.note]
    assert 2 <= len(notes) < 8 and notes[0].startswith("The oldest question no longer fits into the model's"), notes
    assert notes[-1].split()[1].isdigit() and f"{limit} tokens" in notes[-1]
