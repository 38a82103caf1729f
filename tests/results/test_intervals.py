import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from evenslice.results.intervals import MeanFit, fit_means, fit_ratio, fit_votes, mean_interval
from evenslice.results.slice_correlation import CORRELATION, FRACTION, PRIOR


def half_width(interval):
    return (interval.high - interval.low) / 2


def test_the_filter_agrees_with_dense_matrices():
    rng = np.random.default_rng(0)
    volumes, z, values = rng.integers(0, 2, 25), rng.permutation(40)[:25], rng.normal(size=(25, 3))
    steps = np.concatenate([np.diff(np.sort(z[volumes == volume])) for volume in (0, 1)])
    unit = steps.mean()
    found = fit_means(values, z, volumes)
    scales, log_weights = [], []
    for rho, fraction, prior in zip(CORRELATION, FRACTION, PRIOR, strict=True):
        residual, log_determinant, variance = np.zeros(3), 0.0, 0.0
        for volume in (0, 1):
            here = z[volumes == volume]
            y, one = values[volumes == volume], np.ones(len(here))
            distance = np.abs(here[:, None] - here) / unit
            matrix = fraction * rho**distance + (1 - fraction) * np.eye(len(here))
            inverse = np.linalg.inv(matrix)
            information = one @ inverse @ one
            residual += np.einsum("iq,ij,jq->q", y, inverse, y) - (one @ inverse @ y) ** 2 / information
            log_determinant += np.linalg.slogdet(matrix)[1] + np.log(information)
            variance += one @ matrix @ one / len(here) ** 2 / 2**2
        scales.append(np.sqrt(residual / 23 * variance))
        log_weights.append(np.log(prior) - log_determinant / 2 - 23 / 2 * np.log(residual))
    weights = np.exp(np.array(log_weights) - np.max(log_weights, axis=0))
    np.testing.assert_allclose(found.scale, scales, rtol=1e-8)
    np.testing.assert_allclose(found.weight, weights / weights.sum(axis=0), rtol=1e-6, atol=1e-12)


def widening(slices):
    """Intervals of up to 8 slices are 2.3 times as wide, those of 28 or more are not widened."""
    return float(np.interp(slices, [8, 28], [2.3, 1]))


@given(st.integers(0, 2**32 - 1), st.integers(1, 500), st.sampled_from([0.1, 0.05, 0.01, 0.001]))
def test_the_width_leaves_the_tail_of_the_mixture_outside(seed, dof, tail):
    rng = np.random.default_rng(seed)
    scale, weight = np.exp(rng.normal(size=(41, 3))), rng.dirichlet(np.full(41, 0.1), size=3).T
    fit = MeanFit(np.zeros(3), dof, scale, weight, 1, np.zeros(3))
    half_width = fit.half_width(1 - tail) / widening(dof + 1)
    outside = (weight * 2 * stats.t.sf(half_width / scale, dof)).sum(axis=0)
    np.testing.assert_allclose(outside, tail, rtol=1e-3)


def test_independent_windows_get_about_the_interval_of_students_t():
    values = np.random.default_rng(1).normal(size=(400, 50))
    found = fit_means(values, np.arange(400)).half_width()
    exact = stats.t.ppf(0.975, 399) * values.std(axis=0, ddof=1) / 20
    assert np.median(found / exact) == pytest.approx(1, abs=0.05)


def test_dependent_windows_get_wider_intervals():
    rng = np.random.default_rng(2)
    values = np.cumsum(rng.normal(size=100)) * 0.1
    shuffled = rng.permutation(values)
    z = np.arange(100)
    assert half_width(mean_interval(values, z)) > 3 * half_width(mean_interval(shuffled, z))


def test_the_windows_of_a_slice_count_as_one():
    rng = np.random.default_rng(3)
    means, rest = rng.normal(size=20), rng.normal(size=(20, 5))
    tiles = means[:, None] + rest - rest.mean(axis=1, keepdims=True)
    found = mean_interval(tiles.ravel(), np.repeat(np.arange(20), 5))
    expected = mean_interval(means, np.arange(20))
    assert found.estimate == pytest.approx(expected.estimate)
    assert half_width(found) == pytest.approx(half_width(expected))


def test_the_estimate_is_the_mean_of_all_windows():
    assert mean_interval([1.0, 0.0, 0.0, 0.0], [5, 9, 9, 9]).estimate == 0.25


