"""Reading ahead: on threads, bounded, and whatever goes wrong reaches whom it belongs to."""

import threading
import time

import pytest

from adapter_llm.caption.reading import ReadAhead


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.001)


def everything(reading, limit=3):
    found = []
    while taken := reading.take(limit, wait=10):
        assert len(taken) <= limit
        found += taken
    assert reading.ended and len(reading) == 0
    return found


@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize("ahead", [1, 2, 50])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_each_input_once(threads, ahead, count):
    found = everything(ReadAhead(lambda n: n * n, range(count), threads, ahead))
    assert sorted(found) == [(n, n * n) for n in range(count)]


def test_no_more_are_read_than_may_wait():
    taken_up = []

    def inputs():
        for number in range(1000):
            taken_up.append(number)
            yield number

    reading = ReadAhead(lambda n: n, inputs(), 3, 5)
    until(lambda: len(reading) == 5)
    time.sleep(0.02)
    assert len(taken_up) == len(reading) == 5 and not reading.ended
    assert len(reading.take(2)) == 2
    until(lambda: len(reading) == 5)
    time.sleep(0.02)
    assert len(taken_up) == 7
    reading.close()


def test_a_slow_one_delays_no_other():
    slow = threading.Event()
    reading = ReadAhead(lambda n: slow.wait(10) if n == 0 else n, range(6), 2, 6)
    first = [reading.take(1, wait=10) for _ in range(5)]
    assert sorted(first) == [[(n, n)] for n in range(1, 6)] and not reading.ended
    slow.set()
    assert reading.take(9, wait=10) == [(0, True)] and reading.take(9, wait=10) == []


def test_taking_without_waiting_returns_at_once():
    reading = ReadAhead(lambda n: time.sleep(5), range(3), 1, 3)
    began = time.monotonic()
    assert reading.take(3) == [] and time.monotonic() - began < 1
    reading.close()


def test_waiting_has_an_end():
    slow = threading.Event()
    reading = ReadAhead(lambda n: slow.wait(10), range(1), 1, 3)
    began = time.monotonic()
    assert reading.take(3, wait=0.1) == [] and 0.1 <= time.monotonic() - began < 5
    slow.set()
    assert reading.take(3, wait=10) == [(0, True)]


def test_an_error_belongs_to_its_input():
    def read(number):
        if number % 3 == 0:
            raise KeyError(f"number {number}")
        return number

    found = dict(everything(ReadAhead(read, range(9), 2, 4)))
    assert {number for number, result in found.items() if isinstance(result, KeyError)} == {0, 3, 6}
    assert str(found[3]) == "'number 3'" and found[4] == 4


def test_an_error_of_the_list_itself_comes_after_what_was_before_it():
    def inputs():
        yield from range(4)
        raise RuntimeError("the table ends here")

    reading = ReadAhead(lambda n: n, inputs(), 3, 2)
    found = [reading.take(1, wait=10) for _ in range(4)]
    assert sorted(found) == [[(n, n)] for n in range(4)]
    with pytest.raises(RuntimeError, match="the table ends here"):
        reading.take(1, wait=10)


def test_inputs_are_walked_through_by_one_thread_at_a_time():
    inside = []

    def inputs():
        for number in range(30):
            inside.append(number)
            time.sleep(0.0005)
            assert inside == [number]
            inside.clear()
            yield number

    assert len(everything(ReadAhead(lambda n: n, inputs(), 6, 12))) == 30


def test_threads_end_when_it_is_closed():
    before = threading.active_count()
    reading = ReadAhead(lambda n: n, iter(int, 1), 4, 6)  # for ever
    until(lambda: len(reading) == 6)
    reading.close()
    until(lambda: threading.active_count() == before)
    assert reading.ended
