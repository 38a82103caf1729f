"""The arms of a study, for each data set and over all of them: means, differences from a baseline, tests, adjusted p values.

For each data set and architecture, every arm was run with several seeds, and perhaps on several folds of the data. A
metric of an arm is the mean over its replicates, folds or else seeds, with Student's t interval. Two arms
are compared run by run: runs with the same fold and seed see the same crops and start from the same random weights, unless
the whole network is random. An arm is non-inferior to the baseline when the 95 % interval of the difference in the main
score, such as Dice, lies above minus the margin. What an arm removes of the baseline's bias is a ratio of means and has
Fieller's interval. Every interval is clipped to the range of its quantity. Figures of audits by the definitions of version
0.2 stand beside no others; see ``comparable``.

Runs of one fold share their training and test data, so seeds within a fold say how much the training scatters, not how
much the data do. With folds, a replicate is therefore the mean over the seeds of a fold; without, it is a seed. Folds of
one data set are not independent, as their training data overlap: all intervals and tests over them have the correction of
Nadeau and Bengio, see ``variance_of_mean``.

A pooled mean is the mean over the data sets of their means, so each data set counts the same. The data sets are those
of the study, not a sample of others: what varies are the replicates within each, folds or else seeds. Without a value
in every data set there is no pooled mean, and without results on every data set of the study there are no tests.

The primary comparison is named before the runs. Its arm is tested for non-inferiority first, and for superiority only
if that holds; in this fixed order both may be tested at their full level. The p values of all other differences from
the baseline are adjusted together by Holm's method, for all that the study plans: those that are still without a test
count, as they will be looked at, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from scipy.special import stdtrit

from evenslice.results import documents
from evenslice.results.intervals import (
    TAIL,
    UNKNOWN,
    Interval,
    PooledMean,
    holm,
    pool_means,
    variance_of_mean,
)
from evenslice.results.tolerances import Tolerances

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

    RunRecord = Mapping[str, Any]
    Runs = Sequence[RunRecord]
    Cells = Mapping[tuple[str, str], Runs]
    """The runs on each data set with each architecture."""


Unit: TypeAlias = Literal["fold", "seed"]
"""What a replicate is among the runs of an arm."""

TASK_SCORES: Final = {
    "segmentation": ("dice", "iou", "hd95", "surface_dice", "adapted_rand_error", "variation_of_information"),
    "classification": ("balanced_accuracy", "accuracy", "macro_f1"),
}
"""Names of the scores of each task, the main one first."""

BIASES = ("directional_bias", "absolute_bias", "largest_bias", "reliance", "asymmetry", "imbalance")
CHANGES = ("mirror_error", "mirror_disagreement", "answer_change", "mirror_mismatch")
METRICS = (*TASK_SCORES["segmentation"], *TASK_SCORES["classification"], *BIASES, *CHANGES)
"""Names of the metrics of a run.

