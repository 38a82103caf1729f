"""Statistics over the runs of a study: means over replicates, differences from a baseline, and what the score lost.

For each data set and architecture, every arm was run with several seeds, and perhaps on several folds of the data. A
metric of an arm is the mean over its replicates, folds or else seeds (see ``replicates``), with Student's t interval.
Two arms are compared run by run: runs with the same fold and seed see the same crops and start from the same random
weights, unless the whole network is random. An arm is not inferior to the baseline when the 95 %
interval of the difference in the main score, such as Dice, lies above minus the margin. What an arm removes of the
baseline's bias is a ratio of means and has Fieller's interval. Every interval is clipped to the range of its quantity.
Intervals are not adjusted for the number of arms; ``pooling`` joins the data sets, and there p values are. Figures of audits
by the definitions of version 0.2 stand beside no others; see ``comparable``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.results.intervals import UNKNOWN
from evenslice.results.replicates import fold_of, pair_runs, replicate_means, replicate_unit
from evenslice.results.scores import MAIN_SCORES, TASK_SCORES
from evenslice.results.student import NonInferiority, bias_removed, non_inferiority, student_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from evenslice.results.intervals import Interval
    from evenslice.results.replicates import RunRecord, Unit

__all__ = [
    "BOUNDS",
    "METRICS",
    "SALIENCY_PERCENTILES",
    "ArmSummary",
    "Comparison",
    "answer_kind",
    "column",
    "comparable",
    "difference_bounds",
    "incomparable",
    "metric_bounds",
    "saliency_percentiles",
    "summarize_runs",
]

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

BOUNDS = {
    **dict.fromkeys(("hd95", "variation_of_information", "mirror_error"), (0.0, math.inf)),
    "directional_bias": (-1.0, 1.0),
}
"""Range of the metrics for which it is not 0 to 1; see ``metric_bounds`` for those whose range depends on the runs."""

SALIENCY_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class ArmSummary:
    """The runs of one arm in a comparison.

    Attributes:
        arm: its name.
        seeds: those of its finished runs.
        metrics: mean over replicates by name (``METRICS``), with its 95 % interval.
        shares: the same for each slice.
        differences: mean paired difference from the baseline by name; empty for the baseline and without common runs.
        margin: of the non-inferiority test of the main score: the loss that would matter; NaN if ``differences`` is
            empty.
        p: of the one-sided paired t test of a mean difference of at most -margin; NaN without a test.
        holds: whether the main score is not inferior; None without a test.
        bias_removed: the part of the baseline's largest pair bias that the arm does not have; see ``bias_removed``.
        folds: those of its finished runs; only 0 without folds.
        score: the name of the main score, which is tested.
        answer_of: what ``answer_change`` is a change of, "classes" or "scores"; see ``answer_kind``.
    """

    arm: str
    seeds: tuple[int, ...]
    metrics: dict[str, Interval]
    shares: tuple[Interval, ...]
    differences: dict[str, Interval] = field(default_factory=dict)
    margin: float = math.nan
    p: float = math.nan
    holds: bool | None = None
    bias_removed: Interval = UNKNOWN
    folds: tuple[int, ...] = (0,)
    score: str = MAIN_SCORES["segmentation"]
    answer_of: str = "classes"

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, with the keys of ``summary.json``."""
        values = asdict(self)
        summary = {
            "arm": self.arm,
            "seeds": self.seeds,
            "folds": self.folds,
            "figures": values["metrics"],
            "shares": values["shares"],
        }
        if self.answer_of != "classes":
            summary["answer_of"] = self.answer_of
        if not self.differences:
            return summary
        test = {name: values[name] for name in NonInferiority._fields}
        return {
            **summary,
            "differences": values["differences"],
            "non_inferiority": test,
            "bias_removed": values["bias_removed"],
        }


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
        return {
            "dataset": self.dataset,
            "architecture": self.architecture,
            "unit": self.unit,
            "arms": [arm.to_dict() for arm in self.arms],
        }


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


