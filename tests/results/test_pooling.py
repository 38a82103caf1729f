"""Means over data sets: against SciPy, by hand, a textbook, and simulations whose components of variance are known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from evenslice.results.arms import POOLED, Primary, pool_runs, replicate_means, summarize_runs
from evenslice.results.intervals import holm, pool_means, student_interval

values = st.lists(st.floats(0.5, 0.9), min_size=2, max_size=6).filter(lambda found: np.std(found) > 1e-3)


@given(values)
def test_a_single_data_set_has_the_interval_of_student(found):
    expected = student_interval(found)
    interval = pool_means([found]).interval()
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert pool_means([found]).p_above(0.6) == pytest.approx(
        stats.ttest_1samp(found, 0.6, alternative="greater").pvalue, rel=1e-6, abs=1e-12
    )


@given(values, values)
def test_two_data_sets_have_the_degrees_of_freedom_of_welch(one, other):
    """The mean of a and -b is half the difference that Welch's test is about."""
    expected = stats.ttest_ind(one, other, equal_var=False)
    found = pool_means([one, [-value for value in other]])
    assert found.dof == pytest.approx(expected.df)
    assert found.p_differs() == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    low, high = expected.confidence_interval(0.95)
    assert (2 * found.interval().low, 2 * found.interval().high) == pytest.approx((low, high))


def test_means_without_an_interval_have_no_test():
    alone = pool_means([[0.1, 0.2], [0.3]])
    assert alone.estimate == pytest.approx(0.225)
    assert all(map(math.isnan, (alone.error, alone.p_above(), alone.p_differs(), alone.interval().low)))
    assert all(map(math.isnan, pool_means([[math.nan], []])))


def test_equal_values_have_no_test():
    """Two networks that learned nothing have the same score; a p of 0 would be taken for strong evidence."""
    for values in ([0.0, 0.0], [0.1, 0.1], [0.8 - 0.7, 0.4 - 0.3]):
        same = pool_means([values, [0.3, 0.3]])
        assert same.interval().high - same.interval().low < 1e-12
        assert all(map(math.isnan, (same.p_above(-0.01), same.p_differs())))
    assert pool_means([[0.1, 0.1], [0.1, 0.2]]).p_differs() > 0


def test_holm_is_that_of_the_textbooks():
    """R's p.adjust(c(.01, .02, .03, .04), "holm"), and the example of Wright (1992), table 1."""
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([math.nan, 0.5]) == pytest.approx([math.nan, 0.5], nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_step_by_step(p_values):
    """At any level it rejects the smallest values, as long as each is below the level over those that are left."""
    adjusted = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))
    for level in (0.05, 0.2):
        going, expected = True, set()
        for rank, n in enumerate(np.argsort(p_values, kind="stable")):
            going = going and (len(p_values) - rank) * p_values[n] <= level
            if going:
                expected.add(int(n))
        assert {n for n, p in enumerate(adjusted) if p <= level} == expected


def rows(effects, *, folds=3, seeds=2, datasets=("a", "b"), architecture="net", noise=0.0, losses=()):
    """Runs of arms that differ from the baseline by known effects, with noise in each fold and seed."""
    random = np.random.default_rng(0)
    found = []
    for data in datasets:
        for fold in range(folds):
            for seed in range(seeds):
                base = 0.8 + 0.02 * random.standard_normal()
                for arm, effect in effects.items():
                    dice = base + effect + noise * random.standard_normal()
                    stress = {f"stress_{where}": dice - lost for where, lost in losses}
                    place = {
                        "dataset": data,
                        "architecture": architecture,
                        "arm": arm,
                        "fold": fold,
                        "seed": seed,
                    }
                    found.append({**place, "shares": [0.3, 0.4, 0.3], "dice": dice, **stress})
    return found


def pool(found, **options):
    return pool_runs(found, **{"baseline": "pretrained", "margin": 0.01, **options})


