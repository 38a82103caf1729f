"""The intervals of the stress test: by the slices that have foreground, and right about the volume as often as they say.

An intact answer is perfect; without the neighbour, each slice loses a part of its foreground that is log-normal with mean
0.1. The foreground is an organ, largest in the middle; parts are autoregressions along z. The test reads every fifth slice; the
truth is that of all slices.
"""

import numpy as np
import pytest
from scipy.signal import lfilter

from evenslice.results import Stress

SPREAD, EVERY = 0.5, 5


def organ(slices, inside):
    """Areas of an organ that is in some slices."""
    place = (np.arange(slices) - (slices - 1) / 2) / (inside / 2)
    return 1e4 * np.maximum(0.0, 1 - place**2)


def counts(generator, areas, correlation=0.0):
    """What a stress test with one kind of disturbance at one distance counts."""
    whole = np.round(areas).astype(np.int64)
    noise = generator.normal(size=(2, len(areas))) * (1 - correlation**2) ** 0.5
    noise[:, 0] /= (1 - correlation**2) ** 0.5
    values = lfilter([1], [1, -correlation], noise)
    lost = np.minimum(0.1 * np.exp(SPREAD * values - SPREAD**2 / 2), 1)
    before, after = np.round(whole * (1 - lost)).astype(np.int64)
    hits = np.stack([whole, whole, before, after, before], axis=1)
    background = np.full_like(hits, 10**6)
    # What is missing is taken for background, and as much background for foreground: Dice is the part that is kept.
    sizes = np.repeat(2 * whole[:, None], hits.shape[1], axis=1)
    sides = (np.stack([background, hits], axis=2), np.stack([2 * background, sizes], axis=2))
    return (np.zeros(len(areas), np.int64), *sides)


def summarized(found):
    return Stress.of_counts(*found, [("missing", 1)], reference="labels").losses[0]


def test_slices_without_foreground_say_nothing_about_the_precision():
    found = counts(np.random.default_rng(0), organ(30, 24), 0.0)
    inside = np.flatnonzero(found[1][:, 0, 1])
    assert len(inside) == 24
    assert summarized(found) == summarized([part[inside] for part in found])


def test_a_few_large_slices_are_worth_few():
    generator = np.random.default_rng(0)
    even, uneven = np.full(60, 1e4), np.where(np.arange(60) % 10, 100.0, 1e5)
    known = (summarized(counts(generator, areas)).before.loss for areas in (even, uneven))
    narrow, wide = (interval.high - interval.low for interval in known)
    assert wide > 2 * narrow


@pytest.mark.parametrize(("slices", "inside"), [(60, 24), (60, 8), (16, 6)])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_intervals_hold_what_all_slices_of_the_volume_lose(slices, inside, correlation):
    generator, held = np.random.default_rng(0), []
    for run in range(150):
        whole = counts(generator, organ(EVERY * slices, EVERY * inside), correlation)
        found = summarized([part[run % EVERY :: EVERY] for part in whole])
        truth = summarized(whole)
        pairs = ((found.before.loss, truth.before.loss), (found.asymmetry, truth.asymmetry))
        held.append([own.low <= true.estimate <= own.high for own, true in pairs])
    assert np.mean(held, axis=0).min() >= 0.9
