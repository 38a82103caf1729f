"""Arms of a study: against SciPy, by hand, a textbook, and simulations whose components of variance are known."""

import json
import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from evenslice.results import StudyPlan, StudySummary
from evenslice.results.intervals import holm, pool_means

VALUES = st.lists(st.floats(0.5, 0.9), min_size=2, max_size=6).filter(lambda found: np.std(found) > 1e-3)
EFFECTS = {"pretrained": 0.0, "better": 0.02, "same": 0.0, "worse": -0.03}


def row(arm, seed, *, dataset="em", architecture="net", bias=0.0, **figures):
    labels = {"dataset": dataset, "architecture": architecture, "arm": arm, "seed": seed, "verdict": "biased"}
    biases = {"absolute_bias": abs(bias), "largest_bias": abs(bias), "directional_bias": bias}
    return {**labels, "shares": [0.3, 0.4, 0.3], **biases, **figures}


def rows(effects, *, folds=3, seeds=2, datasets=("a", "b"), architecture="net", noise=0.0, losses=()):
    """Runs of arms that differ from the baseline by known effects, with noise in each fold and seed."""
    random, found = np.random.default_rng(0), []
    for data in datasets:
        for fold in range(folds):
            for seed in range(seeds):
                base = 0.8 + 0.02 * random.standard_normal()
                for arm, effect in effects.items():
                    dice = base + effect + noise * random.standard_normal()
                    stress = {f"stress_{where}": dice - lost for where, lost in losses}
                    labels = {"dataset": data, "architecture": architecture, "fold": fold}
                    found.append(row(arm, seed, dice=dice, **labels, **stress))
    return found


def summary(found, **options):
    return StudySummary.of_runs(found, [], len(found), StudyPlan("pretrained", 0.01, **options))


def summarize(found):
    return summary(found).comparisons


def pool(found, **options):
    return summary(found, **options).pooled


def by_name(pooled):
    return {arm.arm: arm for arm in pooled[0].arms}


# Means, intervals and tests.


@given(VALUES, st.floats(0.6, 0.8))
def test_a_single_data_set_has_the_interval_and_the_test_of_student(values, bound):
    found = pool_means([values]).interval()
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.estimate, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    expected = stats.ttest_1samp(values, bound, alternative="greater").pvalue
    assert pool_means([values]).p_above(bound) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(VALUES, VALUES)
def test_two_data_sets_have_the_degrees_of_freedom_of_welch(one, other):
    """The mean of a and -b is half the difference that Welch's test is about."""
    expected = stats.ttest_ind(one, other, equal_var=False)
    found = pool_means([one, [-value for value in other]])
    assert found.dof == pytest.approx(expected.df)
    assert found.p_differs() == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    low, high = expected.confidence_interval(0.95)
    assert (2 * found.interval().low, 2 * found.interval().high) == pytest.approx((low, high))


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.1, 0.1], [0.8 - 0.7, 0.4 - 0.3]])
def test_equal_values_have_no_test(values):
    """Two networks that learned nothing have the same score; a p of 0 would be taken for strong evidence."""
    same = pool_means([values, [0.3, 0.3]])
    assert same.interval().high - same.interval().low < 1e-12
    assert all(map(math.isnan, (same.p_above(-0.01), same.p_differs(), pool_means([values]).p_above(-1))))
    assert pool_means([[0.1, 0.1], [0.1, 0.2]]).p_differs() > 0


def test_holm_is_that_of_the_textbooks():
    """R's p.adjust(c(.01, .02, .03, .04), "holm"), and the example of Wright (1992), table 1."""
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([math.nan, 0.5]) == pytest.approx([math.nan, 0.5], nan_ok=True)


def simulated(random, *, folds, seeds, effect, spread, noise, times):
    """Differences (times, folds, seeds) with a random effect of the fold."""
    of_fold = spread * random.standard_normal((times, folds, 1))
    return effect + of_fold + noise * random.standard_normal((times, folds, seeds))


def coverage(folds, spreads, noises, *, times=2000, seeds=3):
    """How often the interval covers the mean effect: with folds as replicates, and with all runs as replicates."""
    random, effects = np.random.default_rng(0), (-0.02, 0.0, 0.005)
    data = [
        simulated(random, folds=k, seeds=seeds, effect=effect, spread=spread, noise=noise, times=times)
        for k, effect, spread, noise in zip(folds, effects, spreads, noises, strict=True)
    ]
    found = np.zeros(2)
    for n in range(times):
        replicates = [part[n].mean(axis=1) for part in data], [part[n].ravel() for part in data]
        for column, parts in enumerate(replicates):
            interval = pool_means(parts).interval()
            found[column] += interval.low <= np.mean(effects) <= interval.high
    return found / times