def test_the_fold_is_the_replicate_where_there_are_folds():
    runs = [{"fold": fold, "seed": seed} for fold in (0, 1, 2) for seed in (0, 1)]
    found = [0.70, 0.72, 0.80, math.nan, 0.90, 0.92]
    assert replicate_means(runs, found, "fold").tolist() == pytest.approx([0.71, 0.80, 0.91])
    records = [
        {**run, "dataset": "a", "architecture": "n", "arm": "pretrained", "shares": None, "dice": dice}
        for run, dice in zip(runs, found, strict=True)
    ]
    (comparison,) = summarize_runs(records, baseline="pretrained", margin=0.01)
    expected = student_interval([0.71, 0.80, 0.91])
    assert comparison.arms[0].metrics["dice"].low == pytest.approx(expected.low)
    assert (comparison.unit, comparison.replicates(comparison.arms[0])) == ("fold", 3)
    assert (comparison.arms[0].seeds, comparison.arms[0].folds) == ((0, 1), (0, 1, 2))
    one_fold = summarize_runs(records[:2], baseline="pretrained", margin=0.01)[0]
    assert (one_fold.unit, one_fold.replicates(one_fold.arms[0])) == ("seed", 2)
    apart = [
        records[0],
        records[2] | {"arm": "uniform"},
    ]  # the first runs of an arm may be those of another fold
    (unequal,) = summarize_runs(apart, baseline="pretrained", margin=0.01)
    assert unequal.unit == "fold"


def test_seeds_do_not_become_replicates_while_only_one_fold_is_done():
    done = [{**row, "folds": 2} for row in rows({"pretrained": 0.0, "uniform": -0.02}, folds=1, noise=0.01)]
    for comparison in summarize_runs(done, baseline="pretrained", margin=0.01):
        assert (comparison.unit, comparison.to_dict()["unit"]) == ("fold", "fold")
        assert [comparison.replicates(arm) for arm in comparison.arms] == [1, 1]
        assert math.isnan(comparison.arms[1].differences["dice"].low)
        assert comparison.arms[1].holds is None
    (pooled,) = pool(done)
    assert math.isnan(pooled.arms[1].differences["dice"].low)
    assert pooled.arms[1].holds is None


def test_differences_are_paired_over_fold_and_seed():
    shuffled = rows({"pretrained": 0.0, "uniform": -0.02})
    np.random.default_rng(1).shuffle(shuffled)
    (found,) = pool(shuffled)
    arms = {arm.arm: arm for arm in found.arms}
    difference = arms["uniform"].differences["dice"]
    assert (difference.low, difference.high) == pytest.approx((-0.02, -0.02))
    assert arms["pretrained"].differences == {}
    assert arms["uniform"].metrics["dice"].high - arms["uniform"].metrics["dice"].low > 0.01
    assert set(found.datasets) == {"a", "b"}
    unpaired = [row for row in shuffled if row["arm"] == "uniform" or row["fold"] == 0]
    alone = {arm.arm: arm for arm in pool(unpaired)[0].arms}["uniform"]
    assert alone.differences["dice"].estimate == pytest.approx(-0.02)
    assert math.isnan(alone.differences["dice"].low)  # one fold in common, however many seeds


def test_each_data_set_counts_the_same():
    found = rows({"pretrained": 0.0, "uniform": -0.02}, datasets=("a",), folds=5)
    found += rows({"pretrained": 0.0, "uniform": 0.04}, datasets=("b",), folds=2)
    (pooled,) = pool(found)
    assert pooled.arms[1].differences["dice"].estimate == pytest.approx(0.01)
    assert pooled.title == "Both data sets, net"


def test_what_a_missing_slice_costs_is_pooled():
    losses = [("intact", 0.0), ("before", 0.1), ("after", 0.03), ("both", 0.2)]
    found = rows({"pretrained": 0.0}, losses=losses)
    found += rows({"uniform": 0.0}, losses=[(name, lost / 2) for name, lost in losses])
    uniform = pool(found)[0].arms[1]
    assert uniform.metrics["loss_before"].estimate == pytest.approx(0.05)
    assert uniform.differences["loss_both"].estimate == pytest.approx(-0.1)
    assert set(uniform.metrics) == set(uniform.differences) == set(POOLED)
    assert math.isnan(pool(rows({"pretrained": 0.0}))[0].arms[0].metrics["loss_both"].estimate)


EFFECTS = {"pretrained": 0.0, "better": 0.02, "same": 0.0, "worse": -0.03}


@pytest.mark.parametrize(
    ("arm", "holds", "superior"), [("better", True, True), ("same", True, False), ("worse", False, None)]
)
def test_the_primary_comparison_is_tested_in_order(arm, holds, superior):
    (found,) = pool(rows(EFFECTS, noise=0.001), primary=Primary(arm, "net", 0.005))
    (chosen,) = [item for item in found.arms if item.primary]
    assert (chosen.arm, chosen.margin, chosen.holds, chosen.superior) == (arm, 0.005, holds, superior)
    assert math.isnan(chosen.p_superior) == (superior is None)
    assert math.isnan(chosen.p_adjusted)
    others = [item for item in found.arms if item.differences and not item.primary]
    assert [item.margin for item in others] == [0.01, 0.01]
    assert [item.p_adjusted for item in others] == holm([item.p_differs for item in others])
    (document,) = [item for item in found.to_dict()["arms"] if item["primary"]]
    assert document["superiority"] == {"p": pytest.approx(chosen.p_superior, nan_ok=True), "holds": superior}


