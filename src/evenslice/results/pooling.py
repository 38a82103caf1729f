"""The arms of a study over all its data sets: pooled means and differences, the primary comparison, adjusted p values.

A pooled mean is the mean over the data sets of their means, so each data set counts the same. The data sets are those
of the study, not a sample of others: what varies are the replicates within each, folds or else seeds.

The primary comparison is named before the runs. Its arm is tested for non-inferiority first, and for superiority only
if that holds; in this fixed order both may be tested at their full level. The p values of all other differences from
the baseline are adjusted together by Holm's method.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evenslice.results.intervals import Interval
from evenslice.results.replicates import pair_runs, replicate_means, replicate_unit
from evenslice.results.scores import MAIN_SCORES
from evenslice.results.seeds import BOUNDS, METRICS, column
from evenslice.results.student import LEVEL, clipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from evenslice.results.replicates import RunRecord, Unit

__all__ = [
    "ENOUGH_REPLICATES",
    "LOSSES",
    "POOLED",
    "PooledArm",
    "PooledComparison",
    "PooledMean",
    "Primary",
    "holm",
    "pool_means",
    "pool_runs",
    "pooled_bounds",
]

LOSSES = ("loss_before", "loss_after", "loss_both")
"""Dice lost on a sample of the test slices with the slice at -1, at +1, or both missing."""

POOLED = (*METRICS, *LOSSES)
"""Names of what is pooled."""

ENOUGH_REPLICATES = 3
"""Replicates that each data set needs for pooled intervals that hold as often as they say."""


class PooledMean(NamedTuple):
    """A mean over data sets, with its standard error and degrees of freedom; NaN where undefined."""

    estimate: float
    error: float
    dof: float

    def interval(self, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
        """Return the mean with its 95 % interval, clipped to the range of the quantity."""
        from scipy.special import stdtrit

        half = -float(stdtrit(self.dof, (1 - LEVEL) / 2)) * self.error if self.error > 0 else self.error
        return clipped(Interval(self.estimate, self.estimate - half, self.estimate + half), bounds)

    def p_above(self, value: float = 0.0) -> float:
        """Return the p of the one-sided test that the true mean is at most a value; NaN without an interval."""
        from scipy.special import stdtr

        if math.isnan(self.error):
            return math.nan
        distance = self.estimate - value
        return float(stdtr(self.dof, -distance / self.error)) if self.error > 0 else float(distance <= 0)

    def p_differs(self) -> float:
        """Return the p of the two-sided test that the true mean is 0; NaN without an interval."""
        if self.error == 0:
            return float(self.estimate == 0)
        below = self.p_above()
        return 2 * min(below, 1 - below)


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
        datasets: the data sets in which it has runs; with differences, those in which it is compared.
        metrics: means by name (``POOLED``), with their 95 % intervals.
        differences: mean paired differences from the baseline by name; empty for the baseline and without common runs.
        margin: of the non-inferiority test of the main score; NaN without differences.
        p: of that test, one-sided; NaN without a test, as for an arm that is not compared in every data set.
        holds: whether the main score is not inferior; None without a test.
        primary: whether this is the primary comparison.
        p_superior: of the test that follows in the primary comparison, one-sided: whether it is higher.
        superior: whether it is; None where it is not tested, as non-inferiority does not hold.
        p_differs: of the two-sided test of a difference in it; NaN without a test.
        p_adjusted: the same by Holm's method, over all but the primary comparison, for which it is NaN.
        score: the name of the main score.
    """

    arm: str
    datasets: tuple[str, ...]
    metrics: dict[str, Interval]
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

    def to_dict(self) -> dict[str, Any]:
        """Return the arm as plain values, with the keys of ``summary.json``."""
        values = asdict(self)
        document = {"arm": self.arm, "datasets": self.datasets, "figures": values["metrics"]}
        if not self.differences:
            return document
        document |= {
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
    """The arms of one architecture over all data sets."""

    architecture: str
    datasets: tuple[str, ...]
    arms: tuple[PooledArm, ...]

    @property
    def title(self) -> str:
        """The number of data sets, if there are several, and the name of the architecture."""
        count = len(self.datasets)
        return f"All {count} data sets, {self.architecture}" if count > 1 else f"Tests, {self.architecture}"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, with the keys of ``summary.json``."""
        return {
            "architecture": self.architecture,
            "datasets": self.datasets,
            "arms": [arm.to_dict() for arm in self.arms],
        }


def pool_means(groups: Iterable[ArrayLike]) -> PooledMean:
    """Return the mean of the means of several groups of independent values, and its precision.

    With m groups, of which group j has n_j values of variance s_j^2, the squared standard error is the sum of
    v_j = s_j^2 / (m^2 n_j), and the degrees of freedom are (sum v_j)^2 / sum(v_j^2 / (n_j - 1)): Welch's unequal
    variances (1947, doi:10.1093/biomet/34.1-2.28) by Satterthwaite's approximation (1946, doi:10.2307/3002019). A
    single group has exactly the interval of Student's t. With at least three values in each group, simulated 95 %
    intervals cover 93 % or more, whatever the variances; a group of two that varies far more than larger groups brings
    that down to 89 % (``ENOUGH_REPLICATES``).

    Args:
        groups: the values of each group; NaN values are left out, and so are groups without any others.

    Returns:
        The mean; its error is NaN if a group has a single value, and all of it without values.

    Example:
        >>> mean = pool_means([[0.80, 0.82, 0.81], [0.70, 0.76]])
        >>> round(mean.estimate, 3), round(mean.error, 4), round(mean.dof, 2)
        (0.77, 0.0153, 1.07)
        >>> pool_means([[0.80, 0.82], [0.70]])
        PooledMean(estimate=0.755, error=nan, dof=nan)
    """
    known = [
        values[~np.isnan(values)] for values in (np.asarray(group, dtype=np.float64) for group in groups)
    ]
    known = [values for values in known if len(values)]
    if not known:
        return PooledMean(math.nan, math.nan, math.nan)
    estimate = float(np.mean([values.mean() for values in known]))
    counts = np.array([len(values) for values in known])
    if counts.min() < 2:
        return PooledMean(estimate, math.nan, math.nan)
    parts = np.array([values.var(ddof=1) for values in known]) / counts / len(known) ** 2
    total = float(parts.sum())
    dof = total**2 / float((parts**2 / (counts - 1)).sum()) if total > 0 else float(counts.sum() - len(known))
    return PooledMean(estimate, math.sqrt(total), dof)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number by the method of Holm (1979, doi:10.2307/4615733).

    Args:
        p_values: any number of them; NaN values stay, and do not count.

    Example:
        >>> holm([0.01, 0.04, 0.03, math.nan])
        [0.03, 0.06, 0.06, nan]
    """
    adjusted = list(p_values)
    order = sorted((n for n, p in enumerate(p_values) if not math.isnan(p)), key=lambda n: p_values[n])
    least = 0.0
    for rank, n in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[n]))
        adjusted[n] = least
    return adjusted


