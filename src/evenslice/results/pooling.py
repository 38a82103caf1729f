"""The arms of a study over all its data sets: pooled means and differences, the primary comparison, adjusted p values.

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
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.results.arms import METRICS, answer_kind, column, comparable, metric_bounds
from evenslice.results.intervals import UNKNOWN
from evenslice.results.pooled_means import PooledMean, holm, pool_means
from evenslice.results.replicates import fold_of, pair_runs, replicate_means, replicate_unit
from evenslice.results.scores import MAIN_SCORES
from evenslice.results.student import LEVEL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from evenslice.results.intervals import Interval
    from evenslice.results.replicates import RunRecord, Unit

__all__ = [
    "ENOUGH_REPLICATES",
    "LOSSES",
    "POOLED",
    "PooledArm",
    "PooledComparison",
    "Primary",
    "pool_runs",
    "pooled_bounds",
    "uncompared_folds",
]

LOSSES = ("loss_before", "loss_after", "loss_both")
"""Dice lost on a sample of the test slices with the slice at -1, at +1, or both missing."""

POOLED = (*(name for name in METRICS if name != "hd95"), *LOSSES)
"""Names of what is pooled: not distances, whose unit may differ from data set to data set."""

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


@dataclass(frozen=True)
class PooledArm:
    """An arm over all data sets.

    Attributes:
        arm: its name.
        datasets: the data sets in which it has runs.
        metrics: means by name (``POOLED``), with their 95 % intervals; NaN without a value in every data set.
        compared: the data sets in which it is compared with the baseline.
        differences: mean paired differences over these from the baseline by name; empty for the baseline and without
            common runs.
        margin: of the non-inferiority test of the main score; NaN without differences.
        p: of that test, one-sided; NaN without a test, as for an arm that is not compared in every data set.
        holds: whether the main score is not inferior; None without a test.
        primary: whether this is the primary comparison.
        p_superior: of the test that follows in the primary comparison, one-sided: whether it is higher.
        superior: whether it is; None where it is not tested, as non-inferiority does not hold.
        p_differs: of the two-sided test of a difference in it; NaN without a test.
        p_adjusted: the same by Holm's method, over all but the primary comparison, for which it is NaN.
        score: the name of the main score.
        answer_of: what ``answer_change`` is a change of, "classes" or "scores"; see ``answer_kind``.
    """

    arm: str
    datasets: tuple[str, ...]
    metrics: dict[str, Interval]
    compared: tuple[str, ...] = ()
    differences: dict[str, Interval] = field(default_factory=dict)
    margin: float = math.nan
    p: float = math.nan
    holds: bool | None = None
    primary: bool = False
    p_superior: float = math.nan
    superior: bool | None = None
    p_differs: float = math.nan
    p_adjusted: float = math.nan
    score: str = MAIN_SCORES["segmentation"]
    answer_of: str = "classes"

    def to_dict(self) -> dict[str, Any]:
        """Return the arm as plain values, with the keys of ``summary.json``."""
        values = asdict(self)
        document = {"arm": self.arm, "datasets": self.datasets, "figures": values["metrics"]}
        if self.answer_of != "classes":
            document["answer_of"] = self.answer_of
        if not self.differences:
            return document
        document |= {
            "compared": self.compared,
            "differences": values["differences"],
            "non_inferiority": {"margin": self.margin, "p": self.p, "holds": self.holds},
            "primary": self.primary,
            "difference": {"p": self.p_differs},
        }
        if self.primary:
            return {**document, "superiority": {"p": self.p_superior, "holds": self.superior}}
        document["difference"]["p_adjusted"] = self.p_adjusted
        return document


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
        return {
            "architecture": self.architecture,
            "datasets": self.datasets,
            "missing": self.missing,
            "arms": [arm.to_dict() for arm in self.arms],
        }


def pooled_bounds(
    name: str, answer_of: str = "classes", slices: int = 0, *, difference: bool = False
) -> tuple[float, float]:
    """Return the range of something pooled, or of a difference of two; for the others see ``metric_bounds``.

    Example:
        >>> pooled_bounds("dice"), pooled_bounds("loss_both", difference=True)
        ((0.0, 1.0), (-2.0, 2.0))
    """
    low, high = (-1.0, 1.0) if name in LOSSES else metric_bounds(name, answer_of, slices)
    return (low - high, high - low) if difference else (low, high)


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
    arms: Mapping[str, Mapping[str, Sequence[RunRecord]]],
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
    others = arms.get(baseline, {})
    pooled = []
    for arm, sets in arms.items():
        kind = answer_kind(run for own in sets.values() for run in own)
        summary = PooledArm(arm, tuple(sets), _means(sets, units), score=score, answer_of=kind)
        if arm != baseline:
            chosen = primary is not None and (arm, architecture) == (primary.arm, primary.architecture)
            own_margin = primary.margin if primary is not None and chosen else margin
            summary = _compare(summary, sets, others, units, own_margin, chosen)
            lacking = any(uncompared_folds(sets.get(data, ()), runs, score) for data, runs in others.items())
            if lacking or len(summary.compared) < len(units) + len(missing):
                summary = _untested(summary)
        pooled.append(summary)
    return PooledComparison(architecture, tuple(units), tuple(pooled), missing)


def uncompared_folds(runs: Sequence[RunRecord], baseline: Sequence[RunRecord], score: str) -> list[int]:
    """Return the folds that an arm or the baseline has on a data set, but in which the two cannot be compared.

    Example: without folds, all runs are of fold 0.
        >>> uncompared_folds([{"seed": 1, "dice": 0.7}], [{"seed": 0, "dice": 0.8}], "dice")
        [0]
    """
    pairs = pair_runs(runs, baseline)
    own, other = (_values(part, score) for part in (zip(*pairs, strict=True) if pairs else ((), ())))
    compared = {
        fold_of(run) for (run, _), known in zip(pairs, np.isfinite(own - other), strict=True) if known
    }
    return sorted({fold_of(run) for run in (*runs, *baseline)} - compared)


def _untested(arm: PooledArm) -> PooledArm:
    """Return an arm without tests: a mean over some of the data sets, or of their folds, says nothing of the others."""
    return replace(arm, p=math.nan, holds=None, p_superior=math.nan, superior=None, p_differs=math.nan)


def _means(sets: Mapping[str, Sequence[RunRecord]], units: Mapping[str, Unit]) -> dict[str, Interval]:
    limits = _limits(run for own in sets.values() for run in own)

    def pool(name: str) -> Interval:
        means = [replicate_means(runs, _values(runs, name), units[data]) for data, runs in sets.items()]
        return _pool_all(means, len(units)).interval(pooled_bounds(name, *limits))

    return {name: pool(name) if _is_one(name, limits) else UNKNOWN for name in POOLED}


def _limits(runs: Iterable[RunRecord]) -> tuple[str, int]:
    """Return what the ranges of the metrics of runs depend on: the kind of their answer change, and their slices."""
    known = [*runs]
    return answer_kind(known), max((len(run["shares"] or ()) for run in known), default=0)


def _is_one(name: str, limits: tuple[str, int]) -> bool:
    """Return whether a metric is the same quantity in all runs."""
    return name != "answer_change" or limits[0] != "both"


def _pool_all(groups: Iterable[NDArray[np.float64]], needed: int) -> PooledMean:
    """Return the mean over data sets, if all that are needed have a value."""
    known = [values for values in groups if not np.isnan(values).all()]
    return pool_means(known if len(known) == needed else ())


def _compare(  # an arm, what it is compared with, and how
    summary: PooledArm,
    sets: Mapping[str, Sequence[RunRecord]],
    baseline: Mapping[str, Sequence[RunRecord]],
    units: Mapping[str, Unit],
    margin: float,
    primary: bool,
) -> PooledArm:
    """Add the differences of an arm from the baseline, and the tests of the main score."""
    paired = {data: pair_runs(runs, baseline.get(data, ())) for data, runs in sets.items()}
    paired = {
        data: pairs
        for data, pairs in paired.items()
        if pairs and not np.isnan(_differences(pairs, summary.score, units[data])).all()
    }
    if not paired:
        return summary

    def pool(name: str) -> PooledMean:
        return _pool_all(
            [_differences(pairs, name, units[data]) for data, pairs in paired.items()], len(paired)
        )

    limits = _limits(run for pairs in paired.values() for pair in pairs for run in pair)
    main = pool(summary.score)
    p, p_superior = main.p_above(-margin), main.p_above() if primary else math.nan
    level = (1 - LEVEL) / 2
    holds = None if math.isnan(p) else p < level
    return replace(
        summary,
        compared=tuple(paired),
        differences={
            name: pool(name).interval(pooled_bounds(name, *limits, difference=True))
            if _is_one(name, limits)
            else UNKNOWN
            for name in POOLED
        },
        margin=margin,
        p=p,
        holds=holds,
        primary=primary,
        p_superior=p_superior if holds else math.nan,
        superior=p_superior < level if primary and holds else None,
        p_differs=main.p_differs(),
    )


def _differences(pairs: Sequence[tuple[RunRecord, RunRecord]], name: str, unit: Unit) -> NDArray[np.float64]:
    own, other = zip(*pairs, strict=True)
    return replicate_means(own, _values(own, name) - _values(other, name), unit)


def _values(runs: Sequence[RunRecord], name: str) -> NDArray[np.float64]:
    """Return what is pooled of each run, NaN where undefined."""
    if name not in LOSSES:
        return column(runs, name)
    return column(runs, "stress_intact") - column(runs, name.replace("loss", "stress"))


def _adjusted(found: Sequence[PooledComparison], planned: int) -> list[PooledComparison]:
    """Adjust the p values of all differences from the baseline together, as many as are planned beside the primary one."""
    others = [arm for item in found for arm in item.arms if arm.differences and not arm.primary]
    adjusted = dict(zip(map(id, others), holm([arm.p_differs for arm in others], planned), strict=True))

    def with_adjusted(arm: PooledArm) -> PooledArm:
        return replace(arm, p_adjusted=adjusted.get(id(arm), math.nan))

    return [replace(item, arms=tuple(map(with_adjusted, item.arms))) for item in found]
