"""The summary of a study: what ``summary.json`` holds, and how it is read from files of unknown origin."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict, cast

from evenslice.results.arms import METRICS, ArmSummary, Comparison, difference_bounds, metric_bounds
from evenslice.results.intervals import UNKNOWN, Interval
from evenslice.results.pooling import POOLED, PooledArm, PooledComparison, pooled_bounds
from evenslice.results.replicates import replicate_unit, run_name
from evenslice.results.scores import MAIN_SCORES
from evenslice.results.student import clipped
from evenslice.results.study_files import count, number, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from evenslice.results.replicates import Unit

    Entries = Mapping[str, Any]

__all__ = [
    "STUDY_FORMAT",
    "FailedRun",
    "StudySummary",
    "failed_runs",
    "read_comparisons",
    "read_pooled",
    "read_score",
    "read_unit",
]

STUDY_FORMAT: Final = 1
NO_TEST: Final = {"margin": None, "p": None, "holds": None}


class FailedRun(TypedDict):
    """A run that failed, as ``summary.json`` describes it."""

    dataset: str
    architecture: str
    arm: str
    fold: NotRequired[int]  # not in summaries of earlier versions
    seed: int
    error: str


class StudySummary(TypedDict):
    """The content of ``summary.json``; ``planned`` and ``finished`` are numbers of runs."""

    format: int
    planned: int
    finished: int
    failed: list[FailedRun]
    baseline: str
    score: NotRequired[str]  # the main score; not in summaries of earlier versions, which knew Dice alone
    definitions: NotRequired[
        int
    ]  # of the figures of its audits; not in summaries of version 0.2, whose are 1
    comparisons: list[dict[str, Any]]
    pooled: NotRequired[list[dict[str, Any]]]  # not in summaries of earlier versions


def failed_runs(summary: Entries) -> list[tuple[str, str]]:
    """Return the name of each failed run, with its fold if its data set has any, and its error.

    Example:
        >>> failed = {"dataset": "em", "architecture": "net", "arm": "twin", "fold": 0, "seed": 1, "error": "no luck"}
        >>> comparison = {"dataset": "em", "architecture": "net", "unit": "fold", "arms": []}
        >>> failed_runs({"comparisons": [comparison], "failed": [failed, failed | {"dataset": "mri"}]})
        [('em, net, twin, fold 0, seed 1', 'no luck'), ('mri, net, twin, seed 1', 'no luck')]
    """
    folded = {item["dataset"] for item in summary["comparisons"] if read_unit(item) == "fold"}
    folded |= {run["dataset"] for run in summary["failed"] if run.get("fold")}
    return [(run_name(run, folded=run["dataset"] in folded), run["error"]) for run in summary["failed"]]


def read_unit(comparison: Entries) -> Unit:
    """Return what the means of a comparison in a summary are over; earlier versions do not say.

    Example:
        >>> read_unit({"arms": [{"folds": [0, 1]}]}), read_unit({"arms": [{}]})
        ('fold', 'seed')
    """
    folds = ({"fold": fold} for arm in comparison["arms"] for fold in arm.get("folds", (0,)))
    unit = comparison.get("unit", replicate_unit(folds))
    if unit not in ("fold", "seed"):
        raise ValueError(f"unit: {unit!r:.40} is neither fold nor seed")
    return cast("Unit", unit)


def read_comparisons(summary: Entries) -> tuple[Comparison, ...]:
    """Return the comparisons of a summary, and check the rest of it but ``pooled``."""
    if summary["format"] != STUDY_FORMAT:
        raise ValueError(f"format {summary['format']}, this version reads {STUDY_FORMAT}")
    text(summary, "baseline")
    for value in (summary["planned"], summary["finished"], summary.get("definitions", 1)):
        count(value)
    for run in summary["failed"]:
        for name in ("dataset", "architecture", "arm", "error"):
            text(run, name)
        count(run["seed"])
        count(run.get("fold", 0))
    score = read_score(summary)
    return tuple(_comparison(item, score) for item in summary["comparisons"])


def _comparison(item: Entries, score: str) -> Comparison:
    arms = tuple(_arm_summary(arm, score) for arm in item["arms"])
    return Comparison(text(item, "dataset"), text(item, "architecture"), arms, read_unit(item))


def read_score(summary: Entries) -> str:
    """Return the name of the main score of a summary; earlier versions knew Dice alone."""
    score = text(summary, "score") if "score" in summary else MAIN_SCORES["segmentation"]
    if score not in MAIN_SCORES.values():
        raise ValueError(f"score: {score!r:.40} is not a main score")
    return score


def read_pooled(summary: Entries) -> tuple[PooledComparison, ...]:
    """Return the comparisons over all data sets of a summary; none if an earlier version wrote it."""
    score = read_score(summary)
    return tuple(
        PooledComparison(
            text(item, "architecture"),
            _names(item["datasets"]),
            tuple(_pooled_arm(arm, score) for arm in item["arms"]),
            _names(item.get("missing", ())),
        )
        for item in summary.get("pooled", ())
    )


def _pooled_arm(arm: Entries, score: str) -> PooledArm:
    differences, kind = arm.get("differences"), _answer_of(arm)
    found = PooledArm(
        text(arm, "arm"),
        _names(arm["datasets"]),
        _intervals(arm["figures"], partial(pooled_bounds, answer_of=kind), POOLED),
        score=score,
        answer_of=kind,
    )
    if differences is None:
        return found
    test, superiority = arm["non_inferiority"], arm.get("superiority", NO_TEST)
    return replace(
        found,
        compared=_names(arm.get("compared", arm["datasets"])),
        differences=_intervals(differences, partial(pooled_bounds, answer_of=kind, difference=True), POOLED),
        margin=number(test["margin"]),
        p=number(test["p"]),
        holds=_holds(test),
        primary=bool(_holds({"holds": arm["primary"]})),
        p_superior=number(superiority["p"]),
        superior=_holds(superiority),
        p_differs=number(arm["difference"]["p"]),
        p_adjusted=number(arm["difference"].get("p_adjusted")),
    )


def _names(values: Any) -> tuple[str, ...]:
    return tuple(text({"name": value}, "name") for value in values)


def _holds(test: Entries) -> bool | None:
    """Return the outcome of a test."""
    holds = test["holds"]
    if not isinstance(holds, bool | None):
        raise TypeError(f"holds: {holds!r:.40} is neither true nor false")
    return holds


def _arm_summary(arm: Entries, score: str) -> ArmSummary:
    test = arm.get("non_inferiority", NO_TEST)
    seeds = tuple(count(seed) for seed in arm["seeds"])
    differences, kind, slices = arm.get("differences"), _answer_of(arm), len(arm["shares"])
    return ArmSummary(
        arm=text(arm, "arm"),
        seeds=seeds,
        folds=tuple(count(fold) for fold in arm.get("folds", (0,))),
        metrics=_intervals(arm["figures"], partial(metric_bounds, answer_of=kind, slices=slices)),
        shares=tuple(_interval(share, (0.0, 1.0)) for share in arm["shares"]),
        differences={}
        if differences is None
        else _intervals(differences, partial(difference_bounds, answer_of=kind, slices=slices)),
        margin=number(test["margin"]),
        p=number(test["p"]),
        holds=_holds(test),
        bias_removed=_bias_removed(arm.get("bias_removed")),
        score=score,
        answer_of=kind,
    )


def _answer_of(arm: Entries) -> str:
    """Return what the answer change of an arm is a change of; earlier versions do not say, and had classes."""
    kind = text(arm, "answer_of") if "answer_of" in arm else "classes"
    if kind not in ("classes", "scores", "both"):
        raise ValueError(f"answer_of: {kind!r:.40} is neither classes, scores nor both")
    return kind


def _intervals(
    values: Entries, bounds: Callable[[str], tuple[float, float]], names: Sequence[str] = METRICS
) -> dict[str, Interval]:
    """Read the intervals of metrics; earlier versions let them leave the range of the quantity, and knew fewer."""
    return {name: _interval(values[name], bounds(name)) if name in values else UNKNOWN for name in names}


def _bias_removed(value: Any) -> Interval:
    """Read an interval; earlier versions wrote a number, of |D|, which says little of more than three slices."""
    return _interval(value, (-math.inf, 1.0)) if isinstance(value, dict) else UNKNOWN


def _interval(value: Entries, bounds: tuple[float, float]) -> Interval:
    return clipped(Interval(*(number(value[name]) for name in ("estimate", "low", "high"))), bounds)