def pooled_bounds(name: str, *, difference: bool = False) -> tuple[float, float]:
    """Return the range of something pooled, or of a difference of two.

    Example:
        >>> pooled_bounds("dice"), pooled_bounds("loss_both", difference=True)
        ((0.0, 1.0), (-2.0, 2.0))
    """
    low, high = (-1.0, 1.0) if name in LOSSES else BOUNDS.get(name, (0.0, 1.0))
    return (low - high, high - low) if difference else (low, high)


def pool_runs(
    rows: Iterable[RunRecord],
    *,
    baseline: str,
    margin: float,
    primary: Primary | None = None,
    score: str = MAIN_SCORES["segmentation"],
) -> list[PooledComparison]:
    """Pool the finished runs of a study over its data sets.

    Args:
        rows: for each run what ``summarize_runs`` needs, and ``stress_intact``, ``stress_before``, ``stress_after`` and
            ``stress_both`` if they were measured.
        baseline: the arm that the others are compared with.
        margin: of the non-inferiority tests of the main score, but for that of the primary comparison.
        primary: the comparison that the study is made for, with its own margin.
        score: the name of the main score.

    Returns:
        One comparison for each architecture, in the order of the rows.

    Example: two data sets, in which the arms differ by .01 and by .03.
        >>> rows = [
        ...     {"dataset": data, "architecture": "a", "arm": arm, "seed": seed, "shares": None, "dice": dice + seed / 100}
        ...     for data, lost in [("d", 0.01), ("e", 0.03)]
        ...     for arm, dice in [("pretrained", 0.8), ("uniform", 0.8 - lost)]
        ...     for seed in range(3)
        ... ]
        >>> uniform = pool_runs(rows, baseline="pretrained", margin=0.01)[0].arms[1]
        >>> round(uniform.differences["dice"].estimate, 6), uniform.holds
        (-0.02, False)
    """
    groups: dict[str, dict[str, dict[str, list[RunRecord]]]] = {}
    for row in rows:
        arms = groups.setdefault(row["architecture"], {})
        arms.setdefault(row["arm"], {}).setdefault(row["dataset"], []).append(row)
    found = [
        PooledComparison(
            architecture,
            tuple(dict.fromkeys(name for sets in arms.values() for name in sets)),
            _pool_arms(
                arms,
                baseline,
                margin,
                primary if primary is not None and architecture == primary.architecture else None,
                score,
            ),
        )
        for architecture, arms in groups.items()
    ]
    return _adjusted(found)


