"""A short run of what ``make fuzz`` does at length."""

import random

import fuzz_seeds
import fuzz_volumes
import numpy as np
import pytest

from evenslice import open_volume

COUNT = 40
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", fuzz_seeds.FORMATS)
def test_damaged_volumes_open_or_are_refused(name):
    tally, findings = fuzz_volumes.fuzz(name, COUNT, seed=11)
    assert findings == []
    assert tally["read"] + tally["refused"] == COUNT
    assert tally["refused"] > 0


@pytest.mark.parametrize("name", fuzz_seeds.FORMATS)
def test_the_seeds_are_valid_and_whole_again_after_damage(name, tmp_path):
    chance = random.Random(0)
    for item in fuzz_seeds.make(name, tmp_path):
        before = {file: file.read_bytes() for file in item.files}
        whole = open_volume(item.path, **item.options)[...]
        with item.damaged(lambda content: fuzz_volumes.damaged(content, chance), chance):
            pass
        assert {file: file.read_bytes() for file in item.files} == before
        np.testing.assert_array_equal(open_volume(item.path, **item.options)[...], whole)