@pytest.mark.slow
@pytest.mark.parametrize("folds", [(4, 4, 4), (2, 2, 2)])
@pytest.mark.parametrize("spreads", [(0.005, 0.005, 0.005), (0.02, 0.005, 0.002)])
def test_the_pooled_interval_holds_as_often_as_it_says(folds, spreads):
    """Data sets with effects, spreads of folds and noise of seeds of their own."""
    by_fold, by_run = coverage(folds, spreads, (0.004, 0.01, 0.002))
    assert by_fold >= 0.93
    assert by_run < by_fold  # seeds of one fold are not independent


def equicorrelated(random, *, folds, times):
    """Values (times, folds) of mean 0 of which any two correlate by 1 / folds, as Nadeau and Bengio take it."""
    common, own = random.standard_normal((times, 1)), random.standard_normal((times, folds))
    return math.sqrt(1 / folds) * common + math.sqrt(1 - 1 / folds) * own


@pytest.mark.slow
@pytest.mark.parametrize("folds", [2, 4, 10])
def test_corrected_intervals_cover_the_mean_of_correlated_folds(folds):
    """In one data set exactly, as mean and variance are independent; without the correction, far less often."""
    values = equicorrelated(np.random.default_rng(0), folds=folds, times=3000)

    def covered(of):
        found = [pool_means([row], [of]).interval() for row in values]
        return np.mean([each.low <= 0 <= each.high for each in found])

    assert covered(folds) == pytest.approx(0.95, abs=0.012)
    assert covered(1) < 0.93


@pytest.mark.parametrize(("folds", "factor"), [(4, 1 / 3 + 1 / 3), (1, 1 / 3)])
def test_figures_of_a_study_are_corrected_for_the_folds_that_it_plans(folds, factor):
    """Of four folds, three are done; the same values of three seeds are independent."""
    found = rows({"pretrained": 0.0, "uniform": 0.01}, seeds=1, noise=0.01, datasets=("a",))
    runs = [run if folds > 1 else run | {"fold": 0, "seed": run["fold"]} for run in found]
    runs = [run | {"folds": folds, "largest_bias": run["dice"]} for run in runs]
    own, baseline = (np.array([run["dice"] for run in found[part::2]]) for part in (1, 0))
    (comparison,), ((_, pooled),) = summarize(runs), [item.arms for item in pool(runs)]
    assert comparison.folds == folds
    half = stats.t.ppf(0.975, 2) * np.std(own - baseline, ddof=1) * math.sqrt(factor)
    for arm in (comparison.arms[1], pooled):
        interval = arm.differences["dice"]
        assert interval.estimate - interval.low == pytest.approx(half)
        assert arm.p == pytest.approx(
            stats.t.sf((interval.estimate + 0.01) / half * stats.t.ppf(0.975, 2), 2)
        )
    removed = comparison.arms[1].bias_removed  # Fieller's ends, by the same variance
    for end in (removed.low, removed.high):
        left = own - (1 - end) * baseline
        if end < 1:
            error = np.std(left, ddof=1) * math.sqrt(factor)
            assert abs(left.mean()) / error == pytest.approx(stats.t.ppf(0.975, 2))


def test_heterogeneity_is_that_of_higgins_and_thompson():
    """By hand; 0 where the means are equal; and, of like data sets, more than 0 by chance alone."""
    groups = [[0.0, 0.02], [0.1, 0.12], [0.2, 0.24]]
    means, squared = np.array([0.01, 0.11, 0.22]), np.array([1e-4, 1e-4, 4e-4])
    weights = 1 / squared
    scatter = (weights * (means - (weights * means).sum() / weights.sum()) ** 2).sum()
    assert pool_means(groups).heterogeneity == pytest.approx(1 - 2 / scatter)
    assert pool_means([[0.1, 0.2], [0.1, 0.2]]).heterogeneity == 0
    assert math.isnan(pool_means([[0.1, 0.2]]).heterogeneity)
    assert math.isnan(pool_means([[0.1, 0.2], [0.3, 0.3]]).heterogeneity)
    random = np.random.default_rng(0)
    by_chance = [
        pool_means(list(equicorrelated(random, folds=4, times=4)), [4] * 4).heterogeneity for _ in range(2000)
    ]
    assert np.mean(by_chance) == pytest.approx(0.26, abs=0.02)


