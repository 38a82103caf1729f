"""The charts of audits, studies and surveys: Matplotlib figures with a title and a caption.

Call everything here inside ``style.settings()``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from evenslice.report import style
from evenslice.report.audit_tables import stressed
from evenslice.report.study_tables import shown
from evenslice.report.style import TALLEST, WIDTH, Drawing
from evenslice.report.tables import MINUS, few_lines, one_line, signed
from evenslice.results import Tolerances, nan_mean, score_title

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import (
        AuditResult,
        Interval,
        StressSummary,
        StudyResults,
        SurveyResult,
        VolumeAuditResult,
    )

    Kernels = tuple[
        str, NDArray[np.float32], Sequence[str]
    ]  # title, (filters, inputs, ky, kx), names of inputs
    Course = tuple[NDArray[np.float64], NDArray[np.float64]]

LEGEND: Final = 3  # names in a line
MOST_TICKS: Final = 21
NAMED_BARS: Final = 15  # that have room for their share above them
FILTERS_SHOWN: Final = 8
IN_A_ROW: Final = 4  # stems
KERNELS: Final = 2.6  # height of a row of stems in inches
TITLE: Final = 70  # characters that fit above axes of the whole width
ARM: Final = 0.36  # inches for each arm, whose name may have two lines
NAME: Final = 22  # characters in a line of it
DISTURBED: Final = 0.17  # inches for each item, as long as the figure is not taller than ``TALLEST``
FARTHEST: Final = 3  # offset whose loss is drawn
MARGINS_SHOWN: Final = 5  # on either side of 0
MARKERS_SHOWN: Final = 6  # along a line
MAX_NETWORKS: Final = 60  # in the chart of a survey; its table lists all
BAR: Final = 0.34  # height of a bar, of 1 for each network: there is room for a name above
CHANNELS: Final = ("red", "green", "blue")
CHANNEL_COLOURS: Final = (1, 2, 0, 3, 4, 5, 6, 7)  # of the report's: the closest to red, green and blue first


def reach(values: Iterable[Interval | None], least: float, most: float = 1.0) -> float:
    """Return the largest absolute end of intervals, but within ``least`` and ``most``."""
    ends = [abs(end) for item in values if item for end in (item.estimate, item.low, item.high)]
    return min(max([least, *filter(math.isfinite, ends)]), most)


def audit_charts(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw the charts of the page; call it inside ``style.settings()``."""
    asked = not all(math.isnan(share.estimate) for audit in audits for share in audit.shares)
    charts = [shares_figure(audits)] if asked else []
    if any(audit.saliency for audit in audits):
        charts.append(biases_figure(audits))
    items = [StressItem(name, index, (stress,)) for index, name, stress in stressed(audits)]
    return charts + ([stress_figure(items)] if items else []) + kernel_figures(audits)


def shares_figure(audits: Sequence[AuditResult]) -> Drawing:
    """Draw the mean share of each slice in the saliency with its interval, the audits side by side."""
    lines = math.ceil(len(audits) / LEGEND)
    height = min(3.2 + 0.22 * (lines - 1), TALLEST)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot(xlabel="slice of the window (0 is the middle)", ylabel="share of the saliency")
    axes.grid(visible=False, axis="x")
    width = 0.8 / max(len(audits), 2)
    for index, audit in enumerate(audits):
        x = np.array(audit.offsets) + width * (index - (len(audits) - 1) / 2)
        label = one_line(audit.name, 24)
        heights = [share.estimate for share in audit.shares]
        bars = axes.bar(x, heights, width * 0.92, color=style.audit_colour(index), label=label)
        if len(audits) * len(heights) <= NAMED_BARS:
            axes.bar_label(
                bars,
                fmt=lambda share: "" if math.isnan(share) else f"{100 * share:.0f} %",
                padding=2,
                fontsize=8,
            )
        low, high = np.clip([[share.low, share.high] for share in audit.shares], 0, 1).T
        axes.vlines(x, low, high, color=style.INK, linewidth=1.4)
    for slices in {len(audit.shares) for audit in audits}:
        axes.hlines(1 / slices, -slices / 2, slices / 2, color=style.QUIET, linestyle="--", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(MOST_TICKS, integer=True))  # labels that do not touch
    axes.xaxis.set_major_formatter(lambda offset, _: signed(round(offset)))
    if len(audits) > 1:
        figure.legend(loc="outside upper left", ncols=min(len(audits), LEGEND))
    return Drawing(
        "shares",
        "How the saliency is shared among the slices",
        f"A fair network has bars of the same height at {MINUS}k and +k. The dashed line is an even split, "
        "and the thin lines on the bars are 95 % intervals.",
        figure,
    )


