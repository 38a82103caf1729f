"""When an audit ends, and how much of a small stack it needs."""

import numpy as np
import pytest
from formulas import alternating, audit_formula, decided, noise, two_classes, weighted
from torch import nn


def uneven(windows):
    """A regression whose reliance on the slice before differs from window to window."""
    before, middle, after = windows.unbind(1)
    return (before + middle + after) / 3 + 0.2 * before**2


@pytest.fixture(scope="module")
def blocks():
    """A stack whose slices differ in contrast, so that windows differ in what they weigh."""
    rng = np.random.default_rng(0)
    return (noise(depth=202, size=16) * rng.uniform(0.2, 1, (202, 1, 1))).astype(np.float32)


def test_an_audit_ends_once_the_word_is_settled(blocks):
    found = audit_formula(uneven, blocks)
    assert (found.run.stopped, found.verdict, found.windows) == ("settled", "biased", 40)
    assert found.run.windows_available == 200


def test_precision_asks_for_narrow_intervals_on_top(blocks):
    settled = audit_formula(uneven, blocks)
    half = max((item.high - item.low) / 2 for item in (*settled.saliency, *settled.reliance, settled.answer))
    found = audit_formula(uneven, blocks, precision=half / 1.6)
    assert found.run.stopped == "precision reached"
    assert 40 < found.windows < 200
    for item in (*found.saliency, *found.reliance, found.answer):
        assert (item.high - item.low) / 2 <= half / 1.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "windows", "stopped"),
    [
        ({"min_windows": 90}, 90, "settled"),
        ({"max_windows": 12}, 12, "settled"),
        ({"precision": 1e-9, "max_windows": 50}, 50, "limit reached"),
        ({"min_windows": 10}, 10, "settled"),
        ({"min_windows": 10**6}, 200, "settled"),
    ],
)
def test_limits(blocks, options, windows, stopped):
    found = audit_formula(weighted(1.0, 1.0, 3.0), blocks, **options)
    assert (found.windows, found.run.stopped) == (windows, stopped)
    places = {tuple(place) for place in found.measurements.position.tolist()}
    assert len(places) == windows


def test_all_windows_of_a_small_stack_decide_without_width():
    def log_odds(windows):
        return windows[:, 1] - 0.5 + 0.25 * (alternating(windows) - 0.5)

    found = audit_formula(two_classes(log_odds), noise(depth=10))
    assert found.windows == found.run.windows_available == 8
    assert decided(found) == ("biased", [("answer", 1, None)])
    for item in (*found.saliency, *found.reliance, found.answer, found.mismatch, *found.shares):
        assert item.low == item.high == item.estimate
    fair = audit_formula(two_classes(lambda windows: log_odds(windows) + windows[:, 1]), noise(depth=10))
    assert fair.verdict in ("balanced", "biased")  # never open: nothing is left to read
    assert fair.answer.state in ("within", "beyond")


@pytest.mark.slow
def test_the_size_of_the_tile_leaves_out_what_lacks_its_surroundings():
    """At the borders of a tile, zeros stand in for what lies beyond; where the plane ends, they do in any tile."""
    network = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 2, 5, padding=2))
    volume = noise(depth=6, size=160)
    whole = audit_formula(network, volume, tile=(160, 160))
    tiled = audit_formula(network, volume, tile=(64, 64))
    assert tiled.run.windows_available > whole.run.windows_available
    assert tiled.answer.estimate == pytest.approx(whole.answer.estimate, rel=0.05)