def test_several_volumes_are_the_units():
    rng = np.random.default_rng(5)
    volumes = np.repeat(np.arange(4), 50)
    values = rng.normal(size=200) * 0.01 + np.array([0.0, 1.0, 2.0, 5.0])[volumes]
    found = mean_interval(values, np.tile(np.arange(50), 4), volumes)
    means = values.reshape(4, 50).mean(axis=1)
    assert found.estimate == pytest.approx(means.mean())
    assert half_width(found) == pytest.approx(stats.t.ppf(0.975, 3) * stats.sem(means))


def test_volumes_that_agree_by_chance_do_not_narrow_the_interval():
    values = np.random.default_rng(6).normal(size=100)
    values -= np.repeat(values.reshape(2, 50).mean(axis=1), 50)
    found = mean_interval(values, np.tile(np.arange(50), 2), np.repeat([0, 1], 50))
    assert half_width(found) > 1.9 / 10 * 0.9


def test_each_volume_counts_the_same():
    found = mean_interval([0.0, 0.0, 0.0, 1.0], [0, 1, 2, 0], volumes=[7, 7, 7, 9])
    assert found.estimate == 0.5


def test_one_window_a_volume_is_students_t():
    values = [0.1, 0.4, 0.2]
    found = mean_interval(values, [5, 5, 5], volumes=[0, 1, 2])
    assert half_width(found) == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(values))


def test_few_windows():
    none = mean_interval([], [])
    assert math.isnan(none.estimate + none.low + none.high)
    one = mean_interval([0.3], [4])
    assert (one.estimate, one.low, one.high) == (0.3, -math.inf, math.inf)
    assert half_width(mean_interval([0.3, 0.5], [4, 9])) > 1
    assert mean_interval([0.3], [4], bounds=(0, 1)).high == 1


def test_missing_values_are_left_out():
    values, z = np.array([0.1, np.nan, 0.3, 0.2]), np.array([0, 1, 2, 3])
    kept = ~np.isnan(values)
    assert mean_interval(values, z) == mean_interval(values[kept], z[kept])
    assert math.isnan(mean_interval([np.nan], [0]).estimate)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-9, 1 / 3])
def test_constant_values_have_no_width(value):
    found = mean_interval(np.full(60, value), np.arange(60))
    assert found.estimate == pytest.approx(value)
    assert half_width(found) <= 1e-15


def test_width_scales_with_the_values():
    values, z = np.random.default_rng(7).normal(size=60), np.arange(60)
    tiny = mean_interval(1e-7 * values, z)
    assert half_width(tiny) == pytest.approx(1e-7 * half_width(mean_interval(values, z)))


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 3))
def test_order_units_and_origin_do_not_matter(seed, count, volumes):
    rng = np.random.default_rng(seed)
    values, z, volume = rng.normal(size=count), rng.integers(0, 30, count), rng.integers(0, volumes, count)
    found = mean_interval(values, z, volume)
    order = rng.permutation(count)
    again = mean_interval(values[order] + 3, 2.5 * z[order] - 7, volume[order])
    assert again.estimate - 3 == pytest.approx(found.estimate, abs=1e-9)
    if math.isfinite(found.high):
        assert half_width(again) == pytest.approx(half_width(found), rel=1e-6)
    assert found.low <= found.estimate <= found.high


@pytest.mark.parametrize("volumes", [1, 2])
def test_the_order_of_votes_does_not_matter(volumes):
    random = np.random.default_rng(0)
    positions, volume = random.integers(0, 90, size=60), np.sort(random.integers(volumes, size=60))
    expected = fit_votes(np.zeros((60, 1)), positions, volume).bounds()
    for _ in range(5):
        order = random.permutation(60)
        found = fit_votes(np.zeros((60, 1)), positions[order], volume[order]).bounds()
        assert np.ravel(found) == pytest.approx(np.ravel(expected))