def biases_figure(audits: Sequence[AuditResult]) -> Drawing:
    """Draw the pair biases of saliency and reliance with their intervals, the audits side by side."""
    most = max(len(audit.saliency) for audit in audits)
    rows = [(k, i) for k in range(most) for i, audit in enumerate(audits) if k < len(audit.saliency)]
    labels = [one_line(audits[i].name, 18) + (f", k = {k + 1}" if most > 1 else "") for k, i in rows]
    figure = Figure(figsize=(WIDTH, 1.2 + min(0.34 * len(rows), TALLEST)), layout="constrained")
    columns = figure.subplots(1, 2, sharex=True, sharey=True)
    pairs = [pair for audit in audits for pair in (*audit.saliency, *audit.reliance)]
    edge = 1.05 * reach(pairs, 3 * max(audit.statistics.tolerance for audit in audits))
    for axes, title in zip(columns, ("saliency", "reliance"), strict=True):
        for y, (k, i) in enumerate(rows):
            fair = audits[i].statistics.tolerance
            axes.fill_betweenx([y - 0.5, y + 0.5], -fair, fair, color=style.BAND, linewidth=0, zorder=0.5)
            found = audits[i].saliency if title == "saliency" else audits[i].reliance
            if k < len(found):
                style.draw_interval(axes, y, found[k], i, edge, 1.0 if found[k].judged else 0.35)
        axes.set_title(title)
        axes.set_xlabel("← before · pair bias · after →")
        style.name_rows(axes, range(len(rows)), labels, len(rows) - 0.4)
    columns[0].set_xlim(-edge, edge)
    columns[0].xaxis.set_major_locator(MaxNLocator(4))
    reading = "Figures with their 95 % intervals. A pair is fair if that lies within the shaded tolerance."
    if not all(pair.judged for pair in pairs):
        reading += " Pale markers belong to pairs that count so little that they are not judged."
    return Drawing("biases", "Which side of each pair is favoured", reading, figure)


def kernel_figures(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw the kernels of each stem before and after, one figure for each stem."""
    names = dict.fromkeys(kernels.name for audit in audits for kernels in audit.kernels)
    return [
        Drawing(
            f"kernels-{number}",
            f"Kernels of the stem {one_line(name, 60)}",
            f"The {FILTERS_SHOWN} filters with the most energy, one row for each filter and one square for each input. If "
            "slices are treated alike, a row looks the same from either end, except where the network averages over each "
            "window and its mirror (twin, symmetrized).",
            _draw_kernels(_blocks(audits, name)),
        )
        for number, name in enumerate(names, start=1)
    ]


def _blocks(audits: Sequence[AuditResult], stem: str) -> list[Kernels]:
    """Collect the stem's kernels: what they were before, each state once, and what became of them in every audit.

    Where nothing changed, or the state before is not known, there is one block under the name of the audit.
    """
    blocks: list[Kernels] = []
    for audit in audits:
        for before, after in [(found.before, found.after) for found in audit.kernels if found.name == stem]:
            known = [kernels for _, kernels, _ in blocks] + [after]
            if not any(np.array_equal(before, kernels) for kernels in known):
                blocks.append(("before", before, [*"RGB"] if before.shape[1] == 3 else []))
            offsets = [signed(k) for k in audit.offsets]
            blocks.append((audit.name, after, offsets if after.shape[1] == len(offsets) else []))
    return blocks


def _draw_kernels(blocks: Sequence[Kernels]) -> Figure:
    """Draw blocks from left to right and, where a row is full, in further rows, all on one scale."""
    rows, columns = -(-len(blocks) // IN_A_ROW), min(len(blocks), IN_A_ROW)
    figure = Figure(figsize=(WIDTH, KERNELS * rows + 0.6), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places:
        axes.set_axis_off()
    scale = max(float(np.quantile(np.abs(kernels), 0.99)) for _, kernels, _ in blocks) or 1.0
    weights = ScalarMappable(Normalize(-scale, scale), "RdBu_r")
    chosen: dict[int, NDArray[np.int64]] = {}  # the same filters of all networks with the same number of them
    for axes, (title, kernels, inputs) in zip(places, blocks, strict=False):
        energy = np.square(kernels.astype(np.float64)).sum(axis=(1, 2, 3))
        largest = np.sort(np.argsort(-energy, kind="stable")[:FILTERS_SHOWN])
        filters = chosen.setdefault(len(kernels), largest)
        axes.imshow(_mosaic(kernels[filters]), cmap=weights.cmap, norm=weights.norm, interpolation="none")
        axes.set_title(one_line(title, 20), fontsize=9)
        _name_inputs(axes, kernels.shape[1], inputs)
    look: dict[str, Any] = {"location": "bottom", "shrink": 0.4, "aspect": 30, "extend": "both"}
    figure.colorbar(weights, ax=places.tolist(), label="weight", **look)
    return figure


def _mosaic(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return filters (filters, inputs, ky, kx) as one picture, one row for each, with gaps of NaN between kernels."""
    filters, inputs, ky, kx = kernels.shape
    picture = np.full((filters, inputs, ky + 1, kx + 1), np.nan, dtype=np.float32)
    picture[:, :, :ky, :kx] = kernels
    return picture.transpose(0, 2, 1, 3).reshape(filters * (ky + 1), inputs * (kx + 1))[:, :-1]


def _name_inputs(axes: Axes, inputs: int, names: Sequence[str]) -> None:
    """Name the inputs below their kernels, or say how many there are."""
    named = names if names and inputs <= IN_A_ROW + 3 else [f"{inputs} inputs"]
    for number, name in enumerate(named):
        look: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "top", "fontsize": 8}
        axes.text((number + 0.5) / len(named), -0.02, name, **look)


