"""The order of windows: every prefix is a fair sample, spread in proportion, and the same however it is measured."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from formulas import audit_formula, noise
from hypothesis import given, settings, strategies as st
from torch import nn

from evenslice import Sampling, Scaling, open_volume
from evenslice.auditing.sampling import WindowSample
from evenslice.volumes import WindowGrid, windows as grid_module


def order(total, seed, count=None):
    return [WindowGrid.spread(number, total, seed) for number in range(total if count is None else count)]


def grid(depth, side=8, tile=(8, 8)):
    return WindowGrid(open_volume(np.broadcast_to(np.uint8(0), (depth, side, side))), Scaling(0, 1), 3, tile)


def test_the_order_is_a_permutation_of_any_number_of_items():
    for total in (*range(1, 40), 199, 200):
        assert sorted(order(total, seed=total % 7)) == list(range(total))
    assert order(50, seed=0) != order(50, seed=1)
    assert np.histogram(order(10**12, 3, 500), bins=10, range=(0, 10**12))[0].min() > 40


@pytest.mark.parametrize("total", [1, 3, 4, 5])
def test_every_item_has_the_same_chance_to_be_in_every_prefix(total, monkeypatch):
    """Exactly: over all random starts of all halves, each of which is as likely as another."""
    nodes = []

    def find(start, stop):
        if stop - start > 1:
            nodes.append((start, stop))
            find(start, start + (stop - start) // 2)
            find(start + (stop - start) // 2, stop)

    find(0, total)
    chosen, counts, weight = {}, np.zeros((total + 1, total), dtype=object), Fraction(0)
    monkeypatch.setattr(grid_module, "_shift", lambda _seed, start, stop: chosen[start, stop])
    for shifts in product(*(range(stop - start) for start, stop in nodes)):
        chosen |= dict(zip(nodes, shifts, strict=True))
        found, weight = order(total, 0), weight + 1
        for length in range(total + 1):
            for index in found[:length]:
                counts[length, index] += 1
    for length in range(total + 1):
        assert all(count / weight == Fraction(length, total) for count in counts[length])


@given(
    total=st.integers(1, 10**12),
    seed=st.integers(0, 2**63 - 1),
    prefix=st.integers(1, 40),
    part=st.integers(0, 6),
)
@settings(max_examples=50)
def test_every_prefix_is_spread_in_proportion(total, seed, prefix, part):
    """Of n items, each of the halves, quarters ... has its part up to one for each time that it was halved."""
    start, stop = 0, total
    for level in range(part):
        half = (stop - start) // 2
        start, stop = (start, start + half) if (seed >> level) % 2 else (start + half, stop)
    found = np.array(order(total, seed, min(prefix, total)))
    inside = int(((found >= start) & (found < stop)).sum())
    assert len(set(found.tolist())) == len(found)
    assert abs(inside - len(found) * (stop - start) / total) <= part + 1e-9


@given(depths=st.lists(st.integers(3, 60), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_volumes_and_depths_get_their_part(depths, seed):
    grids = [grid(depth, 16) for depth in depths]
    sample = WindowSample(grids, Sampling(seed=seed, max_windows=10**6))
    places = np.concatenate([*sample.batches(16)])
    assert len({tuple(place) for place in places.tolist()}) == len(places) == sum(sample.population)
    prefix = places[: len(places) // 2]
    part = np.bincount(prefix[:, 0], minlength=len(grids))
    expected = np.array(sample.population) * len(prefix) / len(places)
    assert np.abs(part - expected).max() <= 2 * np.log2(len(places))


def skewed(windows):
    return (windows[:, 0] ** 2 + windows[:, 1] + windows[:, 2])[:, None] - 1.2


@pytest.mark.slow
def test_the_size_of_a_batch_does_not_matter():
    one, *others = (audit_formula(skewed, noise(depth=90, size=16), batch=batch) for batch in (1, 7, 16))
    for other in others:
        np.testing.assert_array_equal(other.measurements.position, one.measurements.position)
        assert (other.verdict, other.run.stopped) == (one.verdict, one.run.stopped)
        np.testing.assert_allclose(other.measurements.reliance, one.measurements.reliance, rtol=1e-4)
        assert other.reliance[0].low == pytest.approx(one.reliance[0].low, rel=1e-3)


@pytest.mark.slow
def test_a_cluster_finds_what_one_process_finds():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    one, many = (
        audit_formula(network, noise(depth=60, size=16), precision=0.02, workers=workers)
        for workers in (None, 2)
    )
    apart = ("created", "seconds")
    first, second = ({k: v for k, v in found.to_dict().items() if k not in apart} for found in (one, many))
    assert first == second
    assert first["stopped"] == "precision reached"
    np.testing.assert_array_equal(one.measurements.saliency, many.measurements.saliency)
    np.testing.assert_array_equal(one.examples.maps, many.examples.maps)