def _pool_arms(
    arms: Mapping[str, Mapping[str, Sequence[RunRecord]]],
    baseline: str,
    margin: float,
    primary: Primary | None,
    score: str,
) -> tuple[PooledArm, ...]:
    runs: dict[str, list[RunRecord]] = {}
    for sets in arms.values():
        for name, own in sets.items():
            runs.setdefault(name, []).extend(own)
    units = {name: replicate_unit(own) for name, own in runs.items()}
    others = arms.get(baseline, {})
    pooled = []
    for arm, sets in arms.items():
        summary = PooledArm(arm, tuple(sets), _means(sets, units), score=score)
        if arm != baseline:
            chosen = primary is not None and arm == primary.arm
            own_margin = primary.margin if primary is not None and chosen else margin
            summary = _compare(summary, sets, others, units, own_margin, chosen)
        pooled.append(summary)
    return tuple(pooled)


def _means(sets: Mapping[str, Sequence[RunRecord]], units: Mapping[str, Unit]) -> dict[str, Interval]:
    return {
        name: pool_means(
            replicate_means(runs, _values(runs, name), units[data]) for data, runs in sets.items()
        ).interval(pooled_bounds(name))
        for name in POOLED
    }


def _compare(  # an arm, what it is compared with, and how
    summary: PooledArm,
    sets: Mapping[str, Sequence[RunRecord]],
    baseline: Mapping[str, Sequence[RunRecord]],
    units: Mapping[str, Unit],
    margin: float,
    primary: bool,
) -> PooledArm:
    """Add the differences of an arm from the baseline, and the tests of the main score if no data set lacks it."""
    paired = {data: pair_runs(runs, baseline.get(data, ())) for data, runs in sets.items()}
    paired = {
        data: pairs
        for data, pairs in paired.items()
        if pairs and not np.isnan(_differences(pairs, summary.score, units[data])).all()
    }
    if not paired:
        return summary
    summary = replace(summary, datasets=tuple(paired))

    def pool(name: str) -> PooledMean:
        return pool_means(_differences(pairs, name, units[data]) for data, pairs in paired.items())

    main = pool(summary.score)
    if len(paired) < len(units):  # the mean over some of the data sets says nothing of the others
        main = main._replace(error=math.nan, dof=math.nan)
    p, p_superior = main.p_above(-margin), main.p_above() if primary else math.nan
    level = (1 - LEVEL) / 2
    holds = None if math.isnan(p) else p < level
    return replace(
        summary,
        differences={name: pool(name).interval(pooled_bounds(name, difference=True)) for name in POOLED},
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


def _adjusted(found: Sequence[PooledComparison]) -> list[PooledComparison]:
    """Adjust the p values of all differences from the baseline together, but for the primary one."""
    others = [arm for item in found for arm in item.arms if arm.differences and not arm.primary]
    adjusted = dict(zip(map(id, others), holm([arm.p_differs for arm in others]), strict=True))

    def with_adjusted(arm: PooledArm) -> PooledArm:
        return replace(arm, p_adjusted=adjusted.get(id(arm), math.nan))

    return [replace(item, arms=tuple(map(with_adjusted, item.arms))) for item in found]
