"""Damaged volumes open or are refused in one line; and the fuzzer finds what it looks for.

EVENSLICE_FUZZ=2000 pytest tests/volumes/test_fuzz_volumes.py
"""

import os
import signal
import time
from functools import partial

import fuzz_seeds
import fuzzing
import pytest

from evenslice import open_volume

pytestmark = pytest.mark.slow

COUNT = fuzzing.COUNT or 40
LARGEST_SLICE = 2**26


def look(item):
    """Open a volume, and read as much of it as fits into memory."""
    volume = open_volume(item.path, **item.options)
    depth, height, width = volume.shape
    volume[depth // 2, : min(height, 64), : min(width, 64)]
    if height * width * volume.dtype.itemsize <= LARGEST_SLICE:
        volume[depth - 1]


@pytest.mark.parametrize("name", fuzz_seeds.FORMATS)
def test_damaged_volumes_open_or_are_refused(name):
    tally, findings = fuzzing.fuzz(partial(fuzz_seeds.make, name), look, COUNT, seed=11)
    assert findings == []
    assert tally["read"] + tally["refused"] == COUNT
    assert tally["refused"] > 0


SEEN = []


def look_wrongly(kind, item):
    """Read the three seeds, and then do something else."""
    SEEN.append(item)
    if len(SEEN) > 3:
        {
            "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "hang": lambda: time.sleep(60),
            "traceback": lambda: {}["axis"],
            "hoard": lambda: bytearray(2**31),
        }[kind]()


GOES_WRONG = {
    "crash": "0: ended the process with status -11",
    "hang": "0: took longer than 1 s",
    "traceback": "0: raised KeyError: 'axis'",
    "hoard": "0: raised MemoryError: ",
}


@pytest.mark.parametrize("kind", GOES_WRONG)
def test_what_goes_wrong_is_found(kind):
    make, look = partial(fuzz_seeds.make, "npy"), partial(look_wrongly, kind)
    tally, findings = fuzzing.fuzz(make, look, 1, seconds=1)
    assert findings == [GOES_WRONG[kind]]
    assert not tally
