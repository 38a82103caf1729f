"""Means over seeds and comparisons against SciPy's own tests and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from evenslice.results.seeds import METRICS, non_inferiority, student_interval, summarize_runs

dices = st.lists(st.floats(0.5, 0.9), min_size=2, max_size=6).filter(lambda values: np.std(values) > 1e-3)


def row(arm, seed, *, dataset="em", architecture="net", bias=0.0, **figures):
    labels = {"dataset": dataset, "architecture": architecture, "arm": arm, "seed": seed}
    return {
        **labels,
        "shares": [0.3, 0.4, 0.3],
        "absolute_bias": abs(bias),
        "directional_bias": bias,
        **figures,
    }


def summarize(rows):
    return summarize_runs(rows, baseline="pretrained", margin=0.01)


@given(dices)
def test_the_interval_is_that_of_student(values):
    found = student_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.estimate, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_few_values_have_no_interval():
    assert math.isnan(student_interval([]).estimate)
    single = student_interval([0.5, math.nan])
    assert single.estimate == 0.5
    assert math.isnan(single.low)
    same = student_interval([0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5)


@given(dices, st.floats(0.005, 0.1))
def test_non_inferiority_is_a_t_test_against_the_margin(values, margin):
    differences = np.array(values) - 0.7
    found = non_inferiority(differences, margin)
    assert found.p == pytest.approx(stats.ttest_1samp(differences, -margin, alternative="greater").pvalue)
    assert found.holds == (student_interval(differences).low > -margin)


def test_differences_without_spread_leave_no_doubt():
    assert non_inferiority([0.0, 0.0], 0.01).holds is True
    assert non_inferiority([-0.02, -0.02], 0.01) == (0.01, 1.0, False)
    alone = non_inferiority([0.1], 0.01)
    assert (alone.margin, math.isnan(alone.p), alone.holds) == (0.01, True, None)


def test_arms_are_compared_seed_by_seed():
    noise = [0.05, -0.02, 0.01]  # of the seeds: large, and the same in both arms
    rows = [row("pretrained", seed, dice=0.8 + noise[seed], bias=-0.2) for seed in range(3)]
    rows += [row("uniform", seed, dice=0.801 + noise[seed], bias=0.02) for seed in (2, 0, 1)]
    baseline, uniform = summarize(rows)[0].arms
    assert baseline.differences == {}
    assert set(baseline.to_dict()) == {"arm", "seeds", "figures", "shares"}
    assert baseline.metrics["dice"].low < 0.75
    difference = uniform.differences["dice"]
    assert [difference.estimate, difference.low, difference.high] == pytest.approx([0.001] * 3)
    assert uniform.holds is True
    assert uniform.bias_removed == pytest.approx(0.9)
    assert uniform.to_dict()["shares"] == tuple(
        {"estimate": pytest.approx(share), "low": pytest.approx(share), "high": pytest.approx(share)}
        for share in (0.3, 0.4, 0.3)
    )


def test_only_seeds_that_both_arms_have_are_compared():
    rows = [row("pretrained", 0, dice=0.5), row("pretrained", 1, dice=0.7)]
    rows += [row("uniform", 1, dice=0.8), row("uniform", 2, dice=0.1)]
    uniform = summarize(rows)[0].arms[1]
    assert uniform.seeds == (1, 2)
    assert uniform.differences["dice"].estimate == pytest.approx(0.1)
    assert uniform.holds is None
    alone = summarize([row("uniform", 3, dice=0.8)])[0].arms[0]
    assert alone.differences == {}


def test_data_sets_and_architectures_are_kept_apart():
    rows = [
        row(arm, seed, dataset=dataset, architecture=architecture, dice=0.5)
        for seed in range(2)
        for dataset in "ab"
        for architecture in "xy"
        for arm in ("pretrained", "uniform")
    ]
    found = summarize(rows)
    assert [(item.dataset, item.architecture) for item in found] == [(d, a) for d in "ab" for a in "xy"]
    assert all(arm.seeds == (0, 1) for item in found for arm in item.arms)


def test_figures_that_do_not_exist_stay_out():
    rows = [row(arm, seed, dice=None, hd95=None) for arm in ("pretrained", "uniform") for seed in range(2)]
    uniform = summarize(rows)[0].arms[1]
    assert set(uniform.metrics) == set(uniform.differences) == set(METRICS)
    assert math.isnan(uniform.metrics["hd95"].estimate)
    assert uniform.holds is None
    assert math.isnan(uniform.bias_removed)  # the baseline has none to remove