# Arms on one data set.


def test_arms_are_compared_seed_by_seed():
    noise = [0.05, -0.02, 0.01]  # of the seeds: large, and almost the same in both arms
    runs = [row("pretrained", seed, dice=0.8 + noise[seed], bias=-0.2) for seed in range(3)]
    runs += [row("uniform", seed, dice=0.801 + 1.001 * noise[seed], bias=0.02) for seed in (2, 0, 1)]
    baseline, uniform = summarize(runs)[0].arms
    assert baseline.differences == {}
    assert baseline.metrics["dice"].low < 0.75
    assert astuple(uniform.differences["dice"]) == pytest.approx((0.001,) * 3, abs=2e-4)
    assert (uniform.holds, uniform.outcome, uniform.margin) == (True, "non-inferior", 0.01)
    assert astuple(uniform.bias_removed) == pytest.approx((0.9, 0.9, 0.9))
    for share, expected in zip(uniform.shares, (0.3, 0.4, 0.3), strict=True):
        assert astuple(share) == pytest.approx((expected,) * 3)


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ((0.002, -0.001, 0.001), "non-inferior"),
        ((-0.02, 0.01, 0.0), "open"),
        ((-0.03, -0.031, -0.032), "inferior"),
        ((0.1,), "no test"),
        ((0.0, 0.0), "no test"),
    ],
)
def test_an_arm_is_not_inferior_if_the_interval_lies_above_the_margin(differences, outcome):
    runs = [row("pretrained", seed, dice=0.5) for seed in range(len(differences))]
    runs += [row("uniform", seed, dice=0.5 + value) for seed, value in enumerate(differences)]
    (uniform,) = summarize(runs)[0].arms[1:]
    assert uniform.outcome == outcome
    expected = math.nan
    if outcome != "no test":
        expected = stats.ttest_1samp(differences, -0.01, alternative="greater").pvalue
        assert uniform.holds == (uniform.differences["dice"].low > -0.01)
    assert uniform.p == pytest.approx(expected, nan_ok=True)


# The bias that is removed.


@pytest.mark.slow
@given(st.lists(st.tuples(st.floats(0, 0.3), st.floats(0.15, 0.25)), min_size=3, max_size=6))
def test_the_ends_of_the_interval_are_on_the_edge_of_a_t_test(seeds):
    own, baseline = np.array(seeds).T
    runs = [
        row(arm, seed, bias=bias)
        for arm, biases in (("pretrained", baseline), ("uniform", own))
        for seed, bias in enumerate(biases.tolist())
    ]
    first, second = summarize(runs)[0].arms
    found = second.bias_removed
    if math.isnan(found.estimate):
        assert not first.metrics["largest_bias"].low > 0.05
        return
    assert found.low - 1e-9 <= found.estimate <= found.high + 1e-9
    assert found.high <= 1
    for end in (found.low, found.high):
        left = own - (1 - end) * baseline
        if end < 1 and np.std(left) > 1e-3:
            assert stats.ttest_1samp(left, 0).pvalue == pytest.approx(0.05, abs=1e-3)


# Impossible values, and values that are not comparable.


RANGES = {
    **dict.fromkeys(("hd95", "variation_of_information", "mirror_error"), (0, math.inf)),
    **dict.fromkeys(("directional_bias", "loss_before", "loss_after", "loss_both"), (-1, 1)),
    "imbalance": (0, 2 / 3),
}


def test_no_interval_leaves_the_range_of_its_quantity():
    runs = [
        row(arm, seed, dice=0.9 + 0.09 * seed, mirror_disagreement=0.02 * seed, bias=bias * seed, hd95=seed)
        for arm, bias in [("pretrained", -0.9), ("uniform", 0.02)]
        for seed in range(2)
    ]
    for arm in (*summarize(runs)[0].arms, *pool(runs)[0].arms):
        for name, value in arm.metrics.items():
            low, high = RANGES.get(name, (0, 1))
            assert math.isnan(value.low) or low <= value.low <= value.estimate <= value.high <= high, name
        assert (arm.metrics["dice"].high, arm.metrics["absolute_bias"].low) == (1, 0)
        if "absolute_bias" in arm.differences:
            difference = arm.differences["absolute_bias"]
            assert (difference.low, difference.high) == (-1, 1)