def test_the_primary_comparison_has_one_network_and_the_others_are_adjusted_together():
    found = [
        *rows(EFFECTS, noise=0.01),
        *rows(EFFECTS, noise=0.01, architecture="other"),
    ]
    pooled = pool(found, primary=Primary("same", "other", 0.005))
    assert [[arm.arm for arm in item.arms if arm.primary] for item in pooled] == [[], ["same"]]
    others = [arm for item in pooled for arm in item.arms if arm.differences and not arm.primary]
    assert len(others) == 5
    assert [arm.p_adjusted for arm in others] == holm([arm.p_differs for arm in others])


def test_comparisons_without_a_test_so_far_count_among_the_planned_ones():
    """Else the smallest p would grow with every arm that is finished."""
    primary = Primary("worse", "net", 0.005)
    found = [row for row in rows(EFFECTS, noise=0.01) if (row["arm"], row["dataset"]) != ("same", "b")]
    (pooled,) = pool(found, primary=primary)
    (better,) = [arm for arm in pooled.arms if arm.arm == "better"]
    assert better.p_adjusted == pytest.approx(min(1, 2 * better.p_differs))  # "same" is still to be tested
    planned = {"architectures": ("net", "other"), "arms": (*EFFECTS, "later")}
    (pooled,) = pool(found, primary=primary, **planned)
    (better,) = [arm for arm in pooled.arms if arm.arm == "better"]
    assert better.p_adjusted == pytest.approx(
        min(1, 7 * better.p_differs)
    )  # 4 arms x 2 networks, less the primary one
    assert better.p_differs < 1 / 7


def simulated(random, *, folds, seeds, effect, spread, noise, times):
    """Differences (times, folds, seeds) with a random effect of the fold."""
    shape = (times, folds, 1)
    return (
        effect
        + spread * random.standard_normal(shape)
        + noise * random.standard_normal((times, folds, seeds))
    )


def coverage(folds, spreads, noises, *, times=4000, seeds=3):
    """How often the interval covers the mean effect: with folds as replicates, and with all runs as replicates."""
    random, effects = np.random.default_rng(0), (-0.02, 0.0, 0.005)
    components = zip(folds, effects, spreads, noises, strict=True)
    data = [
        simulated(random, folds=k, seeds=seeds, effect=effect, spread=spread, noise=noise, times=times)
        for k, effect, spread, noise in components
    ]
    found = np.zeros(2)
    for n in range(times):
        for column, parts in enumerate(
            ([part[n].mean(axis=1) for part in data], [part[n].ravel() for part in data])
        ):
            interval = pool_means(parts).interval()
            found[column] += interval.low <= np.mean(effects) <= interval.high
    return found / times


@pytest.mark.parametrize("folds", [(4, 4, 4), (3, 4, 6), (3, 3, 3), (2, 2, 2)])
@pytest.mark.parametrize("spreads", [(0.005, 0.005, 0.005), (0.02, 0.005, 0.002)])
def test_the_pooled_interval_holds_as_often_as_it_says(folds, spreads):
    """Data sets with effects, spreads of folds and noise of seeds of their own."""
    by_fold, by_run = coverage(folds, spreads, (0.004, 0.01, 0.002))
    assert by_fold >= 0.93
    assert by_run < by_fold  # seeds of one fold are not independent


def test_two_folds_beside_more_are_too_few_if_they_vary_most():
    """What the docstring of pool_means admits."""
    assert 0.87 < coverage((2, 4, 4), (0.02, 0.005, 0.005), (0.001,) * 3)[0] < 0.93
    assert coverage((2, 4, 4), (0.005, 0.005, 0.005), (0.001,) * 3)[0] >= 0.93


def test_the_interval_of_runs_is_that_of_their_folds():
    """What is simulated above goes the whole way from the rows of runs."""
    random = np.random.default_rng(3)
    data = {
        name: simulated(random, folds=4, seeds=2, effect=0.0, spread=0.01, noise=0.01, times=1)[0]
        for name in "ab"
    }
    records = [
        {
            "dataset": name,
            "architecture": "net",
            "arm": arm,
            "fold": fold,
            "seed": seed,
            "shares": None,
            "dice": 0.8 + (part[fold, seed] if arm == "uniform" else 0.0),
        }
        for name, part in data.items()
        for arm in ("pretrained", "uniform")
        for fold in range(4)
        for seed in range(2)
    ]
    expected = pool_means([part.mean(axis=1) for part in data.values()]).interval()
    found = pool(records)[0].arms[1].differences["dice"]
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_pooled_intervals_stay_in_range(seed):
    random = np.random.default_rng(seed)
    found = [{**row, "dice": float(random.random())} for row in rows(EFFECTS, folds=2, seeds=1)]
    for arm in pool(found)[0].arms:
        for name in ("dice",):
            assert 0 <= arm.metrics[name].low <= arm.metrics[name].high <= 1


