"""What the machine leaves to the process: memory that is freed and used again, and cores."""

import os
import subprocess
import sys

import pytest

from evenslice._core import available_cores, machine, map_in_order, open_workers
from evenslice._core.machine import KEPT

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
        env={name: value for name, value in os.environ.items() if name not in KEPT} | environment,
    )
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def returned():
    """The pages of a process that returns its memory, few if they are huge."""
    return counted("")


@gnu
def test_a_command_uses_its_memory_again(returned):
    assert counted(RUN_COMMAND) < returned / 5


@gnu
def test_the_environment_comes_first(returned):
    assert counted(RUN_COMMAND, MALLOC_TRIM_THRESHOLD_="131072") > returned / 2


@gnu
@pytest.mark.slow
def test_workers_use_their_memory_again(returned):
    with open_workers(workers=1) as workers:
        (found,) = map_in_order(faults, [10], workers)
    assert found < returned / 5


@pytest.mark.parametrize(
    ("files", "number"),
    [
        ({}, MANY),
        ({"cpu.max": "max 100000\n"}, MANY),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, MANY),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, MANY),
        ({"cpu.max": ""}, MANY),
        ({"cpu.max": "200000"}, MANY),
        ({"cpu.max": "200000 0"}, MANY),
        ({"cpu.max": "\xff much"}, MANY),
    ],
)
def test_a_container_may_have_fewer_cores_than_its_machine(files, number, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert available_cores() == number


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