def with_answers(*changes, arm="pretrained", **more):
    figures = {"dice": 0.8, **more}
    return [
        row(arm, seed, answer_change=change, imbalance=0.4 + 0.15 * seed, **figures)
        for seed, change in enumerate(changes)
    ]


def test_answer_changes_of_two_kinds_have_no_mean():
    runs = [*with_answers(0.05, 0.06), *with_answers(0.5, 0.6, arm="uniform", answer_of="scores")]
    first, second = summarize(runs)[0].arms
    assert not math.isnan(first.metrics["answer_change"].high)
    assert math.isnan(second.differences["answer_change"].estimate)
    runs[1]["answer_of"] = "scores"
    mixed = summarize(runs)[0].arms[0].metrics
    assert (math.isnan(mixed["answer_change"].estimate), math.isnan(mixed["dice"].estimate)) == (True, False)
    other = [{**run, "dataset": "other", "answer_of": "scores"} for run in runs]
    baseline, uniform = pool([*runs, *other])[0].arms
    assert math.isnan(baseline.metrics["answer_change"].estimate)
    assert math.isnan(uniform.differences["answer_change"].estimate)
    assert not math.isnan(uniform.differences["dice"].estimate)


def test_a_summary_says_of_what_its_answers_are():
    runs = with_answers(0.5, 1.6, answer_of="scores")
    runs += with_answers(0.4, 0.9, arm="uniform", answer_of="scores")
    found = summary(runs)
    read = StudySummary.read(json.loads(json.dumps(found.to_dict())))
    for part, expected in zip(
        (*read.comparisons, *read.pooled), (*found.comparisons, *found.pooled), strict=True
    ):
        for arm, wanted in zip(part.arms, expected.arms, strict=True):
            for name in ("metrics", "differences"):
                figures, others = getattr(arm, name), getattr(wanted, name)
                assert figures.get("answer_change") == others.get("answer_change")
    assert found.comparisons[0].arms[0].metrics["answer_change"].high > 1


@pytest.mark.parametrize(("classes", "stays"), [(2, True), (3, False)])
def test_audits_by_other_definitions_are_never_mixed(classes, stays):
    """Beside later runs, those of version 0.2 keep their scores, and the change of an answer of two classes."""
    figures = {"dice": 0.8, "answer_change": 0.3, "stress_intact": 0.8, "stress_both": 0.7}
    figures["classes"] = classes
    old = [row("pretrained", seed, bias=-0.2, **figures) for seed in range(2)]
    new = [row("uniform", seed, bias=-0.1, definitions=2, reliance=0.2, **figures) for seed in range(2)]
    assert summarize(old)[0].arms[0].metrics["directional_bias"].estimate == -0.2
    (pooled,) = pool([*old, *new])
    for before, after in (summarize([*old, *new])[0].arms, pooled.arms):
        assert (before.metrics["dice"].estimate, after.differences["dice"].estimate) == (0.8, 0.0)
        assert (after.metrics["directional_bias"].estimate, after.metrics["reliance"].estimate) == (-0.1, 0.2)
        for figure in (before.metrics["directional_bias"], after.differences["largest_bias"]):
            assert math.isnan(figure.estimate)
        assert math.isnan(after.differences["answer_change"].estimate) is not stays
    assert pooled.arms[0].metrics["loss_both"].estimate == pytest.approx(0.1)
    assert summarize([*old, *new])[0].arms[0].shares == ()


# Arms over all data sets.


def test_only_what_every_data_set_has_is_pooled():
    runs = rows({"pretrained": 0.0, "uniform": 0.01})
    found = [
        run | {"hd95": 2.0, "adapted_rand_error": 0.1 if run["dataset"] == "b" else None} for run in runs
    ]
    for arm in pool(found)[0].arms:
        for figures in (arm.metrics, arm.differences):
            assert "hd95" not in figures  # of nanometres and millimetres there is no mean
            assert not figures or math.isnan(figures["adapted_rand_error"].estimate)