@pytest.mark.parametrize("lost", ["uniform", "pretrained"])
def test_an_arm_that_lacks_a_data_set_is_not_tested(lost):
    found = rows({"pretrained": 0.0, "uniform": 0.01, "twin": 0.01}, datasets=("a", "b", "c"), noise=1e-4)
    complete = {arm.arm: arm for arm in pool(found)[0].arms}
    assert complete["uniform"].holds
    assert complete["uniform"].compared == ("a", "b", "c")
    fewer = [row for row in found if (row["arm"], row["dataset"]) != (lost, "c")]
    (pooled,) = pool(fewer, primary=Primary("uniform", "net", 0.005))
    uniform = next(arm for arm in pooled.arms if arm.arm == "uniform")
    assert (uniform.holds, uniform.superior, uniform.compared) == (None, None, ("a", "b"))
    arms = {arm.arm: arm for arm in pooled.arms}
    assert arms[lost].datasets == ("a", "b")
    assert math.isnan(arms[lost].metrics["dice"].estimate)  # the mean of two of three is none of all three
    assert not math.isnan(arms["twin"].metrics["dice"].estimate)
    assert math.isnan(uniform.p)
    assert math.isnan(uniform.p_differs)
    assert uniform.differences["dice"].estimate == pytest.approx(0.01, abs=1e-3)
    failed = [
        row | ({"dice": math.nan} if (row["arm"], row["dataset"]) == (lost, "c") else {}) for row in found
    ]
    assert next(arm for arm in pool(failed)[0].arms if arm.arm == "uniform").holds is None


@pytest.mark.parametrize("lost", ["the arm", "the baseline", "a score", "a common seed"])
def test_an_arm_that_cannot_be_compared_in_a_fold_is_not_tested(lost):
    found = rows({"pretrained": 0.0, "uniform": 0.01}, folds=3, seeds=1, noise=1e-4)
    assert pool(found)[0].arms[1].holds

    def changed(row):
        if row["fold"] != 2 or row["arm"] != ("pretrained" if lost == "the baseline" else "uniform"):
            return [row]
        if lost == "a score":
            return [row | {"dice": math.nan}]
        return [row | {"seed": 7}] if lost == "a common seed" else []

    uniform = pool([new for row in found for new in changed(row)])[0].arms[1]
    assert uniform.holds is None
    assert math.isnan(uniform.p)


def test_a_data_set_without_results_is_missed():
    found = rows({"pretrained": 0.0, "uniform": 0.01}, noise=1e-4)
    options = {"primary": Primary("uniform", "net", 0.005), "datasets": ("a", "b", "c")}
    (pooled,) = pool(found, **options)
    assert (pooled.datasets, pooled.missing) == (("a", "b"), ("c",))
    assert pooled.title == "2 of 3 data sets, net"
    uniform = pooled.arms[1]
    assert (uniform.primary, uniform.holds, uniform.superior) == (True, None, None)
    assert all(map(math.isnan, (uniform.p, uniform.p_superior, uniform.p_differs)))
    assert uniform.differences["dice"].estimate == pytest.approx(0.01, abs=1e-3)
    complete = rows({"pretrained": 0.0, "uniform": 0.01}, noise=1e-4, datasets=("a", "b", "c"))
    (pooled,) = pool(complete, **options)
    assert (pooled.missing, pooled.title) == ((), "All 3 data sets, net")
    assert pooled.arms[1].superior
    (alone,) = pool([row for row in complete if row["dataset"] == "b"])
    assert alone.title == "Tests on b, net"


def test_only_what_every_data_set_has_is_pooled():
    found = [
        {**row, "hd95": 2.0, "adapted_rand_error": 0.1 if row["dataset"] == "b" else None}
        for row in rows({"pretrained": 0.0, "uniform": 0.01})
    ]
    for arm in pool(found)[0].arms:
        for figures in (arm.metrics, arm.differences):
            assert "hd95" not in figures  # of nanometres and millimetres there is no mean
            assert not figures or math.isnan(figures["adapted_rand_error"].estimate)
