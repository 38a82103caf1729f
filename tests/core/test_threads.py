"""Work done ahead in threads: in order, bounded, and over when its user stops, fails or is interrupted."""

import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from hypothesis import given, strategies as st

from evenslice._core import threads as reading
from evenslice._core.threads import map_ahead

NAME = "evenslice reading ahead"


def working():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def none_works():
    until = time.monotonic() + 10
    while working():
        assert time.monotonic() < until
        time.sleep(0.01)


@given(st.integers(0, 30), st.integers(1, 5), st.integers(0, 9))
def test_results_come_in_order(count, threads, ahead):
    assert list(map_ahead(lambda n: n * n, range(count), threads=threads, ahead=ahead)) == [
        n * n for n in range(count)
    ]
    none_works()


@pytest.mark.parametrize(("threads", "ahead"), [(1, 0), (1, 1), (3, 1), (2, 5)])
def test_no_more_is_taken_than_agreed(threads, ahead):
    taken = []

    def items():
        for number in range(50):
            taken.append(threading.current_thread())
            yield number

    for number in map_ahead(lambda n: n, items(), threads=threads, ahead=ahead):
        assert len(taken) <= number + 1 + ahead
    assert set(taken) == {threading.current_thread()}


def test_as_many_at_once_as_there_are_threads():
    meeting = threading.Barrier(3, timeout=10)
    assert len(list(map_ahead(lambda _: meeting.wait(), range(6), threads=3, ahead=5))) == 6


def test_an_error_comes_in_its_turn_as_it_was_raised_and_ends_the_work():
    wrong, begun = OSError("the disk is gone"), []

    def read(number):
        begun.append(number)
        if number == 3:
            raise wrong
        return number

    found = []
    with pytest.raises(OSError, match="the disk is gone") as caught:
        found.extend(map_ahead(read, range(100), threads=2, ahead=2))
    assert caught.value is wrong
    assert found == [0, 1, 2]
    assert max(begun) <= 5
    none_works()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_who_stops_leaves_nothing_behind(error):
    begun = []

    def read(number):
        begun.append(number)
        time.sleep(0.01)
        return number

    def use():
        with closing(map_ahead(read, range(1000), threads=2, ahead=4)) as numbers:
            for number in numbers:
                if number == 5:
                    if error:
                        raise error
                    return

    if error:
        with pytest.raises(error):
            use()
    else:
        use()
    assert not working()
    seen = len(begun)
    assert seen <= 5 + 1 + 4
    time.sleep(0.05)
    assert len(begun) == seen


def test_threads_end_even_if_nobody_closes_the_generator():
    numbers = map_ahead(lambda n: n, range(1000), threads=2, ahead=4)
    assert next(numbers) == 0
    none_works()
    assert next(numbers) == 1
    numbers.close()


def test_nobody_waits_for_a_server_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(reading, "PATIENCE", 0.05)
    answer = threading.Event()
    numbers = map_ahead(lambda n: n or answer.wait(30), [1, 0, 2], threads=1, ahead=2)
    assert next(numbers) == 1
    started = time.monotonic()
    numbers.close()
    assert time.monotonic() - started < 5
    answer.set()
    none_works()


def test_python_ends_while_a_server_does_not_answer():
    script = (
        "import time\n"
        "from evenslice._core import map_ahead\n"
        "for number in map_ahead(lambda n: n or time.sleep(60), [1, 0], threads=1, ahead=1):\n"
        "    raise SystemExit(7)\n"
    )
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7
    assert time.monotonic() - started < 30