@pytest.mark.parametrize(
    ("arm", "holds", "superior"), [("better", True, True), ("same", True, False), ("worse", False, None)]
)
def test_the_primary_comparison_is_tested_in_order(arm, holds, superior):
    (found,) = pool(rows(EFFECTS, noise=0.001), primary=(arm, "net", 0.005))
    (chosen,) = [item for item in found.arms if item.primary]
    assert (chosen.arm, chosen.margin, chosen.holds, chosen.superior) == (arm, 0.005, holds, superior)
    assert math.isnan(chosen.p_superior) == (superior is None)
    assert math.isnan(chosen.p_adjusted)
    others = [item for item in found.arms if item.differences and not item.primary]
    assert [item.margin for item in others] == [0.01, 0.01]
    assert [item.p_adjusted for item in others] == holm([item.p_differs for item in others])


def test_comparisons_without_a_test_so_far_count_among_the_planned_ones():
    """Else the smallest p would grow with every arm that is finished."""
    primary = ("worse", "net", 0.005)
    found = [run for run in rows(EFFECTS, noise=0.01) if (run["arm"], run["dataset"]) != ("same", "b")]
    planned = {"architectures": ("net", "other"), "arms": (*EFFECTS, "later")}
    for options, count in (({}, 2), (planned, 7)):  # 4 arms x 2 networks, less the primary one
        better = by_name(pool(found, primary=primary, **options))["better"]
        assert better.p_adjusted == pytest.approx(min(1, count * better.p_differs))
        assert better.p_differs < 1 / 7


@pytest.mark.parametrize("lost", ["uniform", "pretrained"])
def test_an_arm_that_lacks_a_data_set_is_not_tested(lost):
    found = rows({"pretrained": 0.0, "uniform": 0.01, "twin": 0.01}, datasets=("a", "b", "c"), noise=1e-4)
    complete = by_name(pool(found))["uniform"]
    assert (complete.holds, complete.compared) == (True, ("a", "b", "c"))
    fewer = [run for run in found if (run["arm"], run["dataset"]) != (lost, "c")]
    arms = by_name(pool(fewer, primary=("uniform", "net", 0.005)))
    uniform = arms["uniform"]
    assert (uniform.holds, uniform.superior, uniform.compared) == (None, None, ("a", "b"))
    assert all(map(math.isnan, (uniform.p, uniform.p_differs)))
    assert arms[lost].datasets == ("a", "b")
    assert math.isnan(arms[lost].metrics["dice"].estimate)  # the mean of two of three is none of all three
    assert not math.isnan(arms["twin"].metrics["dice"].estimate)
    assert uniform.differences["dice"].estimate == pytest.approx(0.01, abs=1e-3)


@pytest.mark.parametrize("lost", ["the arm", "the baseline", "a score", "a common seed"])
def test_an_arm_that_cannot_be_compared_in_a_fold_is_not_tested(lost):
    found = rows({"pretrained": 0.0, "uniform": 0.01}, folds=3, seeds=1, noise=1e-4)
    assert pool(found)[0].arms[1].holds

    def changed(run):
        if run["fold"] != 2 or run["arm"] != ("pretrained" if lost == "the baseline" else "uniform"):
            return [run]
        if lost == "a score":
            return [run | {"dice": math.nan}]
        return [run | {"seed": 7}] if lost == "a common seed" else []

    uniform = pool([new for run in found for new in changed(run)])[0].arms[1]
    assert (uniform.holds, math.isnan(uniform.p)) == (None, True)


def test_a_data_set_without_results_is_missed():
    found = rows({"pretrained": 0.0, "uniform": 0.01}, noise=1e-4)
    options = {"primary": ("uniform", "net", 0.005), "datasets": ("a", "b", "c")}
    (pooled,) = pool(found, **options)
    assert (pooled.datasets, pooled.missing, pooled.title) == (("a", "b"), ("c",), "2 of 3 data sets, net")
    uniform = pooled.arms[1]
    assert (uniform.primary, uniform.holds, uniform.superior) == (True, None, None)
    assert all(map(math.isnan, (uniform.p, uniform.p_superior, uniform.p_differs)))
    complete = rows({"pretrained": 0.0, "uniform": 0.01}, noise=1e-4, datasets=("a", "b", "c"))
    (pooled,) = pool(complete, **options)
    assert (pooled.missing, pooled.title) == ((), "3 of 3 data sets, net")
    assert pooled.arms[1].superior
    (alone,) = pool([run for run in complete if run["dataset"] == "b"])
    assert alone.title == "1 of 1 data sets, net"