def saliency_percentiles(saliency: NDArray[np.floating[Any]]) -> list[list[float]] | None:
    """Return percentiles of the saliency of pixels in each slice of the window.

    Args:
        saliency: (windows, slices, y, x), summing to 1 over each window.

    Returns:
        For each slice the ``SALIENCY_PERCENTILES`` over all its pixels in all windows, in units of the mean over
        pixels and slices, rounded to four digits; None without windows.

    Example: all saliency falls on the second of two slices.
        >>> saliency_percentiles(np.array([[[[0.0, 0.0]], [[0.5, 0.5]]]]))[1][:2]
        [2.0, 2.0]
    """
    if not len(saliency):
        return None
    pixels = saliency.swapaxes(0, 1).reshape(saliency.shape[1], -1) * saliency[0].size
    values = np.percentile(pixels, SALIENCY_PERCENTILES, axis=1).T
    return [[float(f"{value:.4g}") for value in row] for row in values]


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
    dataset: str,
    architecture: str,
    arms: Mapping[str, Sequence[RunRecord]],
    baseline: str,
    margin: float,
    score: str,
) -> Comparison:
    unit = replicate_unit(run for runs in arms.values() for run in runs)
    summaries = tuple(
        _summarize_arm(arm, runs, [] if arm == baseline else arms.get(baseline, []), margin, unit, score)
        for arm, runs in arms.items()
    )
    return Comparison(dataset, architecture, summaries, unit)


def _summarize_arm(
    arm: str,
    runs: Sequence[RunRecord],
    baseline: Sequence[RunRecord],
    margin: float,
    unit: Unit,
    score: str,
) -> ArmSummary:
    slices, kind = max((len(run["shares"] or ()) for run in runs), default=0), answer_kind(runs)
    summary = ArmSummary(
        arm,
        seeds=tuple(dict.fromkeys(run["seed"] for run in runs)),
        metrics={
            name: student_interval(
                replicate_means(runs, column(runs, name), unit), metric_bounds(name, kind, slices)
            )
            for name in METRICS
        },
        shares=_mean_shares([run for run in runs if run["shares"]], unit),
        folds=tuple(dict.fromkeys(map(fold_of, runs))),
        score=score,
        answer_of=kind,
    )
    pairs = pair_runs(runs, baseline)
    if not pairs:
        return summary
    own, other = zip(*pairs, strict=True)
    both = {name: np.split(column([*own, *other], name), 2) for name in METRICS}
    kind = answer_kind([*own, *other])
    differences = {name: replicate_means(own, mine - theirs, unit) for name, (mine, theirs) in both.items()}
    test = non_inferiority(differences[score], margin)
    biases = np.array(both["largest_bias"])
    biases[:, np.isnan(biases).any(axis=0)] = np.nan
    return replace(
        summary,
        differences={
            name: student_interval(values, difference_bounds(name, kind, slices))
            for name, values in differences.items()
        },
        bias_removed=bias_removed(*(replicate_means(own, values, unit) for values in biases)),
        **test._asdict(),
    )


def _mean_shares(runs: Sequence[RunRecord], unit: Unit) -> tuple[Interval, ...]:
    columns = zip(*(run["shares"] for run in runs), strict=True)
    return tuple(student_interval(replicate_means(runs, values, unit), (0, 1)) for values in columns)


def answer_kind(runs: Iterable[RunRecord]) -> str:
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


def metric_bounds(name: str, answer_of: str = "classes", slices: int = 0) -> tuple[float, float]:
    """Return the range of a metric.

    Args:
        name: of the metric.
        answer_of: what the answer change is a change of, see ``answer_kind``.
        slices: of a window, N: the imbalance is at most 1 - 1 / N; 0 if unknown.

    Example:
        >>> metric_bounds("answer_change"), metric_bounds("answer_change", "scores"), metric_bounds("imbalance", slices=5)
        ((0.0, 1.0), (0.0, inf), (0.0, 0.8))
    """
    if name == "answer_change" and answer_of == "scores":
        return 0.0, math.inf
    if name == "imbalance" and slices:
        return 0.0, 1 - 1 / slices
    return BOUNDS.get(name, (0.0, 1.0))


def difference_bounds(name: str, answer_of: str = "classes", slices: int = 0) -> tuple[float, float]:
    """Return the range of the difference of two values of a metric; for its arguments see ``metric_bounds``.

    Example:
        >>> difference_bounds("dice"), difference_bounds("directional_bias")
        ((-1.0, 1.0), (-2.0, 2.0))
    """
    low, high = metric_bounds(name, answer_of, slices)
    return low - high, high - low


def column(runs: Sequence[RunRecord], name: str) -> NDArray[np.float64]:
    """Return one metric of runs, NaN where undefined, and for answer changes of both kinds, which are never mixed.

    Example:
        >>> column([{"dice": 0.8}, {"dice": None}], "dice").tolist()
        [0.8, nan]
    """
    if name == "answer_change" and answer_kind(runs) == "both":
        return np.full(len(runs), np.nan)
    return np.array([run.get(name) for run in runs], dtype=np.float64)
