"""Many callers and one model: everybody gets his own answer, and nobody spoils another's."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import folders
import pytest
import torch

from adapter_llm.engine import Engine, EngineBusy, EngineClosed, Piece
from adapter_llm.results import Result

QUESTIONS = ["Hi", "What is in this picture?", "Is it raining on the grass, or is it not?", "A dog and a cat. " * 6]
LONG = {"max_new_tokens": 400}


@contextmanager
def running(pipe, **options):
    engine = Engine(pipe, **options)
    try:
        yield engine
    finally:
        assert engine.close(drain=False, timeout=20)


@contextmanager
def slow(pipe, seconds=0.005):
    with pipe.model.llama.register_forward_pre_hook(lambda *_: time.sleep(seconds)):
        yield


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.002)


def requests(count):
    for number in range(count):
        media = {} if number % 3 == 2 else {"image": folders.picture(number % 5)}
        chance = {"temperature": 1.0, "seed": number} if number % 2 else {}
        yield QUESTIONS[number % 4], {**media, **chance, "max_new_tokens": 3 + 5 * number % 23}


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_everybody_gets_the_answer_that_he_gets_alone(pipe, batch_size):
    given = list(requests(24))
    alone = [pipe.ask(question, **options) for question, options in given]
    with running(pipe, batch_size=batch_size, waiting=24) as engine, ThreadPoolExecutor(8) as callers:

        def ask(request):
            pieces = engine.submit(pipe.draft(request[0], **request[1]))
            return "".join(piece.text for piece in pieces), pieces.result()

        found = list(callers.map(ask, given))
    assert [text for text, _ in found] == alone
    assert [result.text for _, result in found] == alone


def test_they_are_written_side_by_side(pipe):
    with running(pipe, batch_size=4) as engine, slow(pipe):
        answers = [engine.submit(pipe.draft(question, max_new_tokens=20)) for question in QUESTIONS]
        wanted = sum(answer.result().n_tokens for answer in answers)
        until(lambda: engine.counts.running == 0)
        assert engine.counts.tokens == wanted
        assert engine.counts.steps < wanted * 0.7


def test_a_listener_hears_pieces_and_then_the_end(pipe):
    heard, done = [], threading.Event()

    def tell(event):
        heard.append(event)
        if not isinstance(event, Piece):
            done.set()

    with running(pipe) as engine:
        engine.submit(pipe.draft(QUESTIONS[1], max_new_tokens=30, top_logprobs=2), tell)
        assert done.wait(20)
    *pieces, result = heard
    assert isinstance(result, Result)
    assert "".join(piece.text for piece in pieces) == result.text == pipe.ask(QUESTIONS[1], max_new_tokens=30)
    assert sum((piece.logprobs for piece in pieces), ()) == result.logprobs


def test_leaving_cancels_and_touches_nobody_else(pipe):
    with running(pipe) as engine, slow(pipe):
        with folders.says(pipe, "word " * 400):
            stays, goes = (engine.submit(pipe.draft(question, **LONG)) for question in QUESTIONS[:2])
            for piece in goes:
                assert piece.text
                break
            until(lambda: engine.counts.running == 1)
            written = stays.draft.n_tokens
            until(lambda: stays.draft.n_tokens > written + 5)
        stays.cancel()
        assert stays.result().finish_reason == "cancelled"
        assert "wo" in stays.result().text
        assert goes.draft.finish_reason == "cancelled"


def test_who_waits_may_leave_too(pipe):
    with running(pipe, batch_size=1, waiting=3) as engine, slow(pipe), folders.says(pipe, "word " * 400):
        first, second, third = (engine.submit(pipe.draft("Hi", **LONG)) for _ in range(3))
        until(lambda: engine.counts.running == 1)
        assert [first.position, second.position, third.position] == [0, 1, 2]
        second.cancel()
        assert second.result().finish_reason == "cancelled"
        assert second.result().text == ""
        assert third.position == 1
        first.cancel()
        until(lambda: third.position == 0)


def test_too_many_are_refused_at_once(pipe):
    with running(pipe, batch_size=2, waiting=1) as engine, slow(pipe), folders.says(pipe, "word " * 400):
        answers = [engine.submit(pipe.draft("Hi", **LONG)) for _ in range(3)]
        with pytest.raises(EngineBusy, match="as many questions are waiting as may wait, 1; try again later"):
            engine.submit(pipe.draft("Hi", **LONG))
        for answer in answers:
            answer.cancel()
        until(lambda: engine.counts.running == 0 and engine.counts.waiting == 0)
        engine.submit(pipe.draft("Hi", max_new_tokens=1)).result()


def test_an_error_is_its_own_rows(pipe):
    """The forward pass breaks whenever a row of the poisoned question is in it."""
    poison = pipe.processor.tokenizer("zebra").input_ids
    size = len(poison)

    def break_on_poison(llama, args, kwargs):
        rows = kwargs.get("input_ids", args[0] if args else None)
        if any(poison == row[n : n + size] for row in rows.tolist() for n in range(len(row))):
            raise RuntimeError("poison")

    given = list(requests(6))
    alone = [pipe.ask(question, **options) for question, options in given]
    hook = pipe.model.llama.register_forward_pre_hook(break_on_poison, with_kwargs=True)
    with hook, running(pipe, batch_size=8) as engine:
        answers = [engine.submit(pipe.draft(question, **options)) for question, options in given[:3]]
        bad = engine.submit(pipe.draft("zebra"))
        answers += [engine.submit(pipe.draft(question, **options)) for question, options in given[3:]]
        with pytest.raises(RuntimeError, match="poison"):
            bad.result()
        assert [answer.result().text for answer in answers] == alone


def test_a_step_that_breaks_once_costs_nobody_his_answer(pipe):
    given, calls = list(requests(6)), []
    alone = [pipe.ask(question, **options) for question, options in given]

    def break_once(*_):
        calls.append(None)
        if len(calls) == 5:
            raise MemoryError("for a moment")

    with pipe.model.llama.register_forward_pre_hook(break_once), running(pipe, batch_size=8) as engine:
        answers = [engine.submit(pipe.draft(question, **options)) for question, options in given]
        assert [answer.result().text for answer in answers] == alone
    assert len(calls) > 5


def test_a_listener_that_breaks_is_let_go(pipe):
    def tell(event):
        raise OSError("gone")

    with running(pipe) as engine:
        engine.submit(pipe.draft("Hi", **LONG), tell)
        other = engine.submit(pipe.draft(QUESTIONS[1], max_new_tokens=20))
        assert other.result().text == pipe.ask(QUESTIONS[1], max_new_tokens=20)
        until(lambda: engine.counts.running == 0)


def test_work_between_steps_is_alone_with_the_model(pipe):
    inside = []

    def look():
        assert threading.current_thread().name == "engine"
        inside.append(len(calls))
        time.sleep(0.03)
        inside.append(len(calls))
        return torch.ones(2)

    with running(pipe) as engine, folders.says(pipe, "word " * 400) as calls:
        answer = engine.submit(pipe.draft("Hi", **LONG))
        until(lambda: len(calls) > 3)
        assert torch.equal(engine.run(look), torch.ones(2))
        assert inside[0] == inside[1]
        with pytest.raises(ZeroDivisionError):
            engine.run(lambda: 1 / 0)
        answer.cancel()


@pytest.mark.parametrize("drain", [True, False])
def test_closing(pipe, drain):
    engine = Engine(pipe, batch_size=1)
    with slow(pipe, 0.002), folders.says(pipe, "word " * 20, end=False):
        answers = [engine.submit(pipe.draft("Hi", max_new_tokens=15)) for _ in range(3)]
        until(lambda: engine.counts.running == 1)
        assert engine.close(drain=drain, timeout=20)
    reasons = [answer.result().finish_reason for answer in answers]
    assert reasons == ["length"] * 3 if drain else reasons[1:] == ["cancelled"] * 2
    for refused in (lambda: engine.submit(pipe.draft("Hi")), lambda: engine.run(list)):
        with pytest.raises(EngineClosed, match="the program is ending"):
            refused()


def test_closing_waits_no_longer_than_it_may(pipe):
    engine = Engine(pipe)
    with slow(pipe, 0.02), folders.says(pipe, "word " * 400):
        engine.submit(pipe.draft("Hi", **LONG))
        started = time.monotonic()
        assert not engine.close(timeout=0.1)
        assert time.monotonic() - started < 2
        assert engine.close(drain=False, timeout=20)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"waiting": -1}])
def test_wrong_sizes(pipe, wrong):
    with pytest.raises(ValueError, match="must be at least"):
        Engine(pipe, **wrong)


def test_one_task_a_step(pipe):
    steps, done = [], []
    with running(pipe) as engine, slow(pipe), folders.says(pipe, "word " * 400):
        answer = engine.submit(pipe.draft("Hi", **LONG))
        until(lambda: engine.counts.steps > 2)
        callers = [threading.Thread(target=lambda: done.append(engine.run(lambda: steps.append(engine._steps))))
                   for _ in range(4)]  # fmt: skip
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        answer.cancel()
    assert len(set(steps)) == len(done) == 4, "answers went on between them"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_breaks_down_leaves_nobody_waiting(pipe, monkeypatch):
    engine = Engine(pipe, batch_size=1)
    with slow(pipe), folders.says(pipe, "word " * 400):
        answers = [engine.submit(pipe.draft("Hi", **LONG)) for _ in range(2)]
        until(lambda: engine.counts.running == 1)
        monkeypatch.setattr(engine, "_advance", lambda: 1 / 0)
        for answer in answers:
            with pytest.raises(EngineClosed, match="broke down"):
                answer.result()
    engine._thread.join(20)
    assert not engine.alive
    with pytest.raises(EngineClosed):
        engine.submit(pipe.draft("Hi"))


def test_drafts_of_weights_that_come_and_go_are_made_by_the_engine(pipe):
    with running(pipe) as engine:
        assert engine.alive
        assert engine.prepare(lambda: threading.current_thread().name) == threading.current_thread().name
        engine._visiting = True
        assert engine.prepare(lambda: threading.current_thread().name) == "engine"
    assert not engine.alive
