"""The charts of a study's results: score and bias, and the distribution of saliency."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from evenslice.report.base import style
from evenslice.report.base.drawing import NARROW, WIDTH, Drawing
from evenslice.report.base.wording import MINUS, few_lines, listed, one_line, signed
from evenslice.report.study.pooled import POOLED_READING, shown_pooled
from evenslice.results import (
    SALIENCY_PERCENTILES,
    Comparison,
    Tolerances,
    pair_runs,
    replicate_means,
    score_title,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import ArmSummary, Interval, PooledArm, PooledComparison, StudyResults

    Block = Comparison | PooledComparison

TITLE: Final = 100
"""Number of characters of a comparison's title that fit above its axes."""

ROW: Final = 0.28
"""Inches for each arm."""

TALL_ROW: Final = 0.36
"""Inches for each arm where the names of some have two lines."""

MARGINS_SHOWN: Final = (
    8  # in either direction, on a linear axis of scores; a longer one is logarithmic at its ends
)
LINEAR: Final = 2  # margins on either side of 0, where that one is linear
TICKS: Final = (-1.0, -0.1, -0.01, 0.0, 0.01, 0.1, 1.0)  # of that one
LOWEST: Final = 1e-3  # saliency in units of the mean; the logarithmic axis starts here


@dataclass(frozen=True)
class _Point:
    """An arm in one panel of the forest: its row there, its index in the study, its mean and what that is the mean of."""

    row: int
    arm: int
    mean: Interval
    parts: tuple[float, ...]


def forest_figure(results: StudyResults) -> Drawing:
    """Draw each arm's difference in the main score from the baseline, and its largest pair bias.

    There is a block for all data sets together, if there are several, and one for each comparison.
    """
    blocks: list[Block] = [*shown_pooled(results), *results.comparisons]
    title = score_title(results.score, first=True)
    bias = [_bias_points(results, item) for item in blocks]
    scores = [_score_points(results, item) for item in blocks]
    margin = _largest_margin(results)
    scaled = max(map(abs, _ends(scores)), default=0.0) > MARGINS_SHOWN * margin
    units = listed(sorted({f"{item.unit}s" for item in results.comparisons}))
    reading = f"Markers are means over {units}, with 95 % intervals if there are several; small dots are single {units}. "
    if len(blocks) > len(results.comparisons):
        reading = f"{POOLED_READING} Small dots are single data sets there. Below, {reading[0].lower()}{reading[1:]}"
    if any(scores):
        reading += (
            f"{title}: an arm is not inferior if its whole interval lies right of the dashed line, its margin. "
            + (f"Beyond {LINEAR * margin:g} to either side of 0 this axis is logarithmic. " if scaled else "")
        )
    return Drawing(
        "forest",
        f"Cost in {score_title(results.score)} and remaining bias",
        f"{reading}The largest pair bias of a fair arm is 0; the tolerance of an audit is shaded.",
        *(
            _draw_forest(results, blocks, scores, bias, scaled=scaled, narrow=narrow)
            for narrow in (False, True)
        ),
    )


def _draw_forest(
    results: StudyResults,
    blocks: Sequence[Block],
    scores: Sequence[Sequence[_Point]],
    bias: Sequence[Sequence[_Point]],
    *,
    scaled: bool,
    narrow: bool,
) -> Figure:
    """Draw the panels of the score beside those of the bias, or, for narrow screens, above them."""
    columns = [scores, bias] if any(scores) else [bias]
    heights = [len(item.arms) + 1.0 for item in blocks] * (len(columns) if narrow else 1)
    row = TALL_ROW if any("\n" in few_lines(arm.arm) for item in blocks for arm in item.arms) else ROW
    size = (NARROW if narrow else WIDTH, (1.6 if narrow else 1.0) + row * sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(heights), 1 if narrow else len(columns), height_ratios=heights, squeeze=False)
    panels = grid.reshape(len(columns), len(blocks)) if narrow else grid.T
    for column, axes_below in enumerate(panels):
        for axes, item in zip(axes_below, blocks, strict=True):
            _name_arms(axes, item, TITLE // 2 if narrow else TITLE, labelled=narrow or column == 0)
            axes.tick_params(labelbottom=axes is axes_below[-1])
    for axes, points in zip(panels[-1], bias, strict=True):
        axes.set_xlim(*_bias_limits(bias))
        axes.axvspan(0, Tolerances.tolerance, color=style.BAND, linewidth=0, zorder=0.5)
        _mark_all(axes, points)
    panels[-1, -1].set_xlabel("largest pair bias")
    if not any(scores):
        return figure
    scale = _largest_margin(results)
    for axes, points, item in zip(panels[0], scores, blocks, strict=True):
        _scale_scores(axes, scores, scale, scaled=scaled)
        _draw_margins(axes, item)
        _mark_all(axes, points)
    title = score_title(results.score, first=True)
    panels[0, -1].set_xlabel(f"← worse · {title} minus that of {one_line(results.baseline)} · better →")
    return figure


def _name_arms(axes: Axes, item: Block, longest: int, *, labelled: bool) -> None:
    """Prepare a panel of a comparison: a row for each arm."""
    axes.set_yticks(range(len(item.arms)), [few_lines(arm.arm) if labelled else "" for arm in item.arms])
    axes.set_ylim(len(item.arms) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=style.QUIET, linewidth=1)
    if labelled:
        axes.set_title(one_line(item.title, longest))


def _scale_scores(axes: Axes, blocks: Sequence[Sequence[_Point]], margin: float, *, scaled: bool) -> None:
    """Set the axis of the score so that no result lies beyond it."""
    ends = [(1.6 if scaled else 1.15) * end for end in _ends(blocks)]
    low, high = min(-LINEAR * margin, *ends), max(LINEAR * margin, *ends)
    if scaled:
        axes.set_xscale("symlog", linthresh=LINEAR * margin)
        axes.set_xticks([tick for tick in TICKS if low <= tick <= high])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}".replace("-", MINUS))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlim(low, high)


