"""Damaged volumes open or are refused in one line.

EVENSLICE_FUZZ=2000 pytest tests/volumes/test_fuzz_volumes.py
"""

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
