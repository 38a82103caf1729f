"""What disturbed slices cost each arm of a study: a chart, and rows of the page's tables."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from evenslice.report.base.stress_chart import StressItem, stress_figure
from evenslice.report.base.tables import Group
from evenslice.report.base.wording import MINUS, interval
from evenslice.report.study.tables import Row
from evenslice.results import replicate_means, student_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evenslice.report.base.drawing import Drawing
    from evenslice.results import Comparison, Interval, StressSummary, StudyResults, StudyRun, Unit

    Summaries = tuple[StressSummary, ...]


def stress_chart(results: StudyResults) -> Drawing | None:
    """Draw what disturbed slices cost each arm; None if no run measured it."""
    items = [
        StressItem(arm.arm, results.arms.index(arm.arm), found, item.title)
        for item in results.comparisons
        for arm in item.arms
        if (found := _summaries(results, item, arm.arm))
    ]
    return stress_figure(items) if items else None


def stress_group(results: StudyResults, comparison: Comparison) -> Group[Row]:
    """Return the losses of Dice of each arm, means over folds or seeds; without rows if no run measured them."""
    arms = [_measured(results, comparison, arm.arm) for arm in comparison.arms]
    rows: list[Row] = []
    if any(arms):
        rows = [
            Row(label, tuple(interval(_mean(found, figure, comparison.unit)) for found in arms))
            for label, figure in _figures(next(found[0][1] for found in arms if found))
        ]
    return Group(
        "What a disturbed slice costs",
        (
            "Loss of Dice on a sample of the test slices when one neighbour of the middle slice, or both, are missing "
            "(the middle slice in their place), blank (0), noisy or shifted, and when the stack is reversed. "
            f"Asymmetry: the loss at {MINUS}k less that at +k, 0 if both are worth the same."
        ),
        tuple(rows),
    )


def _measured(results: StudyResults, item: Comparison, arm: str) -> list[tuple[StudyRun, StressSummary]]:
    return [
        (run, run.stress)
        for run in results.runs_of(item, arm)
        if run.stress is not None and run.stress.losses
    ]


def _summaries(results: StudyResults, item: Comparison, arm: str) -> Summaries:
    return tuple(stress for _, stress in _measured(results, item, arm))


def _mean(
    found: Sequence[tuple[StudyRun, StressSummary]], figure: Callable[[StressSummary], float], unit: Unit
) -> Interval:
    values = replicate_means([vars(run) for run, _ in found], [figure(one) for _, one in found], unit)
    return student_interval(values, (-1, 1))


def _figures(example: StressSummary) -> Iterator[tuple[str, Callable[[StressSummary], float]]]:
    """Yield the label of each row, and a function that returns its figure."""
    for loss in example.losses:
        sides = (
            ("before", f"at {MINUS}{loss.offset}"),
            ("after", f"at +{loss.offset}"),
            ("both", f"both at ±{loss.offset}"),
            ("asymmetry", f"asymmetry at ±{loss.offset}"),
        )
        for side, where in sides:
            yield f"{loss.kind}, {where}", partial(_figure, loss.kind, loss.offset, side)
    yield "reversed", lambda one: one.intact - one.reversed


def _figure(kind: str, offset: int, side: str, summary: StressSummary) -> float:
    """Return a loss, or the asymmetry of one; NaN if the summary lacks it."""
    for loss in summary.losses:
        if (loss.kind, loss.offset) == (kind, offset):
            if side == "asymmetry":
                return loss.asymmetry.estimate
            return summary.intact - {"before": loss.before, "after": loss.after, "both": loss.both}[side]
    return math.nan
