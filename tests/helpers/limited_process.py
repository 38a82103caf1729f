"""Run a few lines of Python in a process of their own, and tell what they did, how long it took and how much memory."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

MEMORY = 2**30
SECONDS = 5
PACE = 0.045
"""Seconds in which the processor that ``SECONDS`` are counted on adds a million squares; others are slower, or shared."""

PATIENCE = 60
"""Seconds on the clock before a process is ended: others may use this machine too."""

_CHILD = """
import json, sys, time
import h5py, imagecodecs, numpy as np, pydicom, tifffile, zarr, zarr.storage
import pydicom.pixels.decoders, pydicom.encaps, nibabel, PIL.PngImagePlugin, PIL.JpegImagePlugin
from scipy.stats import qmc
from evenslice import open_volume
from evenslice.volumes import *
from evenslice.volumes.blocks import iterate_blocks
def pace():
    started = time.process_time()
    sum(number * number for number in range(1_000_000))
    return time.process_time() - started
path, = sys.argv[1:]
before = pace()
print("ready", flush=True)
started = time.process_time()
try:
    said = eval(compile(sys.stdin.read(), "<lines>", "eval"))
    said = f"gave {said}"
except Exception as error:
    from evenslice._core.errors import EvensliceError
    kind = "refused" if isinstance(error, EvensliceError) else f"raised {type(error).__name__}"
    said = f"{kind}: {error}"
seconds = time.process_time() - started
print(json.dumps([said[:600], seconds, (before + pace()) / 2]), flush=True)
"""


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
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            ready = process.stdout.readline()
            assert ready == "ready\n", process.stderr.read()[-2000:]
            before, most = _memory(process.pid), 0
            process.stdin.write(expression)
            process.stdin.close()
            started = time.monotonic()
            while process.poll() is None:
                most = max(most, _memory(process.pid) - before)
                elapsed = time.monotonic() - started
                if most > MEMORY:
                    return Answer(f"took more than {MEMORY:,} bytes", elapsed, most)
                if elapsed > PATIENCE:
                    return Answer(f"took more than {PATIENCE} s", elapsed, most)
                time.sleep(0.005)
            line = process.stdout.read()
            assert line, process.stderr.read()[-2000:]
            said, seconds, pace = json.loads(line)
            return Answer(said, seconds * PACE / pace, most)
        finally:
            process.kill()


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