def _bias_limits(blocks: Sequence[Sequence[_Point]]) -> tuple[float, float]:
    high = 1.08 * max(2 * Tolerances.tolerance, *_ends(blocks))
    return -0.03 * high, high


def _arms(item: Block) -> Sequence[ArmSummary | PooledArm]:
    return item.arms


def _score_points(results: StudyResults, item: Block) -> list[_Point]:
    return [
        _Point(
            row,
            results.arms.index(arm.arm),
            arm.differences[arm.score],
            _parts(results, item, arm.arm, arm.score, compared=True),
        )
        for row, arm in enumerate(_arms(item))
        if arm.differences and not math.isnan(arm.differences[arm.score].estimate)
    ]


def _bias_points(results: StudyResults, item: Block) -> list[_Point]:
    return [
        _Point(
            row,
            results.arms.index(arm.arm),
            arm.metrics["largest_bias"],
            _parts(results, item, arm.arm, "largest_bias", compared=False),
        )
        for row, arm in enumerate(_arms(item))
        if not math.isnan(arm.metrics["largest_bias"].estimate)
    ]


def _parts(results: StudyResults, item: Block, arm: str, name: str, *, compared: bool) -> tuple[float, ...]:
    """Return what a mean is of: the means of data sets, or the values of folds or seeds, perhaps less the baseline's."""
    if not isinstance(item, Comparison):
        inner = [found for found in results.comparisons if found.architecture == item.architecture]
        found = [_parts(results, each, arm, name, compared=compared) for each in inner]
        return tuple(float(np.nanmean(values)) for values in found if not np.isnan(values).all())
    runs = [vars(run) for run in results.runs_of(item, arm)]
    others = [vars(run) for run in results.runs_of(item, results.baseline)] if compared else runs
    pairs = pair_runs(runs, others)
    values = [own["metrics"][name] - (other["metrics"][name] if compared else 0.0) for own, other in pairs]
    return tuple(replicate_means([own for own, _ in pairs], values, item.unit).tolist())


def _largest_margin(results: StudyResults) -> float:
    blocks: list[Block] = [*shown_pooled(results), *results.comparisons]
    margins = (arm.margin for item in blocks for arm in _arms(item) if arm.margin > 0)
    return max(margins, default=0.01)


def _draw_margins(axes: Axes, item: Block) -> None:
    """Draw the margin of each arm across its row: the primary arm may have another than the rest."""
    for row, arm in enumerate(_arms(item)):
        if arm.margin > 0:
            axes.plot([-arm.margin] * 2, [row - 0.5, row + 0.5], color=style.INK, linestyle="--", linewidth=1)


def _ends(blocks: Sequence[Sequence[_Point]]) -> list[float]:
    """Return all means, ends of intervals and single values."""
    values = [value for block in blocks for point in block for value in (*astuple(point.mean), *point.parts)]
    return [value for value in values if not math.isnan(value)] or [0.0]


def _mark_all(axes: Axes, points: Sequence[_Point]) -> None:
    """Draw means, their intervals and what they are the means of."""
    for point in points:
        colour, y, mean = style.audit_colour(point.arm), point.row, point.mean
        axes.plot([mean.low, mean.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        parts = point.parts if len(point.parts) > 1 else ()
        axes.plot(parts, [y + 0.24] * len(parts), color=colour, linestyle="none", marker=".", markersize=3.5)
        axes.plot(mean.estimate, y, color=colour, marker=style.audit_marker(point.arm), markersize=6)


def saliency_figure(results: StudyResults) -> Drawing | None:
    """Draw the distribution of the pixels' saliency, a box for each slice and arm; None if no run recorded it."""
    blocks = [
        item for item in results.comparisons if any(_known_saliency(results, item, a) for a in item.arms)
    ]
    if not blocks:
        return None
    return Drawing(
        "saliency",
        "Distribution of saliency in each slice",
        "Boxes hold the middle half of the pixels and whiskers the middle 90 %, as means over runs and in "
        "the order of the "
        f"legend, in units of the mean over all slices. A fair arm has the same box at {MINUS}k and +k.",
        *(_draw_saliency(results, blocks, narrow=narrow) for narrow in (False, True)),
    )


def _draw_saliency(results: StudyResults, blocks: Sequence[Comparison], *, narrow: bool) -> Figure:
    figure = Figure(figsize=(NARROW if narrow else WIDTH, 0.9 + 2.1 * len(blocks)), layout="constrained")
    grid = figure.subplots(len(blocks), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, item in zip(grid, blocks, strict=True):
        _saliency_block(axes, results, item, TITLE // 2 if narrow else TITLE)
    grid[0].set_yscale("log")
    grid[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    grid[-1].set_xlabel("slice of the window (0 is the middle)")
    handles = [
        Patch(color=style.audit_colour(index), alpha=_opacity(index), label=few_lines(arm))
        for index, arm in enumerate(results.arms)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 2 if narrow else 4))
    return figure


def _known_saliency(results: StudyResults, item: Comparison, arm: ArmSummary) -> list[NDArray[np.float64]]:
    return [run.saliency for run in results.runs_of(item, arm.arm) if run.saliency is not None]


def _saliency_block(axes: Axes, results: StudyResults, item: Comparison, longest: int) -> None:
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
    axes.set_title(one_line(item.title, longest))
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
