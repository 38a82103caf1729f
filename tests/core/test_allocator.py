"""Memory that is freed and used again, without the system, which would clear it."""

import os
import subprocess
import sys

import pytest

from evenslice._core import map_in_order, open_cluster
from evenslice._core.allocator import KEPT

pytestmark = pytest.mark.skipif(
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


def test_a_command_uses_its_memory_again(returned):
    assert counted(RUN_COMMAND) < returned / 5


def test_the_environment_comes_first(returned):
    assert counted(RUN_COMMAND, MALLOC_TRIM_THRESHOLD_="131072") > returned / 2


@pytest.mark.slow
def test_workers_use_their_memory_again(returned):
    with open_cluster(workers=1) as client:
        (found,) = map_in_order(faults, [10], client)
    assert found < returned / 5