``absolute_bias`` is |D_m|; ``largest_bias`` is the largest |B_k| of the saliency among the judged pairs, and ``reliance`` that
of the reliance: |D_m| is 0 where pairs of opposite sign cancel, as in five slices of repeated colours.
"""

LOSSES = ("loss_before", "loss_after", "loss_both")
"""Dice lost on a sample of the test slices with the slice at -1, at +1, or both missing."""

POOLED = (*(name for name in METRICS if name != "hd95"), *LOSSES)
"""Names of what is pooled: not distances, whose unit may differ from data set to data set."""

BOUNDS = {
    **dict.fromkeys(("hd95", "variation_of_information", "mirror_error"), (0.0, math.inf)),
    **dict.fromkeys(("directional_bias", *LOSSES), (-1.0, 1.0)),
}
"""Range of the metrics for which it is not 0 to 1; see ``metric_bounds`` for those whose range depends on the runs."""


def score_title(name: str) -> str:
    """Return a score as text calls it.

    Example:
        >>> score_title("dice"), score_title("balanced_accuracy")
        ('Dice', 'balanced accuracy')
    """
    return name.replace("_", " ").replace("dice", "Dice").replace("iou", "IoU").replace("rand", "Rand")


def fold_of(run: RunRecord) -> int:
    """Return the fold of a run; 0 for records of versions that had none.

    Example:
        >>> fold_of({"seed": 1}), fold_of({"seed": 1, "fold": 2})
        (0, 2)
    """
    return int(run.get("fold", 0))


def run_name(run: RunRecord, *, folded: bool) -> str:
    """Return the names of a run, with its fold where there are folds.

    Example:
        >>> run_name({"dataset": "em", "architecture": "net", "arm": "twin", "fold": 0, "seed": 1}, folded=True)
        'em, net, twin, fold 0, seed 1'
    """
    fold = [f"fold {fold_of(run)}"] if folded or fold_of(run) else []
    return ", ".join([run["dataset"], run["architecture"], run["arm"], *fold, f"seed {run['seed']}"])


def fold_count(runs: Iterable[RunRecord]) -> int:
    """Return the number of folds of the data set of runs; 1 without folds, where seeds count as independent.

    Args:
        runs: each with its ``fold``, and with the number of ``folds`` of its data set where that is known: the runs of
            the other folds may have failed.

    Example:
        >>> fold_count([{"fold": 0, "seed": 0}, {"fold": 1, "seed": 0}])
        2
        >>> fold_count([{"seed": 0}, {"seed": 1}])
        1
        >>> fold_count([{"fold": 0, "folds": 4, "seed": 0}, {"fold": 0, "folds": 4, "seed": 1}])
        4
    """
    known = [*runs]
    planned: list[int] = [run.get("folds", 1) for run in known]
    return max(len(set(map(fold_of, known))), *planned, 1)


def replicate_means(runs: Runs, values: ArrayLike, unit: Unit) -> NDArray[np.float64]:
    """Return the mean of values over the runs of each replicate.

    Args:
        runs: n runs, each with its ``fold`` and ``seed``.
        values: (n,) one value for each; NaN is left out.
        unit: what a replicate is.

    Returns:
        One value for each fold, or seed, in the order of the runs; NaN where no run has a value.

    Example:
        >>> runs = [{"fold": fold, "seed": seed} for fold in (0, 1) for seed in (0, 1)]
        >>> replicate_means(runs, [0.8, 0.9, 0.6, 0.7], "fold").round(2).tolist()
        [0.85, 0.65]
    """
    groups: dict[int, list[float]] = {}
    for run, value in zip(runs, np.asarray(values, dtype=np.float64).tolist(), strict=True):
        known = groups.setdefault(fold_of(run) if unit == "fold" else run["seed"], [])
        if not np.isnan(value):
            known.append(value)
    return np.array([np.mean(known) if known else np.nan for known in groups.values()], dtype=np.float64)


def comparable(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Return runs without the figures of their audits that cannot stand beside those of others.

    What version 0.2 measured (``definitions`` of 1) is not what is measured now. Beside later runs, those of 0.2 keep
    their scores and the cost of disturbed slices to them, and the answer change where there are two ``classes``.

    Example:
        >>> old, new = {"dice": 0.8, "asymmetry": 0.1}, {"dice": 0.7, "asymmetry": 0.2, "definitions": 2}
        >>> [run["asymmetry"] for run in comparable([old, new])], [run["asymmetry"] for run in comparable([old])]
        ([None, 0.2], [0.1])
    """
    known = [*runs]
    latest = max((run.get("definitions", 1) for run in known), default=1)
    found = []
    for run in known:
        same = run.get("classes") == 2 and run.get("answer_of") != "scores"
        undefined = {*BIASES, *CHANGES, "shares"} - ({"answer_change"} if same else set())
        found.append(run if run.get("definitions", 1) == latest else {**run, **dict.fromkeys(undefined)})
    return found


def answer_kind(runs: Iterable[RunRecord]) -> Literal["classes", "scores", "both"]:
    """Return what the answer change C of runs is a change of: "classes", "scores", or "both", which have no common mean.

    C is a part of the pixels where classes are predicted, at most 1, and else a ratio of standard deviations without an
    upper limit; records of earlier versions do not say which.

    Example:
        >>> answer_kind([{"answer_change": 0.1}]), answer_kind([{"answer_change": 1.2, "answer_of": "scores"}])
        ('classes', 'scores')
    """
    known = [run for run in runs if run.get("answer_change") is not None]
    kinds = {run.get("answer_of") == "scores" for run in known if not math.isnan(run["answer_change"])}
    return "both" if len(kinds) > 1 else "scores" if True in kinds else "classes"


