"""The intervals of the stress test: by the slices that have foreground, and right about the volume as often as they say."""

import numpy as np
import pytest
from stress_simulation import counts, coverage, organ

from evenslice.results import Stress


def summarized(found):
    return Stress.of_counts(*found, [("missing", 1)], reference="labels").losses[0]


def test_slices_without_foreground_say_nothing_about_the_precision():
    found = counts(np.random.default_rng(0), organ(30, 24), 0.0)
    inside = np.flatnonzero(found[1][:, 0, 1])
    alone = [part[inside] for part in found]
    assert len(inside) == 24
    assert summarized(found) == summarized(alone)


def test_a_few_large_slices_are_worth_few():
    generator = np.random.default_rng(0)
    even, uneven = np.full(60, 1e4), np.where(np.arange(60) % 10, 100.0, 1e5)
    widths = [
        interval.high - interval.low
        for interval in (summarized(counts(generator, areas, 0.0)).before.loss for areas in (even, uneven))
    ]
    assert widths[1] > 2 * widths[0]


@pytest.mark.parametrize(("slices", "inside"), [(60, 24), (60, 8), (16, 6)])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_intervals_hold_what_all_slices_of_the_volume_lose(slices, inside, correlation):
    loss, asymmetry = coverage(slices, correlation, 150, inside=inside)
    assert loss >= 0.9
    assert asymmetry >= 0.9
