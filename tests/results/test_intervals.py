"""Design-based intervals: exact for a census, right about as often as they say for samples."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from evenslice.results.intervals import fit_ratios, mean_interval, unseen_part

SCALES = ("linear", "log", "atanh")


def population(kind, rng, size=600):
    """Windows that differ much in what they weigh: parts (size, q) and wholes."""
    whole = rng.lognormal(0, {"even": 0.1, "skewed": 0.8, "sparse": 0.6}[kind], (size, 1))
    if kind == "sparse":
        whole *= rng.random((size, 1)) < 0.5
    share = rng.beta(1.5, 12, (size, 1))
    return whole * share, whole


def bounds(part, whole, total, scale="linear", **options):
    return np.ravel(fit_ratios(part, whole, total, scale=scale).bounds(**options))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["even", "skewed", "sparse"])
def test_a_census_is_exact(kind, scale):
    part, whole = population(kind, np.random.default_rng(0), 60)
    expected = part.sum() / whole.sum()
    fit = fit_ratios(part, whole, 60, scale=scale)
    assert fit.estimate == pytest.approx(expected)
    for low, high in (fit.bounds(), fit.bounds(0.999, comparisons=20)):
        assert low == high == fit.estimate
    assert fit_ratios(0 * part, whole, 60, scale=scale).bounds() == ([0], [0])


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["log", "atanh"])
@pytest.mark.parametrize("kind", ["even", "skewed", "sparse"])
@pytest.mark.parametrize("read", [40, 150])
def test_intervals_cover_the_figures_of_skewed_populations(kind, read, scale):
    rng = np.random.default_rng(1)
    part, whole = population(kind, rng)
    if scale == "atanh":
        part = part - 0.1 * whole
    truth, covered = part.sum() / whole.sum(), 0
    for _ in range(400):
        rows = rng.permutation(len(part))[:read]
        low, high = bounds(part[rows], whole[rows], len(part), scale)
        covered += low <= truth <= high
    assert covered / 400 >= 0.9


def test_intervals_shrink_with_what_is_left_to_read():
    part, whole = population("skewed", np.random.default_rng(2), 100)
    widths = [np.diff(bounds(part, whole, total)).item() for total in (100, 120, 200, 10**6)]
    assert widths[0] == 0
    assert (np.diff(widths) > 0).all()
    assert widths[1] / widths[3] == pytest.approx(np.sqrt(1 - 100 / 120), rel=1e-3)


@pytest.mark.parametrize("scale", SCALES)
@given(st.floats(0.001, 0.999), st.integers(5, 200), st.floats(1e-3, 1e3))
def test_a_constant_is_exact(scale, value, count, size):
    whole = size * np.linspace(1, 3, count)[:, None]
    low, high = bounds(value * whole, whole, 10**6, scale)
    assert low == pytest.approx(value, rel=1e-6)
    assert high == pytest.approx(value, rel=1e-6)


@given(st.integers(1, 200), st.integers(1, 400), st.floats(0.001, 0.2))
def test_the_unseen_part_is_hypergeometric(read, more, tail):
    """The largest part of the windows that stays unseen in n of M with at least that chance."""
    total = read + more
    found = unseen_part(read, read, total, tail)
    marked = np.floor(found * total + 1e-6)
    assert stats.hypergeom(total, int(marked), read).pmf(0) >= tail * (1 - 1e-6)
    if marked + 1 <= total - read:
        assert stats.hypergeom(total, int(marked) + 1, read).pmf(0) <= tail * (1 + 1e-6)


def test_parts_that_no_window_has_may_be_among_those_unread():
    whole = np.ones((40, 1))
    low, high = bounds(0 * whole, whole, 1000, "log", level=0.9)
    assert low == 0
    assert high == pytest.approx(unseen_part(40, 40, 1000, 0.1))
    weights = np.r_[np.full(20, 10.0), np.full(20, 0.01)][:, None]
    assert bounds(0 * whole, weights, 1000, "log")[1] > 1.5 * bounds(0 * whole, whole, 1000, "log")[1]


def test_means_leave_out_windows_outside_of_their_domain():
    values = np.r_[np.random.default_rng(7).random(50), np.full(30, np.nan)]
    found = mean_interval(values, 80)
    assert found.low == found.high == found.estimate == pytest.approx(values[:50].mean())
    sample = mean_interval(values, 10**6)
    assert (sample.high - sample.low) / 2 == pytest.approx(
        stats.t.ppf(0.975, 49) * stats.sem(values[:50]), rel=0.15
    )
    assert np.isnan(mean_interval([np.nan] * 3, 9).estimate)
    assert mean_interval([0.3], 9, bounds=(0, 1)).high == 1
