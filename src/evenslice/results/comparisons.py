"""The arms of a study, for each data set and over all of them: means, differences from a baseline, tests, adjusted p values.

For each data set and architecture, every arm was run with several seeds, and perhaps on several folds of the data. A
metric of an arm is the mean over its replicates, folds or else seeds, with Student's t interval. Two arms
are compared run by run: runs with the same fold and seed see the same crops and start from the same random weights, unless
the whole network is random. An arm is not inferior to the baseline when the 95 % interval of the difference in the main
score, such as Dice, lies above minus the margin. What an arm removes of the baseline's bias is a ratio of means and has
Fieller's interval. Every interval is clipped to the range of its quantity. Figures of audits by the definitions of version
0.2 stand beside no others; see ``comparable``.

Runs of one fold share their training and test data, so seeds within a fold say how much the training scatters, not how
much the data do. With folds, a replicate is therefore the mean over the seeds of a fold; without, it is a seed. In a
balanced design with an independent random effect of each fold, Student's t over these means is exact. Folds of one data
set are not quite independent, as their training data overlap: intervals over them may be too narrow (Bengio and
Grandvalet 2004; Nadeau and Bengio 2003, doi:10.1023/A:1024068626366).

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
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from scipy.special import stdtrit

from evenslice.results.documents import to_plain
from evenslice.results.intervals import (
    TAIL,
    UNKNOWN,
    Interval,
    PooledMean,
    clipped,
    holm,
    pool_means,
    student_interval,
)
from evenslice.results.tolerances import Tolerances

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import TypeVar

    from numpy.typing import ArrayLike, NDArray

    AnyArm = TypeVar("AnyArm", bound="Arm")
    RunRecord = Mapping[str, Any]
    Runs = Sequence[RunRecord]
    Pairs = Sequence[
        tuple[RunRecord, RunRecord | None]
    ]  # a run, and that of the baseline if the two are compared


Unit: TypeAlias = Literal["fold", "seed"]
"""What counts as independent among the runs of an arm."""

TASK_SCORES: Final = {
    "segmentation": (
        "dice",
        "iou",
        "hd95",
        "surface_dice",
        "adapted_rand_error",
        "variation_of_information",
    ),
    "classification": ("balanced_accuracy", "accuracy", "macro_f1"),
}
"""Names of the scores of each task, the main one first."""

MAIN_SCORES: Final = {task: names[0] for task, names in TASK_SCORES.items()}
"""The score of each task by which networks are compared: in validation, and by a study."""

_TITLES: Final = {"dice": "Dice", "balanced_accuracy": "balanced accuracy"}

METRICS = (
    *TASK_SCORES["segmentation"],
    *TASK_SCORES["classification"],
    "directional_bias",
    "absolute_bias",
    "largest_bias",
    "reliance",
    "asymmetry",
    "imbalance",
    "mirror_error",
    "mirror_disagreement",
    "answer_change",
    "mirror_mismatch",
)
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


def score_title(name: str, *, first: bool = False) -> str:
    """Return a main score as text calls it.

    Args:
        name: one of ``MAIN_SCORES``.
        first: whether it is the first word.

    Example:
        >>> score_title("dice"), score_title("balanced_accuracy"), score_title("balanced_accuracy", first=True)
        ('Dice', 'balanced accuracy', 'Balanced accuracy')
    """
    title = _TITLES[name]
    return title[0].upper() + title[1:] if first else title


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


def replicate_unit(runs: Iterable[RunRecord]) -> Unit:
    """Return what counts as independent among runs on one data set: folds, if there are several, else seeds.

    Args:
        runs: each with its ``fold``, and with the number of ``folds`` of its data set where that is known: the runs of
            the other folds may have failed.

    Example:
        >>> replicate_unit([{"fold": 0, "seed": 0}, {"fold": 1, "seed": 0}])
        'fold'
        >>> replicate_unit([{"seed": 0}, {"seed": 1}])
        'seed'
        >>> replicate_unit([{"fold": 0, "folds": 2, "seed": 0}, {"fold": 0, "folds": 2, "seed": 1}])
        'fold'
    """
    known = [*runs]
    planned = max((run.get("folds", 1) for run in known), default=1)
    return "fold" if planned > 1 or len(set(map(fold_of, known))) > 1 else "seed"


def replicate_means(runs: Runs, values: ArrayLike, unit: Unit) -> NDArray[np.float64]:
    """Return the mean of values over the runs of each replicate.

    Args:
        runs: n runs, each with its ``fold`` and ``seed``.
        values: (n,) one value for each; NaN is left out.
        unit: what counts as independent, from ``replicate_unit``.

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


