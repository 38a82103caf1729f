"""The charts of a study's results: Dice and bias, and the distribution of saliency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from evenslice.report.base import style
from evenslice.report.base.drawing import WIDTH, Drawing
from evenslice.report.base.wording import MINUS, number, one_line, signed
from evenslice.results import SALIENCY_PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import ArmSummary, Comparison, Interval, StudyResults

TITLE: Final = 100
"""Number of characters of a comparison's title that fit above its axes."""

MARGINS_SHOWN: Final = 8  # of the Dice axis, in either direction
LOWEST: Final = 1e-3  # saliency in units of the mean; the logarithmic axis starts here
EDGE: Final = 0.02  # of an axis, where values beyond it are marked


@dataclass(frozen=True)
class _Point:
    """An arm in one panel of the forest: its row there, its index in the study, its mean and the seeds' values."""

    row: int
    arm: int
    mean: Interval
    seeds: tuple[float, ...]


def forest_figure(results: StudyResults) -> Drawing:
    """Draw each arm's difference in Dice from the baseline, and its directional bias; one block for each comparison."""
    blocks = results.comparisons
    bias = [_bias_points(results, item) for item in blocks]
    dice = [_dice_points(results, item) for item in blocks]
    columns = [dice, bias] if any(dice) else [bias]
    margin = _margin(results)
    limits = [_limits(dice, 2 * margin, MARGINS_SHOWN * margin), _limits(bias, 0.05, 1.05)][-len(columns) :]
    heights = [len(item.arms) + 1.0 for item in blocks]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.28 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(blocks), len(columns), sharex="col", height_ratios=heights, squeeze=False)
    for line, item in zip(grid, blocks, strict=True):
        _name_arms(line, item)
    for axes_below, points, (low, high) in zip(grid.T, columns, limits, strict=True):
        axes_below[-1].set_xlim(low, high)
        axes_below[-1].xaxis.set_major_locator(MaxNLocator(6))
        for axes, block in zip(axes_below, points, strict=True):
            for point in block:
                _mark(axes, point, low, high)
    grid[-1, -1].set_xlabel("← slices before · directional bias · slices after →")
    if any(dice):
        grid[-1, 0].set_xlabel(f"← worse · Dice minus that of {one_line(results.baseline)} · better →")
        for axes in grid[:, 0]:
            axes.axvline(-margin, color=style.INK, linestyle="--", linewidth=1)
    left = "Left: an arm is not inferior if its whole interval lies right of the dashed line, the margin. "
    return Drawing(
        "forest",
        "Cost in Dice and remaining bias",
        "Markers are means over seeds, with 95 % intervals if there are several; small dots are single seeds. "
        f"{left if any(dice) else ''}The directional bias of a fair arm is 0. An arrowhead marks an "
        "interval, and a number "
        "a value, beyond the axis.",
        figure,
    )


def _name_arms(line: Sequence[Axes], item: Comparison) -> None:
    """Prepare the panels of a comparison: a row for each arm, labelled on the left."""
    line[0].set_title(one_line(item.title, TITLE))
    for axes in line:
        axes.set_yticks(range(len(item.arms)), [""] * len(item.arms))
        axes.set_ylim(len(item.arms) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=style.QUIET, linewidth=1)
    line[0].set_yticklabels([one_line(arm.arm) for arm in item.arms])


def _dice_points(results: StudyResults, item: Comparison) -> list[_Point]:
    baseline = {run.seed: run.metrics["dice"] for run in results.runs_of(item, results.baseline)}
    return [
        _Point(
            row,
            results.arms.index(arm.arm),
            arm.differences["dice"],
            tuple(
                run.metrics["dice"] - baseline[run.seed]
                for run in results.runs_of(item, arm.arm)
                if run.seed in baseline
            ),
        )
        for row, arm in enumerate(item.arms)
        if arm.differences and not math.isnan(arm.differences["dice"].estimate)
    ]


def _bias_points(results: StudyResults, item: Comparison) -> list[_Point]:
    return [
        _Point(
            row,
            results.arms.index(arm.arm),
            arm.metrics["directional_bias"],
            tuple(run.metrics["directional_bias"] for run in results.runs_of(item, arm.arm)),
        )
        for row, arm in enumerate(item.arms)
        if not math.isnan(arm.metrics["directional_bias"].estimate)
    ]


def _margin(results: StudyResults) -> float:
    margins = (arm.margin for item in results.comparisons for arm in item.arms if arm.margin > 0)
    return next(margins, 0.01)


