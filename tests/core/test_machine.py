"""What the machine leaves to the process: memory that is used again, cores, threads that read ahead, where modules are."""

import os
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from hypothesis import given, strategies as st

from evenslice._core import importable_here, machine, map_ahead, map_tasks, open_workers
from evenslice._core.machine import available_cores

MANY = 64

gnu = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc"
)

# 64 MiB are more than glibc keeps by itself.
COUNT = """
import resource

def faults(times):
    "Count the pages that the system provided while 64 MiB were filled and freed so many times."
    b"x" * 2**26
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""

RUN_COMMAND = """
import sys
from evenslice.cli import main

sys.argv[1:] = ["--version"]
try:
    main()
except SystemExit:
    pass
"""


def faults(times):
    here = {}
    exec(COUNT, here)  # noqa: S102  # ours
    return here["faults"](times)


def counted(code, **environment):
    """Run code in a process of its own, and return how many pages it then got for 64 MiB, ten times."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{COUNT}\nprint(faults(10))"],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name not in machine.KEPT} | environment,
    )
    return int(done.stdout.split()[-1])


@gnu
@pytest.mark.slow
def test_commands_and_workers_use_their_memory_again_unless_the_environment_says_otherwise():
    returned = counted("")  # by a process that returns its memory: few pages if they are huge
    assert counted(RUN_COMMAND) < returned / 5
    assert counted(RUN_COMMAND, MALLOC_TRIM_THRESHOLD_="131072") > returned / 2
    with open_workers(workers=1) as workers:
        ((_, found),) = map_tasks(faults, [10], workers)
    assert found < returned / 5


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (None, MANY),
        ("max 100000\n", MANY),
        ("150000 100000\n", 2),
        ("1000 100000\n", 1),
        ("9900000 100000\n", MANY),
        ("200000", MANY),
        ("200000 0", MANY),
        ("\xff much", MANY),
    ],
)
def test_a_container_may_have_fewer_cores_than_its_machine(text, number, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)), raising=False)
    if text is not None:
        (tmp_path / "cpu.max").write_bytes(text.encode("latin-1"))
    assert available_cores() == number


@pytest.mark.parametrize("already", [True, False])
def test_the_places_of_modules_are_afterwards_what_they_were(already, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)] * already + ["/a", "/b"])
    before = list(sys.path)
    with importable_here():
        assert str(tmp_path) in sys.path
    assert sys.path == before


# Work done ahead in threads: in order, bounded, and over when its user stops, fails or is interrupted.


def none_works():
    until = time.monotonic() + 10
    while any(thread.name == machine.THREAD for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@given(st.integers(0, 30), st.integers(1, 5), st.integers(0, 9))
def test_results_come_in_order_and_no_more_is_taken_than_agreed(count, threads, ahead):
    taken = []

    def items():
        for number in range(count):
            taken.append(threading.current_thread())
            yield number

    found = []
    for number in map_ahead(lambda n: n * n, items(), threads=threads, ahead=ahead):
        found.append(number)
        assert len(taken) <= len(found) + ahead
    assert found == [n * n for n in range(count)]
    assert set(taken) <= {threading.current_thread()}
    none_works()


def test_as_many_at_once_as_there_are_threads():
    meeting = threading.Barrier(3, timeout=10)
    assert len(list(map_ahead(lambda _: meeting.wait(), range(6), threads=3, ahead=5))) == 6


def test_an_error_comes_in_its_turn_as_it_was_raised_and_ends_the_work():
    wrong, begun, found = OSError("the disk is gone"), [], []

    def read(number):
        begun.append(number)
        if number == 3:
            raise wrong
        return number

    with pytest.raises(OSError, match="the disk is gone") as caught:
        found.extend(map_ahead(read, range(100), threads=2, ahead=2))
    assert caught.value is wrong
    assert found == [0, 1, 2]
    assert max(begun) <= 5
    none_works()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_who_stops_leaves_nothing_behind(error):
    begun = []

    def read(number):
        begun.append(number)
        time.sleep(0.01)
        return number

    with pytest.raises(error), closing(map_ahead(read, range(1000), threads=2, ahead=4)) as numbers:
        for number in numbers:
            if number == 5:
                raise error
    none_works()
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
