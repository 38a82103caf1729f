"""Run a few lines of Python in a process of their own, and tell what they did, how long it took and how much memory."""

import multiprocessing
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from forking import forked

from evenslice._core.errors import EvensliceError

MEMORY = 2**30
SECONDS = 30
PACE = 0.045
"""Seconds in which the processor that ``SECONDS`` are counted on adds a million squares; others are slower, or shared."""

IMPORTS = """
from evenslice import open_volume
from evenslice.volumes import *
from evenslice.volumes.blocks import iterate_blocks
"""

PATIENCE = 60
"""Seconds on the clock before a process is ended: others may use this machine too."""


@dataclass
class Answer:
    """What a process did.

    Attributes:
        said: "gave ..." a value, "refused: ..." with an error of evenslice, "raised ..." another, or why it was ended.
        seconds: the processor time that it took, on a processor of the speed ``PACE``.
        memory: the most bytes that it took beyond what it started with.
    """

    said: str
    seconds: float
    memory: int


def answer(expression: str, path: object) -> Answer:
    """Evaluate an expression with ``path``, ``open_volume`` and all of ``evenslice.volumes``.

    The process is ended when it takes ``MEMORY`` more than it started with, or ``PATIENCE``.
    """
    if sys.platform != "linux":
        pytest.skip("memory is read from /proc")
    here, there = multiprocessing.Pipe()
    process = forked(_evaluate, there, str(path))
    there.close()
    try:
        assert _received(process, here) == "ready"
        before, most = _memory(process.pid), 0
        here.send(expression)
        started = time.monotonic()
        while process.is_alive() and not here.poll(0.005):
            most = max(most, _memory(process.pid) - before)
            elapsed = time.monotonic() - started
            if most > MEMORY:
                return Answer(f"took more than {MEMORY:,} bytes", elapsed, most)
            if elapsed > PATIENCE:
                return Answer(f"took more than {PATIENCE} s", elapsed, most)
        said, seconds, pace = _received(process, here)
        return Answer(said, seconds * PACE / pace, most)
    finally:
        process.kill()
        process.join()


def _received(process, connection):
    """Return what a process sends, or fail with its exit status."""
    try:
        return connection.recv()
    except EOFError:
        process.join()
        pytest.fail(f"the process ended with {process.exitcode}")


def _evaluate(connection, path: str) -> None:
    """Evaluate the expression that comes through a connection; send word before, and what came of it after."""
    warnings.simplefilter("ignore")
    names = {"path": path}
    exec(IMPORTS, names)  # noqa: S102 - these lines, and those of the test
    before = _pace()
    connection.send("ready")
    expression = connection.recv()
    started = time.process_time()
    try:
        said = f"gave {eval(expression, names)}"  # noqa: S307 - likewise
    except Exception as error:  # noqa: BLE001 - which are what tests ask for
        kind = "refused" if isinstance(error, EvensliceError) else f"raised {type(error).__name__}"
        said = f"{kind}: {error}"
    seconds = time.process_time() - started
    connection.send((said[:600], seconds, (before + _pace()) / 2))


def _pace() -> float:
    started = time.process_time()
    sum(number * number for number in range(1_000_000))
    return time.process_time() - started


def _memory(pid: int) -> int:
    """Return the bytes of its own that a process holds: not those of mapped files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))


def assert_bounded(found: Answer, said: str) -> None:
    """Check that a process said what it should, within bounds."""
    assert found.said.startswith(said), found
    assert found.seconds <= SECONDS, found
    assert found.memory <= MEMORY, found
