"""Means over seeds and comparisons against SciPy's own tests and by hand."""

import json
import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from evenslice._core import json_text
from evenslice.results.arms import (
    METRICS,
    bias_removed,
    metric_bounds,
    pool_runs,
    saliency_percentiles,
    summarize_runs,
)
from evenslice.results.intervals import non_inferiority, student_interval
from evenslice.results.studies import read_comparisons, read_pooled

dices = st.lists(st.floats(0.5, 0.9), min_size=2, max_size=6).filter(lambda values: np.std(values) > 1e-3)


def row(arm, seed, *, dataset="em", architecture="net", bias=0.0, **figures):
    labels = {"dataset": dataset, "architecture": architecture, "arm": arm, "seed": seed}
    return {
        **labels,
        "shares": [0.3, 0.4, 0.3],
        "absolute_bias": abs(bias),
        "largest_bias": abs(bias),
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


@pytest.mark.parametrize("differences", [[0.1], [0.0, 0.0], [-0.02, -0.02], [0.8 - 0.7, 0.4 - 0.3]])
def test_without_spread_there_is_no_test(differences):
    """Not even where all differences are equal: networks that learned nothing often have the same score."""
    found = non_inferiority(differences, 0.01)
    assert (found.margin, math.isnan(found.p), found.holds) == (0.01, True, None)


def test_arms_are_compared_seed_by_seed():
    noise = [0.05, -0.02, 0.01]  # of the seeds: large, and almost the same in both arms
    rows = [row("pretrained", seed, dice=0.8 + noise[seed], bias=-0.2) for seed in range(3)]
    rows += [row("uniform", seed, dice=0.801 + 1.001 * noise[seed], bias=0.02) for seed in (2, 0, 1)]
    baseline, uniform = summarize(rows)[0].arms
    assert baseline.differences == {}
    assert baseline.metrics["dice"].low < 0.75
    difference = uniform.differences["dice"]
    assert [difference.estimate, difference.low, difference.high] == pytest.approx([0.001] * 3, abs=2e-4)
    assert uniform.holds is True
    assert astuple(uniform.bias_removed) == pytest.approx((0.9, 0.9, 0.9))
    assert [astuple(share) for share in uniform.shares] == [
        pytest.approx((share,) * 3) for share in (0.3, 0.4, 0.3)
    ]


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
    assert math.isnan(uniform.bias_removed.estimate)  # the baseline has none to remove


# The bias that is removed.


def test_only_runs_whose_bias_is_known_in_both_arms_are_compared():
    """Else seeds of one arm would be compared with other seeds of the baseline."""
    rows = [
        {**row(arm, seed), "fold": fold, "folds": 3, "shares": None, "largest_bias": bias}
        for fold in range(3)
        for arm, biases in [("pretrained", (0.2, 0.6)), ("uniform", (0.2, None))]
        for seed, bias in enumerate(biases)
    ]
    assert astuple(summarize(rows)[0].arms[1].bias_removed) == pytest.approx((0, 0, 0))


@pytest.mark.parametrize(
    "baseline",
    [
        [0.02, 0.021, 0.02],  # within the tolerance of the audits
        [0.01, 0.2, 0.3],  # not settled
        [0.2],  # a single seed
        [],
    ],
)
def test_nothing_is_removed_where_the_baseline_shows_no_bias(baseline):
    assert all(math.isnan(part) for part in astuple(bias_removed([0.0] * len(baseline), baseline)))


@given(st.lists(st.tuples(st.floats(0, 0.3), st.floats(0.15, 0.25)), min_size=3, max_size=6))
def test_the_ends_of_the_interval_are_on_the_edge_of_a_t_test(seeds):
    own, baseline = np.array(seeds).T
    found = bias_removed(own, baseline)
    if math.isnan(found.estimate):
        assert not student_interval(baseline).low > 0.05
        return
    assert found.low - 1e-9 <= found.estimate <= found.high + 1e-9
    assert found.high <= 1
    for end in (found.low, found.high):
        left = own - (1 - end) * baseline
        if end < 1 and np.std(left) > 1e-3:
            assert stats.ttest_1samp(left, 0).pvalue == pytest.approx(0.05, abs=1e-3)


def test_the_interval_holds_as_often_as_it_says():
    """95 % of the intervals hold the ratio of the means, with correlated seeds."""
    random = np.random.default_rng(0)
    seeds = 0.02 * random.standard_normal((2000, 3))
    baseline = 0.2 + seeds + 0.01 * random.standard_normal((2000, 3))
    own = 0.05 + 0.5 * seeds + 0.01 * random.standard_normal((2000, 3))
    found = [bias_removed(*pair) for pair in zip(own, baseline, strict=True)]
    known = [item for item in found if not math.isnan(item.low)]
    assert len(known) > 1800
    assert 0.93 < np.mean([item.low <= 0.75 <= item.high for item in known]) < 0.98


# Impossible values.


def test_no_interval_leaves_the_range_of_its_quantity():
    rows = [
        row(arm, seed, dice=0.9 + 0.09 * seed, mirror_disagreement=0.02 * seed, bias=bias * seed, hd95=seed)
        for arm, bias in [("pretrained", -0.9), ("uniform", 0.02)]
        for seed in range(2)
    ]
    for arm in summarize(rows)[0].arms:
        for name, value in arm.metrics.items():
            low, high = metric_bounds(name, slices=3)
            if not math.isnan(value.low):
                assert low <= value.low <= value.estimate <= value.high <= high, name
        assert arm.metrics["dice"].high == 1
        assert arm.metrics["absolute_bias"].low == 0
        assert arm.metrics["hd95"].low == 0
        assert all(0 <= share.low <= share.high <= 1 for share in arm.shares)
    difference = summarize(rows)[0].arms[1].differences["absolute_bias"]
    assert (difference.low, difference.high) == (-1, 1)


def with_answers(*changes, arm="pretrained", **more):
    return [
        row(arm, seed, dice=0.8) | {"answer_change": change, "imbalance": 0.4 + 0.15 * seed} | more
        for seed, change in enumerate(changes)
    ]


def test_a_part_of_pixels_is_at_most_one_and_a_ratio_of_deviations_has_no_limit():
    runs = [*with_answers(0.05, 0.45), *with_answers(0.45, 0.05, arm="uniform")]
    first, second = summarize(runs)[0].arms
    assert (first.metrics["answer_change"].low, first.metrics["answer_change"].high) == (0, 1)
    assert second.differences["answer_change"].low == -1
    assert first.metrics["imbalance"].high == pytest.approx(2 / 3)  # all attention on one of three slices
    scores = summarize([{**run, "answer_of": "scores"} for run in runs])[0].arms
    assert scores[0].metrics["answer_change"].high > 2
    assert scores[1].differences["answer_change"].low < -2
    (pooled,) = pool_runs(runs, baseline="pretrained", margin=0.01)
    assert pooled.arms[0].metrics["answer_change"].high == 1
    assert pooled.arms[1].differences["answer_change"].low == -1


def test_answer_changes_of_two_kinds_have_no_mean():
    runs = [*with_answers(0.05, 0.06), *with_answers(0.5, 0.6, arm="uniform", answer_of="scores")]
    first, second = summarize(runs)[0].arms
    assert not math.isnan(first.metrics["answer_change"].high)
    assert not math.isnan(second.metrics["answer_change"].high)
    assert math.isnan(second.differences["answer_change"].estimate)
    runs[1]["answer_of"] = "scores"
    assert math.isnan(summarize(runs)[0].arms[0].metrics["answer_change"].estimate)
    assert not math.isnan(summarize(runs)[0].arms[0].metrics["dice"].estimate)
    other = [{**run, "dataset": "other", "answer_of": "scores"} for run in runs]
    (pooled,) = pool_runs([*runs, *other], baseline="pretrained", margin=0.01)
    assert math.isnan(pooled.arms[0].metrics["answer_change"].estimate)
    assert math.isnan(pooled.arms[1].differences["answer_change"].estimate)
    assert not math.isnan(pooled.arms[1].differences["dice"].estimate)


def test_a_summary_says_of_what_its_answers_are():
    runs = [
        *with_answers(0.5, 1.6, answer_of="scores"),
        *with_answers(0.4, 0.9, arm="uniform", answer_of="scores"),
    ]
    (found,) = summarize(runs)
    (pooled,) = pool_runs(runs, baseline="pretrained", margin=0.01)
    document = {"format": 1, "planned": 4, "finished": 4, "failed": [], "baseline": "pretrained"}
    document |= {"comparisons": [found.to_dict()], "pooled": [pooled.to_dict()]}
    read = json.loads(json_text(document))
    for name in ("metrics", "differences"):
        for arms, expected in (
            (read_comparisons(read)[0].arms, found.arms),
            (read_pooled(read)[0].arms, pooled.arms),
        ):
            for arm, wanted in zip(arms, expected, strict=True):
                figures, others = getattr(arm, name), getattr(wanted, name)
                assert figures.get("answer_change") == others.get("answer_change")
    assert found.arms[0].metrics["answer_change"].high > 1


@pytest.mark.parametrize(("classes", "stays"), [(2, True), (3, False)])
def test_audits_by_other_definitions_are_never_mixed(classes, stays):
    """Beside later runs, those of version 0.2 keep their scores, and the change of an answer of two classes."""
    figures = {
        "dice": 0.8,
        "answer_change": 0.3,
        "stress_intact": 0.8,
        "stress_both": 0.7,
        "classes": classes,
    }
    old = [row("pretrained", seed, bias=-0.2, **figures) for seed in range(2)]
    new = [row("uniform", seed, bias=-0.1, definitions=2, reliance=0.2, **figures) for seed in range(2)]
    alone = summarize(old)[0].arms[0]
    assert alone.metrics["directional_bias"].estimate == -0.2
    (pooled,) = pool_runs([*old, *new], baseline="pretrained", margin=0.01)
    for before, after in (summarize([*old, *new])[0].arms, pooled.arms):
        assert (before.metrics["dice"].estimate, after.differences["dice"].estimate) == (0.8, 0.0)
        assert (after.metrics["directional_bias"].estimate, after.metrics["reliance"].estimate) == (-0.1, 0.2)
        for figure in (before.metrics["directional_bias"], after.differences["largest_bias"]):
            assert math.isnan(figure.estimate)
        assert math.isnan(after.differences["answer_change"].estimate) is not stays
    assert pooled.arms[0].metrics["loss_both"].estimate == pytest.approx(0.1)
    assert summarize([*old, *new])[0].arms[0].shares == ()


def test_an_audit_that_kept_no_windows_has_no_percentiles_of_saliency():
    assert saliency_percentiles(np.empty((0, 3, 64, 64))) is None