def metric_bounds(name: str, answer_of: str, *, difference: bool = False) -> tuple[float, float]:
    """Return the range of a metric, or of the difference of two values of it.

    Args:
        name: of the metric, or one of ``LOSSES``.
        answer_of: what the answer change is a change of, see ``answer_kind``.
        difference: whether it is that of a difference.

    Example:
        >>> metric_bounds("answer_change", "classes"), metric_bounds("answer_change", "scores")
        ((0.0, 1.0), (0.0, inf))
        >>> metric_bounds("dice", "classes", difference=True), metric_bounds("loss_both", "classes", difference=True)
        ((-1.0, 1.0), (-2.0, 2.0))
    """
    low, high = BOUNDS.get(name, (0.0, 1.0))
    if name == "answer_change" and answer_of == "scores":
        high = math.inf
    return (low - high, high - low) if difference else (low, high)


def column(runs: Runs, name: str) -> NDArray[np.float64]:
    """Return a metric of runs, or one of ``LOSSES``; NaN where undefined.

    Example:
        >>> column([{"dice": 0.8}, {"dice": None}], "dice").tolist()
        [0.8, nan]
    """
    if name in LOSSES:
        return column(runs, "stress_intact") - column(runs, name.replace("loss", "stress"))
    return np.array([run.get(name) for run in runs], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm on one data set or over all of them.

    Attributes:
        arm: its name.
        metrics: means by name (``METRICS`` on one data set, ``POOLED`` over all), with their 95 % intervals.
        differences: mean paired differences from the baseline by name; empty for the baseline and without common runs.
        margin: of the non-inferiority test of the main score: the loss that would matter; NaN without differences.
        p: of that test, one-sided; NaN without a test.
        holds: whether the main score is non-inferior; None without a test.
        answer_of: what ``answer_change`` is a change of, "classes", "scores" or "both"; see ``answer_kind``.
    """

    arm: str
    metrics: dict[str, Interval] = field(metadata={"key": "figures"})
    differences: dict[str, Interval] = field(default_factory=dict)
    margin: float = field(default=math.nan, metadata={"key": "non_inferiority/margin"})
    p: float = field(default=math.nan, metadata={"key": "non_inferiority/p"})
    holds: bool | None = field(default=None, metadata={"key": "non_inferiority/holds"})
    answer_of: Literal["classes", "scores", "both"] = "classes"

    @property
    def outcome(self) -> str:
        """The outcome of the test of the main score: "non-inferior", "inferior", "open" or "no test".

        An arm is inferior if the upper end of the interval of its difference, too, lies below minus the margin: the same
        test the other way round.
        """
        if self.holds is None:
            return "no test"
        return "non-inferior" if self.holds else "inferior" if self.p > 1 - TAIL else "open"


@dataclass(frozen=True, kw_only=True)
class ArmSummary(Arm):
    """An arm on one data set.

    Attributes:
        seeds: those of its finished runs.
        folds: likewise; only 0 without folds.
        shares: the mean share of each slice.
        bias_removed: the part of the baseline's largest pair bias that the arm does not have; see ``bias_removed``.
    """

    seeds: tuple[int, ...]
    shares: tuple[Interval, ...]
    folds: tuple[int, ...] = (0,)
    bias_removed: Interval = UNKNOWN


@dataclass(frozen=True, kw_only=True)
class PooledArm(Arm):
    """An arm over all data sets; without a value in every data set, a mean is NaN.

    Attributes:
        datasets: the data sets in which it has runs.
        compared: those in which it is compared with the baseline; it is tested only if that is so in all.
        primary: whether this is the primary comparison.
        p_superior: of the test that follows in the primary comparison, one-sided: whether the main score is higher.
        superior: whether it is; None where it is not tested, as non-inferiority does not hold.
        p_differs: of the two-sided test of a difference in it; NaN without a test.
        p_adjusted: the same by Holm's method, over all but the primary comparison, for which it is NaN.
        heterogeneity: I^2 of the differences by name, see ``pool_means``; NaN where undefined.
    """

    datasets: tuple[str, ...]
    compared: tuple[str, ...] = ()
    primary: bool = False
    p_superior: float = field(default=math.nan, metadata={"key": "superiority/p"})
    superior: bool | None = field(default=None, metadata={"key": "superiority/holds"})
    p_differs: float = field(default=math.nan, metadata={"key": "difference/p"})
    p_adjusted: float = field(default=math.nan, metadata={"key": "difference/p_adjusted"})
    heterogeneity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The arms on one data set with one architecture.

    Attributes:
        dataset: name of the data set.
        architecture: name of the network.
        arms: the arms.
        unit: what its intervals say the mean is over: folds, or seeds without folds.
        folds: the number of folds for whose overlap its intervals are corrected; 1 without, and in summaries of earlier
            versions, whose intervals are too narrow.
    """

    dataset: str
    architecture: str
    arms: tuple[ArmSummary, ...]
    unit: Unit = "seed"
    folds: int = 1

    @property
    def title(self) -> str:
        """The names of both."""
        return f"{self.dataset}, {self.architecture}"

    @property
    def few_replicates(self) -> bool:
        """Whether an arm has fewer than three folds, or seeds without folds: pooled intervals then hold less often."""
        return any(len(arm.folds if self.unit == "fold" else arm.seeds) < 3 for arm in self.arms)


@dataclass(frozen=True)
class PooledComparison:
    """The arms of one architecture over all data sets.

    Attributes:
        architecture: its name.
        datasets: the data sets with results of any arm.
        arms: the arms.
        missing: the data sets of the study without any result so far.
    """

    architecture: str
    datasets: tuple[str, ...]
    arms: tuple[PooledArm, ...]
    missing: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """How many of the data sets have results, and the name of the architecture."""
        count = len(self.datasets)
        return f"{count} of {count + len(self.missing)} data sets, {self.architecture}"


@dataclass(frozen=True)
class StudyPlan:
    """What a study compares.

    Attributes:
        baseline: the arm that the others are compared with.
        margin: of the non-inferiority tests of the main score, but for that of the primary comparison.
        score: the name of the main score.
        primary: the comparison that the study is made for: an arm, with which architecture, and its own margin.
        datasets: the names of all data sets of the study, finished or not; those of the rows always count.
        architectures: those of all its networks, likewise; p values are adjusted for every arm with each of them.
        arms: those of all its arms, likewise.
    """

    baseline: str
    margin: float
    score: str = "dice"
    primary: tuple[str, str, float] | None = None
    datasets: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Sample:
    """Runs of an arm on one data set, each beside that of the baseline with the same fold and seed if they are compared."""

    runs: Runs
    folds: int = 1
    baseline: Runs = ()

    @property
    def unit(self) -> Unit:
        """What a replicate is among its runs."""
        return "fold" if self.folds > 1 else "seed"

    def beside(self, others: Runs) -> _Sample:
        """Return the runs that the baseline has with the same fold and seed, compared with those."""
        known = {(fold_of(run), run["seed"]): run for run in others}
        pairs = [(run, known[place]) for run in self.runs if (place := (fold_of(run), run["seed"])) in known]
        return _Sample([run for run, _ in pairs], self.folds, [other for _, other in pairs])

    def values(self, name: str) -> NDArray[np.float64]:
        """Return a metric of the runs, less that of those of the baseline."""
        return column(self.runs, name) - (column(self.baseline, name) if self.baseline else 0.0)


def _compare_arms(cells: Cells, plan: StudyPlan) -> tuple[Comparison, ...]:
    """Return a comparison for each data set and architecture."""
    found = []
    for (dataset, architecture), here in cells.items():
        arms = tuple(_summarize_arm(arm, here, plan) for arm in dict.fromkeys(row["arm"] for row in here))
        sample = _Sample(here, fold_count(here))
        found.append(Comparison(dataset, architecture, arms, sample.unit, sample.folds))
    return tuple(found)


def _summarize_arm(arm: str, rows: Runs, plan: StudyPlan) -> ArmSummary:
    found, samples, pairs = _figures(arm, {"": rows}, METRICS, plan.margin, plan)
    sample, pair = samples[""], pairs.get("", _Sample(()))
    known = [run for run in sample.runs if run["shares"]]
    columns = zip(*(run["shares"] for run in known), strict=True)
    shares = (replicate_means(known, values, sample.unit) for values in columns)
    biases = np.array([column(part, "largest_bias") for part in (pair.runs, pair.baseline)])
    biases[:, np.isnan(biases).any(axis=0)] = np.nan
    own, baseline = (replicate_means(pair.runs, values, pair.unit) for values in biases)
    return ArmSummary(
        seeds=tuple(dict.fromkeys(run["seed"] for run in sample.runs)),
        folds=tuple(dict.fromkeys(map(fold_of, sample.runs))),
        shares=tuple(Interval.of_mean(values, (0, 1), sample.folds) for values in shares),
        bias_removed=bias_removed(own, baseline, pair.folds),
        **found,
    )


def _figures(
    arm: str, sets: Mapping[str, Runs], names: Sequence[str], margin: float, plan: StudyPlan
) -> tuple[dict[str, Any], dict[str, _Sample], dict[str, _Sample]]:
    """Return the fields of an ``Arm`` over data sets, its runs on each, and those that are compared with the baseline."""
    own, pairs = dict[str, _Sample](), dict[str, _Sample]()
    for name, rows in sets.items():
        sample = _Sample([row for row in rows if row["arm"] == arm], fold_count(rows))
        pair = sample.beside([row for row in rows if row["arm"] == plan.baseline != arm])
        own |= {name: sample} if sample.runs else {}
        pairs |= {name: pair} if pair.runs else {}
    found: dict[str, Any] = {"arm": arm, "metrics": _means(names, own.values(), len(sets))}
    found["answer_of"] = answer_kind(run for sample in own.values() for run in sample.runs)
    if pairs:
        p = _pool(pairs.values(), plan.score, len(pairs)).p_above(-margin)
        found |= {"differences": _means(names, pairs.values(), len(pairs)), "margin": margin, "p": p}
        found["holds"] = None if math.isnan(p) else p < TAIL
    return found, own, pairs


def _means(names: Sequence[str], samples: Collection[_Sample], count: int) -> dict[str, Interval]:
    """Return the intervals of means over a number of data sets by name; of answer changes of both kinds there is none."""
    runs = [run for sample in samples for run in (*sample.runs, *sample.baseline)]
    answer_of, difference = answer_kind(runs), any(sample.baseline for sample in samples)
    bounds = {name: metric_bounds(name, answer_of, difference=difference) for name in names}
    found = {name: _pool(samples, name, count).interval(bounds[name]) for name in names}
    return found | ({"answer_change": UNKNOWN} if answer_of == "both" else {})


def _pool(samples: Collection[_Sample], name: str, count: int) -> PooledMean:
    """Return the mean over data sets of a metric, or of its difference, if as many as counted have a value."""
    groups = [replicate_means(sample.runs, sample.values(name), sample.unit) for sample in samples]
    known = sum(not np.isnan(values).all() for values in groups)
    return pool_means(groups, [sample.folds for sample in samples]) if known == count else pool_means(())


def bias_removed(own: ArrayLike, baseline: ArrayLike, folds: int = 1) -> Interval:
    """Return the part of the baseline's largest pair bias that an arm does not have, at most 1, with its 95 % interval.

    That is 1 - (mean of own) / (mean of baseline). The interval is Fieller's (1954, doi:10.1111/j.2517-6161.1954.tb00159.x)
    for paired values: all ratios r for which the mean of own - r * baseline does not differ from 0 by Student's t.

    Args:
        own: (n,) largest absolute pair biases of the arm by replicate; those where either is NaN are left out.
        baseline: (n,) those of the baseline.
        folds: number of folds, for whose overlap it is corrected; see ``variance_of_mean``.

    Returns:
        NaN with fewer than two replicates, or unless the interval of the baseline's mean lies above the audit's tolerance of
        0.05: where the baseline shows no bias, none can be removed.

    Example:
        >>> bias_removed([0.003, 0.005, 0.004], [0.20, 0.21, 0.22])
        Interval(estimate=0.980..., low=0.970..., high=0.992...)
        >>> bias_removed([0.003, 0.005, 0.004], [0.03, 0.01, 0.08])
        Interval(estimate=nan, low=nan, high=nan)
    """
    pairs = np.array([own, baseline], dtype=np.float64)
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    count = pairs.shape[1]
    if not Interval.of_mean(pairs[1], folds=folds).low > Tolerances.tolerance:
        return UNKNOWN
    (mean, expected), spread = pairs.mean(axis=1), np.cov(pairs) * variance_of_mean(count, folds)
    squared = float(stdtrit(count - 1, TAIL)) ** 2
    # The ends of Fieller's interval solve a r^2 - 2 b r + c = 0; a > 0, as the interval of the baseline excludes 0.
    a = expected**2 - squared * spread[1, 1]
    b = mean * expected - squared * spread[0, 1]
    c = mean**2 - squared * spread[0, 0]
    root = math.sqrt(max(0.0, b**2 - a * c))
    interval = Interval(float(1 - mean / expected), float(1 - (b + root) / a), float(1 - (b - root) / a))
    return interval.clipped((-math.inf, 1.0))


def _pool_arms(cells: Cells, plan: StudyPlan) -> tuple[PooledComparison, ...]:
    """Return a comparison over the data sets for each architecture.

    The p values of all differences from the baseline are adjusted together, as many as are planned beside the primary one.
    """
    found = []
    for architecture in dict.fromkeys(name for _, name in cells):
        sets = {dataset: runs for (dataset, name), runs in cells.items() if name == architecture}
        missing = tuple(name for name in plan.datasets if name not in sets)
        names = dict.fromkeys(row["arm"] for runs in sets.values() for row in runs)
        arms = [_pool_arm(arm, architecture, sets, plan) for arm in names]
        found.append((architecture, tuple(sets), arms, missing))
    others = {*plan.arms, *(arm["arm"] for _, _, arms, _ in found for arm in arms)} - {plan.baseline}
    planned = {*product(others, {*plan.architectures, *(architecture for architecture, *_ in found)})}
    planned -= {plan.primary[:2]} if plan.primary else set()
    tested = [arm for _, _, arms, _ in found for arm in arms if "differences" in arm and not arm["primary"]]
    p_values = holm([arm["p_differs"] for arm in tested], len(planned))
    for arm, p_adjusted in zip(tested, p_values, strict=True):
        arm["p_adjusted"] = p_adjusted
    return tuple(
        PooledComparison(architecture, datasets, tuple(PooledArm(**arm) for arm in arms), missing)
        for architecture, datasets, arms, missing in found
    )


def _pool_arm(arm: str, architecture: str, sets: Mapping[str, Runs], plan: StudyPlan) -> dict[str, Any]:
    """Return the fields of a ``PooledArm``: the tests are those that all its data sets allow.

    Args:
        arm: its name.
        architecture: that of the network.
        sets: the runs of all arms on each data set.
        plan: what is compared.
    """
    primary = plan.primary is not None and plan.primary[:2] == (arm, architecture)
    margin = plan.primary[2] if plan.primary and primary else plan.margin
    found, own, pairs = _figures(arm, sets, POOLED, margin, plan)
    lacking = not {*plan.datasets, *sets} <= pairs.keys()
    for name, pair in pairs.items():
        folds = {fold_of(run) for run in sets[name] if run["arm"] in (arm, plan.baseline)}
        scored = zip(pair.runs, np.isfinite(pair.values(plan.score)), strict=True)
        lacking |= {fold_of(run) for run, known in scored if known} != folds
    main = _pool(() if lacking else pairs.values(), plan.score, len(sets))
    if lacking:
        # A mean over some of the data sets, or of their folds, says nothing of the others.
        found |= {"p": math.nan, "holds": None}
    if primary and found.get("holds"):
        found |= {"p_superior": main.p_above(), "superior": main.p_above() < TAIL}
    names = {"datasets": tuple(own), "compared": tuple(pairs), "primary": primary and bool(pairs)}
    spread = {name: _pool(pairs.values(), name, len(sets)).heterogeneity for name in POOLED} if pairs else {}
    return found | names | {"p_differs": main.p_differs(), "heterogeneity": spread}


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """What a study found: the content of ``summary.json``.

    Attributes:
        planned: number of runs.
        finished: number of those that are done.
        failed: those that failed, each with its ``dataset``, ``architecture``, ``arm``, ``fold``, ``seed`` and ``error``.
        baseline: the arm that the others are compared with.
        score: name of the main score, by which the arms are compared; summaries without are about Dice.
        definitions: those of the figures of its audits; 1 in summaries of version 0.2.
        comparisons: the arms on each data set with each architecture.
        pooled: the arms of each architecture over all data sets.
    """

    format: int = documents.FORMAT
    planned: int
    finished: int
    failed: tuple[dict[str, Any], ...]
    baseline: str
    score: str = "dice"
    definitions: int = 1
    comparisons: tuple[Comparison, ...]
    pooled: tuple[PooledComparison, ...] = ()

    @classmethod
    def of_runs(
        cls, rows: Sequence[RunRecord], failed: Sequence[RunRecord], planned: int, plan: StudyPlan
    ) -> Self:
        """Summarize the runs of a study so far.

        Args:
            rows: for each finished run ``dataset``, ``architecture``, ``arm``, ``seed``, ``verdict``, ``shares`` and its
                ``METRICS``, its ``fold`` and the number of ``folds`` of its data set if it has any, what ``comparable`` needs,
                and ``stress_intact``, ``stress_before``, ``stress_after`` and ``stress_both`` if they were measured; a metric
                that is missing or None is undefined.
            failed: those that failed.
            planned: number of all runs.
            plan: what is compared.

        Example: two data sets, in which the arms differ by about .01 and .03.
            >>> labels = {"architecture": "a", "verdict": "biased", "shares": None}
            >>> rows = [
            ...     {"dataset": data, "arm": arm, "seed": seed, "dice": dice * (1 + seed / 10), **labels}
            ...     for data, lost in [("d", 0.01), ("e", 0.03)]
            ...     for arm, dice in [("pretrained", 0.8), ("uniform", 0.8 - lost)]
            ...     for seed in range(3)
            ... ]
            >>> found = StudySummary.of_runs(rows, [], 12, StudyPlan("pretrained", 0.01))
            >>> uniform = found.comparisons[0].arms[1]
            >>> round(uniform.differences["dice"].estimate, 6), uniform.holds
            (-0.011, False)
            >>> uniform = found.pooled[0].arms[1]
            >>> round(uniform.differences["dice"].estimate, 6), uniform.holds
            (-0.022, False)
        """
        cells: dict[tuple[str, str], list[RunRecord]] = {}
        for row in comparable(rows):
            cells.setdefault((row["dataset"], row["architecture"]), []).append(row)
        return cls(
            planned=planned,
            finished=len(rows),
            failed=tuple(map(dict, failed)),
            baseline=plan.baseline,
            score=plan.score,
            definitions=max(
                (row.get("definitions", 1) for row in rows if row["verdict"]), default=documents.DEFINITIONS
            ),
            comparisons=_compare_arms(cells, plan),
            pooled=_pool_arms(cells, plan),
        )

    @staticmethod
    def read(document: RunRecord) -> StudySummary:
        """Read what ``to_dict`` returned, by this version or an earlier one."""
        found: StudySummary = documents.from_plain(StudySummary, documents.checked(document))
        return found

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all arms, in the order of the comparisons."""
        return tuple(dict.fromkeys(arm.arm for item in self.comparisons for arm in item.arms))

    @property
    def errors(self) -> list[tuple[str, str]]:
        """The name of each failed run, with its fold if its data set has any, and its error."""
        folded = {item.dataset for item in self.comparisons if item.unit == "fold"}
        folded |= {run["dataset"] for run in self.failed if fold_of(run)}
        return [(run_name(run, folded=run["dataset"] in folded), run["error"]) for run in self.failed]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, with the keys of ``summary.json``."""
        return {entry.name: documents.to_plain(getattr(self, entry.name)) for entry in fields(StudySummary)}
