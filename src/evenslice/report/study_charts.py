"""The charts of a study: the score and the bias of each arm, and both during training."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from evenslice.report import style
from evenslice.report.formatting import few_lines, one_line
from evenslice.report.stress_chart import StressItem, stress_figure
from evenslice.report.study_tables import shown_pooled
from evenslice.report.style import WIDTH, Drawing
from evenslice.results import Comparison, PooledComparison, Tolerances, pair_bias, score_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.report.study_tables import Arm
    from evenslice.results import Interval, StudyResults, StudyRun

    Course = tuple[NDArray[np.float64], NDArray[np.float64]]

Block: TypeAlias = Comparison | PooledComparison

TITLE: Final = 70  # characters that fit above axes of the whole width
ROW: Final = 0.36  # inches for each arm, whose name may have two lines
NAME: Final = 22  # characters in a line of it
LEGEND: Final = 3  # names in a line
MARGINS_SHOWN: Final = 5  # on either side of 0
MARKERS_SHOWN: Final = 6  # along a line


def study_charts(results: StudyResults) -> list[Drawing]:
    """Draw the charts for which the study has data; call it inside ``style.settings()``."""
    if not results.comparisons:
        return []
    losses = [
        StressItem(arm.arm, results.arms.index(arm.arm), found, item.title)
        for item in results.comparisons
        for arm in item.arms
        if (
            found := tuple(
                run.stress for run in results.runs_of(item, arm.arm) if run.stress and run.stress.losses
            )
        )
    ]
    charts = [forest_figure(results), learning_figure(results), stress_figure(losses) if losses else None]
    return [chart for chart in charts if chart is not None]


def forest_figure(results: StudyResults) -> Drawing:
    """Draw each arm's difference in the main score from the baseline beside its largest pair bias.

    There is a block for all data sets together, if there are several, and one for each comparison.
    """
    blocks: list[Block] = [*shown_pooled(results.pooled), *results.comparisons]
    arms: list[list[Arm]] = [[*item.arms] for item in blocks]
    changes = [[arm.differences.get(arm.score) for arm in block] for block in arms]
    biases = [[arm.metrics["largest_bias"] for arm in block] for block in arms]
    margin = max((arm.margin for block in arms for arm in block if arm.margin > 0), default=0.01)
    high = 1.08 * max(2 * Tolerances.tolerance, _reach(biases, 1.0))
    reach = 1.08 * max(2 * margin, _reach(changes, MARGINS_SHOWN * margin))
    heights = [len(block) + 1.0 for block in arms]
    figure = Figure(figsize=(WIDTH, 1.0 + ROW * sum(heights)), layout="constrained")
    grid = figure.subplots(len(blocks), 2, sharex="col", height_ratios=heights, squeeze=False)
    for (left, right), item, own, change, bias in zip(grid, blocks, arms, changes, biases, strict=True):
        left.set_title(one_line(item.title, TITLE))
        right.axvspan(0, Tolerances.tolerance, color=style.BAND, linewidth=0, zorder=0.5)
        for row, arm in enumerate(own):
            if arm.margin > 0:
                left.plot(
                    [-arm.margin] * 2, [row - 0.5, row + 0.5], color=style.INK, linestyle="--", linewidth=1
                )
            style.draw_interval(left, row, change[row], results.arms.index(arm.arm), reach)
            style.draw_interval(right, row, bias[row], results.arms.index(arm.arm), high)
        for axes in (left, right):
            names = [few_lines(arm.arm, NAME) if axes is left else "" for arm in own]
            style.name_rows(axes, range(len(own)), names, len(own) - 0.4)
            axes.xaxis.set_major_locator(MaxNLocator(4))
    title = score_title(results.score, first=True)
    grid[0, 0].set_xlim(-reach, reach)
    grid[0, 1].set_xlim(-0.03 * high, high)
    grid[-1, 0].set_xlabel(f"← worse · {title} less that of\n{one_line(results.baseline)} · better →")
    grid[-1, 1].set_xlabel("largest pair bias")
    return Drawing(
        "forest",
        f"Cost in {score_title(results.score)} and remaining bias",
        "Means with 95 % intervals; what lies beyond an axis is drawn at its end. An arm is not inferior if its whole interval "
        "lies right of the dashed line, its margin. The bias of a fair arm is 0; the tolerance of an audit is shaded.",
        figure,
    )


def _reach(blocks: Sequence[Sequence[Interval | None]], most: float) -> float:
    """Return the largest absolute end of intervals, or ``most`` if that is less."""
    known = [item for block in blocks for item in block if item is not None]
    ends = [abs(end) for item in known for end in (item.estimate, item.low, item.high) if math.isfinite(end)]
    return min(max(ends, default=0.0), most)


def learning_figure(results: StudyResults) -> Drawing | None:
    """Draw the validation score, else the training loss, beside the largest pair bias; None if no run logged them."""
    score, title = f"validation_{results.score}", f"validation {score_title(results.score)}"
    if not any(_course(run, score) for run in results.runs):
        score, title = "loss", "training loss"
    shown = {score: title, "bias": "largest pair bias"}
    logged = {run.arm for run in results.runs for name in shown if _course(run, name)}
    if not logged:
        return None
    blocks = results.comparisons
    figure = Figure(figsize=(WIDTH, 1.0 + 2.2 * len(blocks)), layout="constrained")
    grid = figure.subplots(len(blocks), len(shown), squeeze=False)
    for line, item in zip(grid, blocks, strict=True):
        line[0].set_title(one_line(item.title, TITLE))
        for axes, (name, label) in zip(line, shown.items(), strict=True):
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            for arm in item.arms:
                courses = [_course(run, name) for run in results.runs_of(item, arm.arm)]
                _draw_courses(axes, [one for one in courses if one], results.arms.index(arm.arm))
    for axes in grid[-1]:
        axes.set_xlabel("step")
    handles = [
        Line2D([], [], label=few_lines(arm, NAME), **_look(index))
        for index, arm in enumerate(results.arms)
        if arm in logged
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=LEGEND)
    reading = (
        "Thick lines are means over runs, thin lines single runs. Left, an arm that costs no accuracy rises as fast and as high "
        "as the others; right, a fair one stays at 0."
    )
    if score == "loss":
        reading = (
            f"No part of the training data was kept out for validation. {reading.replace('rises', 'falls')}"
        )
    return Drawing("learning", "Learning curves", reading, figure)


def _course(run: StudyRun, name: str) -> Course | None:
    """Return the steps at which a run logged something, and its values; None without any."""
    values = _largest_bias(run) if name == "bias" else run.curves.get(name, np.empty(0))
    known = np.isfinite(values)
    return (run.curves["step"][known], values[known]) if known.any() else None


def _largest_bias(run: StudyRun) -> NDArray[np.float64]:
    """Return the largest pair bias at each step by the logged shares of slices."""
    offsets = sorted(
        int(found[1]) for name in run.curves if (found := re.fullmatch(r"share_(-?\d{1,4})", name))
    )
    if len(offsets) < 3:
        return np.empty(0)
    shares = np.stack([run.curves[f"share_{k}"] for k in offsets], axis=-1)
    return np.asarray(np.abs(pair_bias(shares)).max(axis=-1))


def mean_course(courses: Sequence[Course]) -> Course:
    """Return the mean over courses at the steps common to all.

    Example: the mean ends where a run stopped early.
        >>> one = np.array([1, 2, 3]), np.array([0.1, 0.2, 0.9])
        >>> steps, values = mean_course([one, (np.array([1, 2]), np.array([0.3, 0.4]))])
        >>> steps.tolist(), values.round(2).tolist()
        ([1, 2], [0.2, 0.3])
    """
    common = courses[0][0]
    for steps, _ in courses[1:]:
        common = np.intersect1d(common, steps)
    return common, np.mean([values[np.searchsorted(steps, common)] for steps, values in courses], axis=0)


def _draw_courses(axes: Axes, courses: Sequence[Course], index: int) -> None:
    for course in courses if len(courses) > 1 else ():
        axes.plot(*course, color=style.audit_colour(index), linewidth=0.7, alpha=0.45)
    if courses:
        steps, values = mean_course(courses)
        apart = max(1, len(steps) // MARKERS_SHOWN)
        axes.plot(steps, values, markevery=(index % apart, apart), **_look(index))


def _look(index: int) -> dict[str, Any]:
    return {
        "color": style.audit_colour(index),
        "linestyle": style.line_style(index),
        "linewidth": 1.8,
        "marker": style.audit_marker(index),
        "markersize": 4.5,
    }