def _limits(blocks: Sequence[Sequence[_Point]], least: float, most: float) -> tuple[float, float]:
    """Return the ends of an axis for means and seeds, each between ``least`` and ``most`` away from 0."""
    values = [value for block in blocks for point in block for value in (point.mean.estimate, *point.seeds)]
    known = [1.15 * value for value in values if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return -min(max(-low, least), most), min(max(high, least), most)


def _mark(axes: Axes, point: _Point, low: float, high: float) -> None:
    """Draw a mean, its interval and the seeds' values; anything beyond the axis is marked at its end."""
    colour, y, mean = style.audit_colour(point.arm), point.row, point.mean
    first, last = low + EDGE * (high - low), high - EDGE * (high - low)
    ends = np.clip([mean.low, mean.high], first, last)
    axes.plot(ends, [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    for beyond, end, head in ((mean.low < low, first, "<"), (mean.high > high, last, ">")):
        if beyond:
            axes.plot(end, y, color=colour, marker=head, markersize=5)
    seeds = [value for value in point.seeds if low <= value <= high] if len(point.seeds) > 1 else []
    axes.plot(seeds, [y + 0.24] * len(seeds), color=colour, linestyle="none", marker=".", markersize=3.5)
    if low <= mean.estimate <= high:
        axes.plot(mean.estimate, y, color=colour, marker=style.audit_marker(point.arm), markersize=6)
        return
    end, shift, side = (first, 6, "left") if mean.estimate < low else (last, -6, "right")
    axes.plot(end, y, color=colour, marker="<" if side == "left" else ">", markersize=7)
    axes.annotate(
        number(mean.estimate),
        (end, y),
        (shift, 2),
        textcoords="offset points",
        ha=side,
        va="bottom",
        fontsize=8,
    )


def saliency_figure(results: StudyResults) -> Drawing | None:
    """Draw the distribution of the pixels' saliency, a box for each slice and arm; None if no run recorded it."""
    blocks = [
        item for item in results.comparisons if any(_known_saliency(results, item, a) for a in item.arms)
    ]
    if not blocks:
        return None
    figure = Figure(figsize=(WIDTH, 0.9 + 2.1 * len(blocks)), layout="constrained")
    grid = figure.subplots(len(blocks), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, item in zip(grid, blocks, strict=True):
        _saliency_block(axes, results, item)
    grid[0].set_yscale("log")
    grid[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    grid[-1].set_xlabel("slice of the window (0 is the middle)")
    handles = [
        Patch(color=style.audit_colour(index), alpha=_opacity(index), label=one_line(arm))
        for index, arm in enumerate(results.arms)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4))
    return Drawing(
        "saliency",
        "Distribution of saliency in each slice",
        "Boxes hold the middle half of the pixels and whiskers the middle 90 %, as means over seeds and in "
        "the order of the "
        f"legend, in units of the mean over all slices. A fair arm has the same box at {MINUS}k and +k.",
        figure,
    )


def _known_saliency(results: StudyResults, item: Comparison, arm: ArmSummary) -> list[NDArray[np.float64]]:
    return [run.saliency for run in results.runs_of(item, arm.arm) if run.saliency is not None]


def _saliency_block(axes: Axes, results: StudyResults, item: Comparison) -> None:
    width, slices = 0.84 / len(item.arms), 1
    for index, arm in enumerate(item.arms):
        tables = _known_saliency(results, item, arm)
        if not tables:
            continue
        table = np.maximum(np.stack(tables).mean(axis=0), LOWEST)
        slices = len(table)
        x = np.arange(slices) - slices // 2 + width * (index - (len(item.arms) - 1) / 2)
        _boxes(axes, x, table, 0.8 * width, results.arms.index(arm.arm))
    axes.axhline(1, color=style.QUIET, linestyle="--", linewidth=1)
    axes.set_xticks(
        range(-(slices // 2), slices // 2 + 1), [signed(k) for k in range(-(slices // 2), slices // 2 + 1)]
    )
    axes.grid(visible=False, axis="x")
    axes.set_title(one_line(item.title, TITLE))
    axes.set_ylabel("saliency")


def _boxes(
    axes: Axes, x: NDArray[np.floating[Any]], table: NDArray[np.floating[Any]], width: float, index: int
) -> None:
    """Draw a box for each row of percentiles in the style of an arm."""
    colour = style.audit_colour(index)
    names = {5: "whislo", 25: "q1", 50: "med", 75: "q3", 95: "whishi"}
    stats: list[dict[str, Any]] = [
        {name: row[SALIENCY_PERCENTILES.index(percentile)] for percentile, name in names.items()}
        for row in table.tolist()
    ]
    axes.bxp(
        stats,
        positions=x,
        widths=width,
        showfliers=False,
        showcaps=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": colour, "linewidth": 0, "alpha": _opacity(index)},
        whiskerprops={"color": colour, "linewidth": 1.2},
        medianprops={"color": style.INK, "linewidth": 1.4},
    )


def _opacity(index: int) -> float:
    """Return the opacity of an arm's box, which is lower if an earlier arm has its colour."""
    return 0.5 if index >= len(style.AUDIT_COLOURS) else 1.0