def test_a_window_of_a_ratio_counts_by_its_whole():
    z, equal = np.arange(40), np.ones((40, 1))
    part = np.random.default_rng(9).uniform(0.5, 1.5, size=(40, 1))
    assert fit_ratio(part, equal, z).effective == pytest.approx(40)
    assert fit_ratio(part * (z < 10)[:, None], equal * (z < 10)[:, None], z).effective == pytest.approx(10)
    assert fit_ratio(part, equal, z // 4).effective == pytest.approx(
        10
    )  # the windows of a slice count as one
    some = (z % 4 > 0)[:, None] * equal  # two volumes of 20 windows: 15 slices of each have foreground
    assert fit_ratio(part * some, some, z, z // 20).effective == pytest.approx(30)
    weights = np.random.default_rng(10).exponential(size=(40, 1))
    found = fit_ratio(part * weights, weights, z)
    assert found.effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert fit_ratio(1e-200 * part, 1e-200 * equal, z).effective == pytest.approx(40)
    assert fit_votes(part > 1, z).effective is None


def test_one_slice_does_not_decide_a_ratio():
    """All others have so little foreground that their ratio hardly matters, and agree with that of the one by chance."""
    whole = np.full((40, 1), 1e-4)
    whole[20] = 1.0
    ratio = np.where(np.arange(40) % 2, 0.03, 0.01)[:, None]
    fit = fit_ratio(ratio * whole, whole, np.arange(40))
    assert fit.estimate == pytest.approx(0.01, rel=0.5)
    assert (fit.bounds()[0], fit.bounds()[1]) == (0, np.inf)
    same = fit_ratio(0.02 * whole, whole, np.arange(40))
    assert np.subtract(*same.bounds()) == pytest.approx(0)  # unless all say the same


@pytest.mark.parametrize("volumes", [1, 2])
def test_a_single_slice_with_anything_of_the_whole_has_no_interval(volumes):
    """Its influence on the ratio is 0, or as much as rounding leaves of it."""
    rng = np.random.default_rng(12)
    part, whole = np.zeros((20, 50)), np.zeros((20, 50))
    whole[7] = rng.integers(10, 4000, 50) / 16384
    part[7] = whole[7] * rng.random(50)
    fit = fit_ratio(part, whole, np.arange(20), np.arange(20) * volumes // 20)
    assert np.isinf(fit.half_width()).all()
    # Nothing varies, and whether that says all is for those to decide who know what 0 means.
    assert (fit_ratio(0 * part, whole, np.arange(20)).half_width() == 0).all()
    assert (fit_ratio(0 * part, 0 * whole, np.arange(20)).half_width() == 0).all()


def test_a_volume_counts_by_its_part_of_the_whole():
    rng = np.random.default_rng(13)
    z, volume = np.tile(np.arange(12), 4), np.repeat(np.arange(4), 12)
    ratio = np.repeat(rng.uniform(0.5, 1.5, 4), 12)[:, None]
    even = fit_ratio(ratio, np.ones((48, 1)), z, volume)
    assert even.effective_volumes == pytest.approx(4)
    whole = np.repeat([8.0, 1.0, 1.0, 0.0], 12)[:, None]
    uneven = fit_ratio(ratio * whole, whole, z, volume)
    assert uneven.effective_volumes == pytest.approx(100 / 66)
    # One degree of freedom, t = 12.7, and a quarter more as there are so few.
    influence = (ratio * whole - uneven.estimate * whole).reshape(4, 12).mean(axis=1) / whole.mean()
    error = influence.std(ddof=1) / 2
    assert uneven.half_width() == pytest.approx(1.25 * 12.7062 * error, rel=1e-5)
    assert fit_votes(ratio > 1, z, volume).effective_volumes is None


def test_the_bounds_of_a_ratio_are_those_of_its_logarithm():
    rng = np.random.default_rng(11)
    whole = rng.exponential(size=(60, 1))
    fit = fit_ratio(rng.uniform(0.1, 0.3, size=(60, 1)) * whole, whole, np.arange(60))
    low, high = fit.bounds()
    assert low * high == pytest.approx(fit.estimate**2)
    assert np.log(high / fit.estimate) == pytest.approx(fit.half_width() / fit.estimate)
    unsure = fit_ratio(rng.exponential(size=(3, 1)) ** 4, np.ones((3, 1)), np.arange(3))
    assert 0 < unsure.bounds()[0] < unsure.estimate < unsure.bounds()[1] < np.inf


def test_more_confidence_is_wider():
    fit = fit_means(np.random.default_rng(8).normal(size=(30, 4)), np.arange(30))
    widths = [fit.half_width(0.9), fit.half_width(0.95), fit.half_width(0.95, comparisons=3)]
    assert (np.diff(widths, axis=0) > 0).all()
    np.testing.assert_allclose(widths[2], fit.half_width(1 - 0.05 / 3))
