"""Evaluate an expression in a process of its own, and tell what came of it, how long it took and how much memory."""

import multiprocessing
import sys
import time
import warnings
from typing import NamedTuple

import pytest
from commands import largest_memory
from forking import forked

from evenslice import EvensliceError

MEMORY, SECONDS, PATIENCE = 2**30, 30, 120

IMPORTS = """
from evenslice import open_volume
from evenslice.volumes import *
from evenslice.volumes.blocks import iterate_blocks
"""


class Answer(NamedTuple):
    """What a process did: "gave ..." a value, "refused: ..." with an error of evenslice, or "raised ..." another.

    Attributes:
        said: that.
        seconds: of its processor.
        memory: the most bytes that it took beyond what it started with.
    """

    said: str
    seconds: float
    memory: int


def answer(expression, path):
    """Evaluate an expression with ``path``, ``open_volume`` and all of ``evenslice.volumes``."""
    if sys.platform != "linux":
        pytest.skip("memory is read from /proc")
    here, there = multiprocessing.Pipe(duplex=False)
    process = forked(_evaluate, there, expression, str(path))
    there.close()
    try:
        assert here.poll(PATIENCE), f"took more than {PATIENCE} s"
        return Answer(*here.recv())
    except EOFError:
        pytest.fail("the process ended without an answer")
    finally:
        process.kill()
        process.join()


def _evaluate(pipe, expression, path):
    warnings.simplefilter("ignore")
    names = {"path": path}
    exec(IMPORTS, names)  # noqa: S102 - these lines, and those of the test
    before, started = largest_memory(), time.process_time()
    try:
        said = f"gave {eval(expression, names)}"  # noqa: S307 - likewise
    except Exception as error:  # noqa: BLE001 - which are what tests ask for
        kind = "refused" if isinstance(error, EvensliceError) else f"raised {type(error).__name__}"
        said = f"{kind}: {error}"
    pipe.send((said[:600], time.process_time() - started, largest_memory() - before))


def assert_bounded(found, said):
    """Check that a process said what it should, within bounds."""
    assert found.said.startswith(said), found
    assert found.seconds <= SECONDS, found
    assert found.memory <= MEMORY, found