@dataclass(frozen=True)
class StressItem:
    """A network, or an arm of a study, in the chart.

    Attributes:
        name: its name.
        index: that of its colour, see ``style.audit_colour``.
        summaries: the cost of disturbed slices: one, or one for each run, of which the chart shows the mean.
        block: title of the axes that it belongs to.
    """

    name: str
    index: int
    summaries: tuple[StressSummary, ...]
    block: str = ""


def stress_figure(items: Sequence[StressItem]) -> Drawing:
    """Draw the loss of Dice with the slice at -k and with the one at +k disturbed; call it inside ``style.settings()``.

    Args:
        items: one or more, each with at least one summary; those of one block stand in the same axes.

    Returns:
        The figure, named "stress".
    """
    blocks: dict[str, list[StressItem]] = {}
    for item in items:
        blocks.setdefault(item.block, []).append(item)
    losses = [loss for item in items for summary in item.summaries for loss in summary.losses]
    rows = [*dict.fromkeys((loss.kind, loss.offset) for loss in losses if loss.offset <= FARTHEST)]
    heights = [0.5 + DISTURBED * len(rows) * (len(members) + 1) for members in blocks.values()]
    figure = Figure(figsize=(WIDTH, 1.0 + min(sum(heights), TALLEST)), layout="constrained")
    grid = figure.subplots(len(blocks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, members) in zip(grid, blocks.items(), strict=True):
        _draw_block(axes, members, rows)
        axes.set_title(one_line(title, 60))
    grid[-1].set_xlabel("loss of Dice")
    grid[-1].xaxis.set_major_locator(MaxNLocator(6))
    names = {item.name: item.index for item in items}
    _name_lines(figure, names, 2)
    agreement = all(summary.reference != "labels" for item in items for summary in item.summaries)
    reading = (
        f"{'Agreement with the intact answer' if agreement else 'Dice'} lost when one neighbouring slice is missing (the middle "
        f"slice in its place), blank, noisy or shifted: filled at {MINUS}k, hollow at +k. Where a symmetric network has them "
        "apart, the data differ, not the network."
    )
    return Drawing("stress", "What a disturbed slice costs", reading, figure)


def _draw_block(axes: Axes, items: Sequence[StressItem], rows: Sequence[tuple[str, int]]) -> None:
    """Draw a line for each item in a group for each kind and offset: from the loss at -k to that at +k."""
    for row, (kind, offset) in enumerate(rows):
        for place, item in enumerate(items):
            lost = [
                [summary.lost(kind, offset, side) for side in ("before", "after")]
                for summary in item.summaries
            ]
            ends = nan_mean(np.array(lost)).tolist()
            y, look = row * (len(items) + 1) + place, style.look(item.index)
            axes.plot(ends, [y, y], color=look["color"], linewidth=1.5)
            for end, fill in zip(ends, (look["color"], "none"), strict=True):
                axes.plot(end, y, markerfacecolor=fill, markersize=5, **look)
    several = any(offset > 1 for _, offset in rows)
    labels = [one_line(kind, 12) + (f", k = {offset}" if several else "") for kind, offset in rows]
    places = [row * (len(items) + 1) + (len(items) - 1) / 2 for row in range(len(rows))]
    style.name_rows(axes, places, labels, len(rows) * (len(items) + 1) - 1)


def study_charts(results: StudyResults) -> list[Drawing]:
    """Draw the charts for which the study has data; call it inside ``style.settings()``."""
    if not results.comparisons:
        return []
    losses = []
    for item in results.comparisons:
        for arm in item.arms:
            found = [run.stress for run in results.runs_of(item, arm.arm) if run.stress and run.stress.losses]
            if found:
                losses.append(StressItem(arm.arm, results.arms.index(arm.arm), tuple(found), item.title))
    charts = [forest_figure(results), learning_figure(results), stress_figure(losses) if losses else None]
    return [chart for chart in charts if chart is not None]


def forest_figure(results: StudyResults) -> Drawing:
    """Draw each arm's difference in the main score from the baseline beside its largest pair bias.

    There is a block for all data sets together, if there are several, and one for each comparison.
    """
    blocks = shown(results)
    arms: list[Any] = [arm for item in blocks for arm in item.arms]
    margin = max((arm.margin for arm in arms if arm.margin > 0), default=0.01)
    high = 1.08 * reach((arm.metrics["largest_bias"] for arm in arms), 2 * Tolerances.tolerance)
    changes = (arm.differences.get(results.score) for arm in arms)
    change = 1.08 * reach(changes, 2 * margin, MARGINS_SHOWN * margin)
    heights = [len(item.arms) + 1.0 for item in blocks]
    figure = Figure(figsize=(WIDTH, 1.0 + ARM * sum(heights)), layout="constrained")
    grid = figure.subplots(len(blocks), 2, sharex="col", height_ratios=heights, squeeze=False)
    for (left, right), item in zip(grid, blocks, strict=True):
        left.set_title(one_line(item.title, TITLE))
        right.axvspan(0, Tolerances.tolerance, color=style.BAND, linewidth=0, zorder=0.5)
        for row, arm in enumerate(item.arms):
            if arm.margin > 0:
                ends = [row - 0.5, row + 0.5]
                left.plot([-arm.margin] * 2, ends, color=style.INK, linestyle="--", linewidth=1)
            index = results.arms.index(arm.arm)
            style.draw_interval(left, row, arm.differences.get(results.score), index, change)
            style.draw_interval(right, row, arm.metrics["largest_bias"], index, high)
        names = [few_lines(arm.arm, NAME) for arm in item.arms]
        for axes, shown_names in ((left, names), (right, [""] * len(names))):
            style.name_rows(axes, range(len(names)), shown_names, len(names) - 0.4)
            axes.xaxis.set_major_locator(MaxNLocator(4))
    title = score_title(results.score).capitalize()
    grid[0, 0].set_xlim(-change, change)
    grid[0, 1].set_xlim(-0.03 * high, high)
    grid[-1, 0].set_xlabel(f"← worse · {title} relative to\n{one_line(results.baseline)} · better →")
    grid[-1, 1].set_xlabel("largest pair bias")
    return Drawing(
        "forest",
        f"Cost in {score_title(results.score)} and remaining bias",
        "Means with 95 % intervals; what lies beyond an axis is drawn at its end. An arm is non-inferior if its whole interval "
        "lies right of the dashed line, its margin. The bias of a fair arm is 0; the tolerance of an audit is shaded.",
        figure,
    )


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
    _name_lines(figure, {arm: index for index, arm in enumerate(results.arms) if arm in logged}, LEGEND)
    reading = (
        "Thick lines are means over runs, thin lines single runs. Left, an arm that costs no accuracy is as good as the others; "
        "right, a fair one stays at 0."
    )
    return Drawing("learning", "Learning curves", reading, figure)


def _course(run: Any, name: str) -> Course | None:
    """Return the steps at which a run logged something, and its values; None without any."""
    values = run.largest_bias if name == "bias" else run.curves.get(name, np.empty(0))
    known = np.isfinite(values)
    return (run.curves["step"][known], values[known]) if known.any() else None


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
        axes.plot(
            steps,
            values,
            markevery=(index % apart, apart),
            linewidth=1.8,
            markersize=4.5,
            **style.look(index),
        )


def _name_lines(figure: Figure, names: Mapping[str, int], columns: int) -> None:
    """Draw a legend of lines in the look of the audits or arms with these indices."""
    handles = [
        Line2D([], [], markersize=4.5, label=few_lines(name, NAME), **style.look(k))
        for name, k in names.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def balance_figure(survey: SurveyResult) -> Drawing:
    """Draw the energy of each channel of the stems, and D_m with its interval, below the name of each network."""
    networks = survey.measured[:MAX_NETWORKS]
    figure = Figure(figsize=(WIDTH, 1.5 + 0.42 * len(networks)), layout="constrained")
    energy, bias = figure.subplots(1, 2, sharey=True)
    limit = 1.05 * reach((item.directional_bias for item in networks), 3 * Tolerances.tolerance)
    bias.axvspan(-Tolerances.tolerance, Tolerances.tolerance, color=style.BAND, linewidth=0, zorder=0.5)
    bias.axvline(0, color=style.QUIET, linewidth=1)
    bias.set_xlim(-limit, limit)
    for y, item in enumerate(networks):
        starts = np.cumsum((0.0, *item.energy[:-1])).tolist()
        for channel, (start, part) in enumerate(zip(starts, item.energy, strict=True)):
            energy.barh(y, part, BAR, left=start, color=_colour(channel), edgecolor="none")
        above = energy.text(0, y - BAR / 2 - 0.06, one_line(item.spec, 60), fontsize=9, va="bottom", zorder=3)
        above.set_in_layout(False)  # it may reach into the other panel
        style.draw_interval(bias, y, item.directional_bias, 0, limit)
    energy.set_ylim(len(networks) - 0.4, -0.85)
    energy.set_xlim(0, 1)
    energy.set_title("energy of the stem")
    energy.set_xlabel("share of each channel")
    bias.set_title("bias of the network")
    bias.set_xlabel("← before · directional bias · after →")
    for axes in (energy, bias):
        axes.grid(visible=False, axis="y")
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(5))
    count = max(len(item.energy) for item in networks)
    names = CHANNELS if count == 3 else [f"channel {number}" for number in range(1, count + 1)]
    handles = [Patch(color=_colour(channel), label=name) for channel, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside upper left", ncols=4)
    left_out = len(survey.measured) - len(networks)
    reading = (
        "Left: the share of each channel in the energy of the stem. Right: the directional bias of the network when slices take "
        "the place of channels, with its 95 % interval; within the shaded tolerance it leans to neither side."
    )
    if left_out:
        reading += (
            f" The {MAX_NETWORKS} networks with the largest bias are shown; {left_out} more are in the table."
        )
    return Drawing(
        "balance", "Colour balance of the stem and directional bias of the network", reading, figure
    )


def profile_figure(result: VolumeAuditResult) -> Drawing:
    """Draw which part of the foreground differs in each slice across the flipped axis, one line for each axis and volume."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.add_subplot(xlabel="slice across the flipped axis", ylabel="foreground that differs")
    for index, found in enumerate(result.axes):
        for number, profile in enumerate(found.profiles):
            label = f"along {found.axis}" if number == 0 else None
            axes.plot(profile, color=style.audit_colour(index), linewidth=1.4, label=label)
    axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.legend(loc="outside upper left", ncols=3)
    reading = (
        "The part of the foreground of either answer that differs in each slice, in the order of the intact volume. Differences "
        "grow to one end where a method carries its answer along."
    )
    return Drawing("profile", "Where the answers differ", reading, figure)


def _colour(channel: int) -> str:
    return style.audit_colour(CHANNEL_COLOURS[channel % len(CHANNEL_COLOURS)])
