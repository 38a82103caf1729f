"""What the machine leaves to the process: cores, memory, threads that read ahead."""

import os
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from hypothesis import given, strategies as st

from evenslice._core import machine, map_ahead

MANY = 64


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (None, MANY),
        ("max 100000\n", MANY),
        ("150000 100000\n", 2),
        ("9900000 100000\n", MANY),
        ("200000", MANY),
        ("\xff much", MANY),
    ],
)
def test_a_container_may_have_fewer_cores_than_its_machine(text, number, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)), raising=False)
    if text is not None:
        (tmp_path / "cpu.max").write_bytes(text.encode("latin-1"))
    assert machine.available_cores() == number


# Work done ahead in threads: in order, bounded, and over when its user stops, fails or is interrupted.


def none_works():
    until = time.monotonic() + 10
    while any(thread.name == machine.THREAD for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


@given(st.integers(0, 30), st.integers(1, 5), st.integers(0, 9))
def test_results_come_in_order_and_no_more_is_taken_than_agreed(count, threads, ahead):
    taken, found = [], []

    def items():
        for number in range(count):
            taken.append(threading.current_thread())
            yield number

    for number in map_ahead(lambda n: n * n, items(), threads=threads, ahead=ahead):
        found.append(number)
        assert len(taken) <= len(found) + ahead
    assert found == [n * n for n in range(count)]
    assert set(taken) <= {threading.current_thread()}


def test_as_many_at_once_as_there_are_threads():
    meeting = threading.Barrier(3, timeout=10)
    assert len(list(map_ahead(lambda _: meeting.wait(), range(6), threads=3, ahead=5))) == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("inside", [True, False])
def test_an_error_comes_in_its_turn_and_who_stops_leaves_nothing_behind(error, inside):
    begun, found = [], []

    def read(number):
        begun.append(number)
        if inside and number == 5:
            raise error
        time.sleep(0.01)
        return number

    with pytest.raises(error), closing(map_ahead(read, range(1000), threads=2, ahead=4)) as numbers:
        for number in numbers:
            found.append(number)
            if number == 5:
                raise error
    none_works()
    assert found == list(range(5 if inside else 6))
    assert len(begun) <= 5 + 1 + 4


def test_nobody_waits_for_a_server_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(machine, "PATIENCE", 0.05)
    answer = threading.Event()
    numbers = map_ahead(lambda n: n or answer.wait(30), [1, 0, 2], threads=1, ahead=2)
    assert next(numbers) == 1
    started = time.monotonic()
    numbers.close()
    assert time.monotonic() - started < 5
    answer.set()
    none_works()


@pytest.mark.slow
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


ALLOCATE = """
import sys, time
from evenslice._core import limit_memory
limit, watch = sys.argv[1:]
limit_memory(int(limit), watch=watch == "watch")
try:
    taken = bytearray(3 * 2**29)
    taken[:: 2**12] = b"x" * len(taken[:: 2**12])
except MemoryError:
    sys.exit("MemoryError")
time.sleep(2)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the data of a process are limited on Linux alone")
@pytest.mark.parametrize(
    ("limit", "watch", "status", "said"),
    [
        (2**30, "", 1, "MemoryError\n"),
        (2**30, "watch", 2, "error: memory: more than 1 GiB, the limit, are needed\n"),
        (2**31, "watch", 0, ""),
        (0, "", 0, ""),
    ],
)
def test_a_process_takes_no_more_memory_than_its_limit(limit, watch, status, said):
    command = [sys.executable, "-c", ALLOCATE, str(limit), watch]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, said)


def test_a_system_without_limits_of_memory_is_said_to_have_none(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    done = command("--memory-limit", "1", "report", ".")
    assert (done.returncode, done.stderr.startswith("error: --memory-limit")) == (2, True), done.stderr