def pair_runs(runs: Runs, baseline: Runs) -> Pairs:
    """Return the runs that the baseline has with the same fold and seed, each beside that of the baseline.

    Example:
        >>> pair_runs([{"seed": 0}, {"seed": 1}], [{"seed": 1, "dice": 0.8}])
        [({'seed': 1}, {'seed': 1, 'dice': 0.8})]
    """
    others = {(fold_of(run), run["seed"]): run for run in baseline}
    return [(run, others[place]) for run in runs if (place := (fold_of(run), run["seed"])) in others]


def comparable(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Return runs without the figures of their audits that cannot stand beside those of others.

    What version 0.2 measured (``definitions`` of 1) is not what is measured now. Beside later runs, those of 0.2 keep
    their scores and what disturbed slices cost them, and the answer change where there are two ``classes``.

    Example:
        >>> old, new = {"dice": 0.8, "asymmetry": 0.1}, {"dice": 0.7, "asymmetry": 0.2, "definitions": 2}
        >>> [run["asymmetry"] for run in comparable([old, new])], [run["asymmetry"] for run in comparable([old])]
        ([None, 0.2], [0.1])
    """
    known = [*runs]
    latest = max((run.get("definitions", 1) for run in known), default=1)
    return [
        run if run.get("definitions", 1) == latest else {**run, **dict.fromkeys(incomparable(run))}
        for run in known
    ]


def incomparable(run: RunRecord) -> list[str]:
    """Return the names of what an audit by the definitions of version 0.2 measured in another way."""
    kept = {*TASK_SCORES["segmentation"], *TASK_SCORES["classification"]}
    if run.get("classes") == 2 and run.get("answer_of") != "scores":
        kept.add("answer_change")
    return [name for name in (*METRICS, "shares") if name not in kept]


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


def metric_bounds(
    name: str, answer_of: str = "classes", slices: int = 0, *, difference: bool = False
) -> tuple[float, float]:
    """Return the range of a metric, or of the difference of two values of it.

    Args:
        name: of the metric, or one of ``LOSSES``.
        answer_of: what the answer change is a change of, see ``answer_kind``.
        slices: of a window, N: the imbalance is at most 1 - 1 / N; 0 if unknown.
        difference: whether it is that of a difference.

    Example:
        >>> metric_bounds("answer_change"), metric_bounds("answer_change", "scores"), metric_bounds("imbalance", slices=5)
        ((0.0, 1.0), (0.0, inf), (0.0, 0.8))
        >>> metric_bounds("dice", difference=True), metric_bounds("loss_both", difference=True)
        ((-1.0, 1.0), (-2.0, 2.0))
    """
    low, high = BOUNDS.get(name, (0.0, 1.0))
    if name == "answer_change" and answer_of == "scores":
        high = math.inf
    if name == "imbalance" and slices:
        high = 1 - 1 / slices
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


ENOUGH_REPLICATES = 3
"""Replicates that each data set needs for pooled intervals that hold as often as they say."""


@dataclass(frozen=True)
class Primary:
    """The comparison with the baseline that a study is made for.

    Attributes:
        arm: the arm that is compared.
        architecture: with which network.
        margin: the loss of the main score, as a mean over the data sets, that would matter with this arm.
    """

    arm: str
    architecture: str
    margin: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm on one data set or over all of them.

    Attributes:
        arm: its name.
        metrics: means by name (``METRICS`` on one data set, ``POOLED`` over all), with their 95 % intervals.
        differences: mean paired differences from the baseline by name; empty for the baseline and without common runs.
        margin: of the non-inferiority test of the main score: the loss that would matter; NaN without differences.
        p: of that test, one-sided; NaN without a test.
        holds: whether the main score is not inferior; None without a test.
        score: the name of the main score, which is tested.
        answer_of: what ``answer_change`` is a change of, "classes", "scores" or "both"; see ``answer_kind``.
    """

    arm: str
    metrics: dict[str, Interval] = field(metadata={"key": "figures"})
    differences: dict[str, Interval] = field(default_factory=dict)
    margin: float = field(default=math.nan, metadata={"key": "non_inferiority/margin"})
    p: float = field(default=math.nan, metadata={"key": "non_inferiority/p"})
    holds: bool | None = field(default=None, metadata={"key": "non_inferiority/holds"})
    score: str = field(default=MAIN_SCORES["segmentation"], metadata={"key": None})
    answer_of: Literal["classes", "scores", "both"] = "classes"

    @property
    def outcome(self) -> str:
        """The outcome of the test of the main score: "not inferior", "inferior", "not settled" or "no test".

        An arm is inferior if the upper end of the interval of its difference, too, lies below minus the margin.
        """
        if self.holds is None:
            return "no test"
        if self.holds:
            return "not inferior"
        return "inferior" if self.differences[self.score].high < -self.margin else "not settled"


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
    """

    datasets: tuple[str, ...]
    compared: tuple[str, ...] = ()
    primary: bool = False
    p_superior: float = field(default=math.nan, metadata={"key": "superiority/p"})
    superior: bool | None = field(default=None, metadata={"key": "superiority/holds"})
    p_differs: float = field(default=math.nan, metadata={"key": "difference/p"})
    p_adjusted: float = field(default=math.nan, metadata={"key": "difference/p_adjusted"})


@dataclass(frozen=True)
class Comparison:
    """The arms on one data set with one architecture.

    Attributes:
        dataset: name of the data set.
        architecture: name of the network.
        arms: the arms.
        unit: what its intervals say the mean is over: folds, or seeds without folds.
    """

    dataset: str
    architecture: str
    arms: tuple[ArmSummary, ...]
    unit: Unit = "seed"

    @property
    def title(self) -> str:
        """The names of both."""
        return f"{self.dataset}, {self.architecture}"

    def replicates(self, arm: ArmSummary) -> int:
        """Return the number of folds, or of seeds without folds, of an arm."""
        return len(arm.folds if self.unit == "fold" else arm.seeds)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, with the keys of ``summary.json``."""
        return dict(to_plain(self))


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
        """The number of data sets, or the name of a single one, and that of the architecture."""
        count = len(self.datasets)
        if self.missing:
            return f"{count} of {count + len(self.missing)} data sets, {self.architecture}"
        if count == 1:
            return f"Tests on {self.datasets[0]}, {self.architecture}"
        return f"{'Both' if count == 2 else f'All {count}'} data sets, {self.architecture}"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, with the keys of ``summary.json``."""
        return dict(to_plain(self))


def summarize_runs(
    rows: Iterable[RunRecord], *, baseline: str, margin: float, score: str = MAIN_SCORES["segmentation"]
) -> list[Comparison]:
    """Summarize the finished runs of a study.

    Args:
        rows: for each run ``dataset``, ``architecture``, ``arm``, ``seed``, ``shares`` and its ``METRICS``, its ``fold`` and
            the number of ``folds`` of its data set if it has any, and what ``comparable`` needs; a metric that is missing
            or None is undefined.
        baseline: the arm that the others are compared with.
        margin: of the non-inferiority test of the main score.
        score: the name of that.

    Returns:
        One comparison for each data set and architecture, in the order of the rows.

    Example:
        >>> rows = [
        ...     {"dataset": "d", "architecture": "a", "arm": arm, "seed": seed, "shares": None, "dice": dice * (1 + seed / 50)}
        ...     for arm, dice in [("pretrained", 0.8), ("uniform", 0.81)] for seed in range(2)
        ... ]
        >>> uniform = summarize_runs(rows, baseline="pretrained", margin=0.01)[0].arms[1]
        >>> round(uniform.differences["dice"].estimate, 6), uniform.holds
        (0.0101, True)
    """
    groups: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for row in comparable(rows):
        arms = groups.setdefault((row["dataset"], row["architecture"]), {})
        arms.setdefault(row["arm"], []).append(row)
    return [_compare(*names, arms, baseline, margin, score) for names, arms in groups.items()]


def _compare(
    dataset: str, architecture: str, arms: Mapping[str, Runs], baseline: str, margin: float, score: str
) -> Comparison:
    unit = replicate_unit(run for runs in arms.values() for run in runs)
    summaries = []
    for arm, runs in arms.items():
        known = [run for run in runs if run["shares"]]
        columns = zip(*(run["shares"] for run in known), strict=True)
        summary = _describe(
            ArmSummary,
            arm,
            {dataset: runs},
            {dataset: unit},
            score,
            seeds=tuple(dict.fromkeys(run["seed"] for run in runs)),
            folds=tuple(dict.fromkeys(map(fold_of, runs))),
            shares=tuple(
                student_interval(replicate_means(known, values, unit), (0, 1)) for values in columns
            ),
        )
        pairs = pair_runs(runs, arms.get(baseline, ())) if arm != baseline else []
        if pairs:
            summary = _with_differences(summary, {dataset: pairs}, {dataset: unit}, margin)
            own, others = zip(*pairs, strict=True)
            biases = np.array([column(part, "largest_bias") for part in (own, others)])
            biases[:, np.isnan(biases).any(axis=0)] = np.nan
            removed = bias_removed(*(replicate_means(own, values, unit) for values in biases))
            summary = replace(summary, bias_removed=removed)
        summaries.append(summary)
    return Comparison(dataset, architecture, tuple(summaries), unit)


def _describe(
    kind: type[AnyArm], arm: str, sets: Mapping[str, Runs], units: Mapping[str, Unit], score: str, **more: Any
) -> AnyArm:
    """Return an arm with its means over data sets; without a value in all that have a unit, a mean is NaN."""
    runs = {data: [(run, None) for run in own] for data, own in sets.items()}
    answer_of = answer_kind(run for own in sets.values() for run in own)
    return kind(arm=arm, metrics=_figures(kind, runs, units), score=score, answer_of=answer_of, **more)


def _with_differences(
    summary: AnyArm, sets: Mapping[str, Pairs], units: Mapping[str, Unit], margin: float
) -> AnyArm:
    """Add the differences of an arm from the baseline in some data sets, and the test of the main score."""
    compared = {data: units[data] for data in sets}
    p = _pool(sets, summary.score, compared).p_above(-margin)
    return replace(
        summary,
        differences=_figures(type(summary), sets, compared),
        margin=margin,
        p=p,
        holds=None if math.isnan(p) else p < TAIL,
    )


def _figures(kind: type[Arm], sets: Mapping[str, Pairs], units: Mapping[str, Unit]) -> dict[str, Interval]:
    """Return the intervals of means by name; of answer changes of both kinds there is none."""
    runs = [run for pairs in sets.values() for pair in pairs for run in pair if run is not None]
    answer_of, slices = answer_kind(runs), max((len(run["shares"] or ()) for run in runs), default=0)
    difference = any(other is not None for pairs in sets.values() for _, other in pairs)
    return {
        name: UNKNOWN
        if name == "answer_change" and answer_of == "both"
        else _pool(sets, name, units).interval(metric_bounds(name, answer_of, slices, difference=difference))
        for name in (POOLED if kind is PooledArm else METRICS)
    }


def _pool(sets: Mapping[str, Pairs], name: str, units: Mapping[str, Unit]) -> PooledMean:
    """Return the mean over data sets of a metric, or of its difference, if all that have a unit have a value."""
    groups = [_replicates(pairs, name, units[data]) for data, pairs in sets.items()]
    known = [values for values in groups if not np.isnan(values).all()]
    return pool_means(known if len(known) == len(units) else ())


def _replicates(pairs: Pairs, name: str, unit: Unit) -> NDArray[np.float64]:
    return replicate_means([run for run, _ in pairs], _differences(pairs, name), unit)


def _differences(pairs: Pairs, name: str) -> NDArray[np.float64]:
    """Return a metric of runs, less that of those of the baseline if they are compared."""
    others = [other for _, other in pairs if other is not None]
    return column([run for run, _ in pairs], name) - (column(others, name) if others else 0.0)


def bias_removed(own: ArrayLike, baseline: ArrayLike) -> Interval:
    """Return the part of the baseline's largest pair bias that an arm does not have, at most 1, with its 95 % interval.

    That is 1 - (mean of own) / (mean of baseline). The interval is Fieller's (1954, doi:10.1111/j.2517-6161.1954.tb00159.x)
    for paired values: all ratios r for which the mean of own - r * baseline does not differ from 0 by Student's t.

    Args:
        own: (n,) largest absolute pair biases of the arm by replicate; those where either is NaN are left out.
        baseline: (n,) those of the baseline.

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
    if not student_interval(pairs[1]).low > Tolerances.tolerance:
        return UNKNOWN
    (mean, expected), spread = pairs.mean(axis=1), np.cov(pairs) / count
    squared = float(stdtrit(count - 1, TAIL)) ** 2
    # The ends of Fieller's interval solve a r^2 - 2 b r + c = 0; a > 0, as the interval of the baseline excludes 0.
    a = expected**2 - squared * spread[1, 1]
    b = mean * expected - squared * spread[0, 1]
    c = mean**2 - squared * spread[0, 0]
    root = math.sqrt(max(0.0, b**2 - a * c))
    interval = Interval(float(1 - mean / expected), float(1 - (b + root) / a), float(1 - (b - root) / a))
    return clipped(interval, (-math.inf, 1.0))


def pool_runs(
    rows: Iterable[RunRecord],
    *,
    baseline: str,
    margin: float,
    primary: Primary | None = None,
    score: str = MAIN_SCORES["segmentation"],
    datasets: Collection[str] = (),
    architectures: Collection[str] = (),
    arms: Collection[str] = (),
) -> list[PooledComparison]:
    """Pool the finished runs of a study over its data sets.

    Args:
        rows: for each run what ``summarize_runs`` needs, and ``stress_intact``, ``stress_before``, ``stress_after`` and
            ``stress_both`` if they were measured.
        baseline: the arm that the others are compared with.
        margin: of the non-inferiority tests of the main score, but for that of the primary comparison.
        primary: the comparison that the study is made for, with its own margin.
        score: the name of the main score.
        datasets: the names of all data sets of the study, finished or not; those of the rows always count.
        architectures: those of all its networks, likewise; p values are adjusted for every arm with each of them.
        arms: those of all its arms, likewise.

    Returns:
        One comparison for each architecture, in the order of the rows.

    Example: two data sets, in which the arms differ by about .01 and .03.
        >>> rows = [
        ...     {"dataset": data, "architecture": "a", "arm": arm, "seed": seed, "shares": None, "dice": dice * (1 + seed / 10)}
        ...     for data, lost in [("d", 0.01), ("e", 0.03)]
        ...     for arm, dice in [("pretrained", 0.8), ("uniform", 0.8 - lost)]
        ...     for seed in range(3)
        ... ]
        >>> uniform = pool_runs(rows, baseline="pretrained", margin=0.01)[0].arms[1]
        >>> round(uniform.differences["dice"].estimate, 6), uniform.holds
        (-0.022, False)
    """
    groups: dict[str, dict[str, dict[str, list[RunRecord]]]] = {}
    for row in comparable(rows):
        own = groups.setdefault(row["architecture"], {})
        own.setdefault(row["arm"], {}).setdefault(row["dataset"], []).append(row)
    found = [
        _pool_arms(architecture, own, datasets, baseline, margin, primary, score)
        for architecture, own in groups.items()
    ]
    names = {*arms, *(arm.arm for item in found for arm in item.arms)} - {baseline}
    planned = set(product(names, {*architectures, *groups}))
    if primary is not None:
        planned.discard((primary.arm, primary.architecture))
    return _adjusted(found, len(planned))


def _pool_arms(
    architecture: str,
    arms: Mapping[str, Mapping[str, Runs]],
    datasets: Collection[str],
    baseline: str,
    margin: float,
    primary: Primary | None,
    score: str,
) -> PooledComparison:
    runs: dict[str, list[RunRecord]] = {}
    for sets in arms.values():
        for name, own in sets.items():
            runs.setdefault(name, []).extend(own)
    units = {name: replicate_unit(own) for name, own in runs.items()}
    missing = tuple(name for name in datasets if name not in units)
    chosen = primary if primary is not None and primary.architecture == architecture else None
    pooled = []
    for arm, sets in arms.items():
        summary = _describe(PooledArm, arm, sets, units, score, datasets=tuple(sets))
        if arm != baseline:
            own_primary = chosen if chosen is not None and chosen.arm == arm else None
            others = arms.get(baseline, {})
            summary = _pool_differences(summary, sets, others, units, own_primary or margin, bool(missing))
        pooled.append(summary)
    return PooledComparison(architecture, tuple(units), tuple(pooled), missing)


def _pool_differences(
    summary: PooledArm,
    sets: Mapping[str, Runs],
    baseline: Mapping[str, Runs],
    units: Mapping[str, Unit],
    margin: float | Primary,
    missing: bool,
) -> PooledArm:
    """Add the differences of an arm from the baseline, and the tests of the main score, if nothing is missing for them."""
    score, primary = summary.score, isinstance(margin, Primary)
    pairs = {data: pair_runs(runs, baseline.get(data, ())) for data, runs in sets.items()}
    compared = {
        data: own
        for data, own in pairs.items()
        if own and not np.isnan(_replicates(own, score, units[data])).all()
    }
    if not compared:
        return summary
    own_margin = margin.margin if isinstance(margin, Primary) else margin
    summary = _with_differences(summary, compared, units, own_margin)
    summary = replace(summary, compared=tuple(compared), primary=primary)
    lacking = any(_lacks_fold([*sets[data], *baseline[data]], own, score) for data, own in compared.items())
    if missing or lacking or len(compared) < len(units):
        # A mean over some of the data sets, or of their folds, says nothing of the others.
        return replace(summary, p=math.nan, holds=None)
    main = _pool(compared, score, units)
    tested = primary and bool(summary.holds)
    p_superior = main.p_above() if tested else math.nan
    superior = p_superior < TAIL if tested else None
    return replace(summary, p_superior=p_superior, superior=superior, p_differs=main.p_differs())


def _lacks_fold(runs: Runs, pairs: Pairs, score: str) -> bool:
    """Return whether runs have a fold in which no pair can be compared."""
    known = np.isfinite(_differences(pairs, score))
    compared = {fold_of(run) for (run, _), one in zip(pairs, known, strict=True) if one}
    return bool(set(map(fold_of, runs)) - compared)


def _adjusted(found: Sequence[PooledComparison], planned: int) -> list[PooledComparison]:
    """Adjust the p values of all differences from the baseline together, as many as are planned beside the primary one."""
    tested = [arm for item in found for arm in item.arms if arm.differences and not arm.primary]
    adjusted = dict(zip(map(id, tested), holm([arm.p_differs for arm in tested], planned), strict=True))
    return [
        replace(
            item, arms=tuple(replace(arm, p_adjusted=adjusted.get(id(arm), math.nan)) for arm in item.arms)
        )
        for item in found
    ]
