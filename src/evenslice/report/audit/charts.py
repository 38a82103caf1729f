"""The charts of an audit's page: shares, pair biases, and pair biases along z."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from evenslice.report.audit.questions import attentions, method_name
from evenslice.report.base import style
from evenslice.report.base.drawing import NARROW, WIDTH, Drawing
from evenslice.report.base.wording import MINUS, one_line, signed
from evenslice.results import PairBias, split_biases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import AuditResult, BiasParts, Interval, Measurements

BINS_ALONG_Z: Final = 60
TALLEST: Final = 150.0  # inches; files cannot hold pictures of more than 65,535 pixels

SECOND_MARKER: Final = "x"

PARTS: Final = ("model part (the network)", "data part (the content)")


def shares_figure(audits: Sequence[AuditResult]) -> Drawing:
    """Draw the mean share of each slice with its interval, the audits side by side."""
    return Drawing(
        "shares",
        "How the attention is shared among the slices",
        f"A fair network has bars of the same height at {MINUS}k and +k. The dashed line is an even split, "
        "and the thin lines on the bars are 95 % intervals.",
        *(_draw_shares(audits, narrow=narrow) for narrow in (False, True)),
    )


def _draw_shares(audits: Sequence[AuditResult], *, narrow: bool) -> Figure:
    figure = _figure(3.6, audits, narrow=narrow)
    axes = figure.add_subplot(xlabel="slice of the window (0 is the middle)", ylabel="share of the attention")
    axes.grid(visible=False, axis="x")
    width = 0.8 / max(len(audits), 2)
    for index, audit in enumerate(audits):
        x = np.array(audit.offsets) + width * (index - (len(audits) - 1) / 2)
        axes.bar(x, [share.estimate for share in audit.shares], width * 0.92, color=style.audit_colour(index))
        low, high = np.clip([[share.low, share.high] for share in audit.shares], 0, 1).T
        axes.vlines(x, low, high, color=style.INK, linewidth=1.4)
    for slices in {len(audit.shares) for audit in audits}:
        axes.hlines(1 / slices, -slices / 2, slices / 2, color=style.QUIET, linestyle="--", linewidth=1)
    half = max(len(audit.shares) // 2 for audit in audits)
    step = math.ceil((2 * half + 1) / (15 if narrow else 41))  # labels that do not touch
    ticks = sorted({sign * k for k in range(0, half + 1, step) for sign in (-1, 1)})
    axes.set_xticks(ticks, [signed(k) for k in ticks])
    return figure


def biases_figure(audits: Sequence[AuditResult]) -> Drawing:
    """Draw the distribution of each pair bias over the windows, model part and data part, with mean and interval."""
    second = any(audit.statistics.second_opinion for audit in audits)
    shown = [part for audit in audits for part in attentions(audit) if part.class_number is None]
    pale = any(not pair.judged for part in shown for pair in part.pairs)
    return Drawing(
        "biases",
        "Which side of each pair is favoured",
        "Each hill is the distribution over windows, and the marker below it the mean with its 95 % interval"
        + ("; the cross below is the mean by the second method, on part of the windows" if second else "")
        + ". Attention is equal if markers and intervals under the model part lie within the shaded tolerance; the data "
        "part shows what the content adds."
        + (
            " Pale markers belong to pairs with so little attention that they are not judged." if pale else ""
        ),
        *(_draw_biases(audits, narrow=narrow) for narrow in (False, True)),
    )


def _draw_biases(audits: Sequence[AuditResult], *, narrow: bool) -> Figure:
    most = _most_pairs(audits)
    rows = [(k, i) for k in range(1, most + 1) for i, audit in enumerate(audits) if k <= len(audit.pairs)]
    parts = [split_biases(audit.measurements) for audit in audits]
    limit = _limit(audits, parts)
    height = min(0.5 * len(rows), TALLEST)
    size = (NARROW, 1.9 + 2 * height) if narrow else (WIDTH, 1.4 + height)
    figure = Figure(figsize=size, layout="constrained")
    columns = figure.subplots(*((2, 1) if narrow else (1, 2)), sharex=True, sharey=True)
    for y, (k, i) in enumerate(rows):
        statistics = audits[i].statistics
        edge, second = statistics.tolerance, statistics.second_opinion
        columns[0].fill_betweenx([y - 0.6, y + 0.4], -edge, edge, color=style.BAND, linewidth=0, zorder=0.5)
        for axes, values in zip(columns, parts[i], strict=True):
            _ridge(axes, values[:, k - 1], y, limit, style.audit_colour(i))
        _mark(columns[0], statistics.pairs[k - 1], y + 0.14, limit, i)
        _mark(columns[1], statistics.data_pairs[k - 1], y + 0.14, limit, i)
        if second is not None:
            _mark(columns[0], second.pairs[k - 1], y + 0.29, limit, i, marker=SECOND_MARKER)
    labels = [_row_label(audits[i], k, 14 if narrow else 20, several=most > 1) for k, i in rows]
    columns[0].set_yticks(range(len(rows)), labels)
    columns[0].set_ylim(len(rows) - 0.5, -0.7)
    columns[0].set_xlim(-limit, limit)
    for axes, title in zip(columns, PARTS, strict=True):
        axes.set_title(title)
        axes.axvline(0, color=style.QUIET, linewidth=1)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    for axes in columns[1:] if narrow else columns:
        axes.set_xlabel(
            "← before · pair bias · after →" if narrow else "← slice before · pair bias · slice after →"
        )
    _legend_of_methods(figure, audits)
    return figure


def _row_label(audit: AuditResult, k: int, longest: int, *, several: bool) -> str:
    label = one_line(audit.name, longest) + (f", k = {k}" if several else "")
    return label if audit.pairs[k - 1].judged else f"{label}\n(not judged)"


def _legend_of_methods(figure: Figure, audits: Sequence[AuditResult]) -> None:
    """Say which marker is which method, if there are two."""
    seconds = [audit.statistics.second_opinion for audit in audits]
    first = {method_name(audit.run.method) for audit in audits}
    second = {method_name(item.method) for item in seconds if item is not None}
    if not second:
        return
    names = (
        first.pop() if len(first) == 1 else "first method",
        second.pop() if len(second) == 1 else "second method",
    )
    handles = [
        Line2D([], [], color=style.INK, linewidth=2, marker=marker, markersize=5, label=one_line(name))
        for name, marker in zip(names, (style.audit_marker(0), SECOND_MARKER), strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)


def course_figure(audits: Sequence[AuditResult]) -> Drawing:
    """Draw the pair biases along z, one row for each pair, with the volumes one after another."""
    return Drawing(
        "course",
        "Pair bias along z",
        "Lines are means of neighbouring windows, and pale bands hold the middle 80 % of them. A bias of the network "
        "stays on one side of zero; a bias of the content varies along z.",
        *(_draw_course(audits, narrow=narrow) for narrow in (False, True)),
    )


def _draw_course(audits: Sequence[AuditResult], *, narrow: bool) -> Figure:
    """Draw model and data part side by side or, on narrow screens, one below the other."""
    most = _most_pairs(audits)
    spans = _line_up([audit for audit in audits if audit.pairs])
    parts = [split_biases(audit.measurements) for audit in audits]
    figure = _figure((1.4 + 3.4 * most) if narrow else (1.2 + 1.6 * most), audits, narrow=narrow)
    shape = (2 * most, 1) if narrow else (most, 2)
    grid = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).reshape(most, 2)
    for i, audit in enumerate(audits):
        edge = audit.statistics.tolerance
        for k in range(len(audit.pairs)):
            grid[k, 0].axhspan(-edge, edge, color=style.BAND, linewidth=0, zorder=0.5)
            for axes, values in zip(grid[k], parts[i], strict=True):
                _course(axes, audit.measurements, values[:, k], spans, style.audit_colour(i))
    limit = _limit(audits, parts)
    grid[0, 0].set_ylim(-limit, limit)
    for axes in grid.ravel():
        axes.axhline(0, color=style.QUIET, linewidth=1)
    for k, pair in enumerate(grid, start=1):
        for axes in pair if narrow else pair[:1]:
            axes.set_ylabel("pair bias" + (f", k = {k}" if most > 1 else ""))
    for pair in grid if narrow else grid[:1]:
        for axes, title in zip(pair, PARTS, strict=True):
            axes.set_title(title)
    for axes in grid[-1, 1:] if narrow else grid[-1]:
        _label_course(axes, spans, 5 if narrow else 8)
    return figure


def _figure(height: float, audits: Sequence[AuditResult], *, narrow: bool) -> Figure:
    """Return a figure with a legend of the audits, unless there is only one."""
    columns = 2 if narrow else 4
    lines = math.ceil(len(audits) / columns)
    figure = Figure(
        figsize=(NARROW if narrow else WIDTH, min(height + 0.22 * (lines - 1), TALLEST)), layout="constrained"
    )
    if len(audits) > 1:
        handles = [
            Patch(color=style.audit_colour(i), label=one_line(audit.name, 22 if narrow else 28))
            for i, audit in enumerate(audits)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), columns))
    return figure


def _most_pairs(audits: Sequence[AuditResult]) -> int:
    return max(len(audit.pairs) for audit in audits)


def _limit(audits: Sequence[AuditResult], parts: Sequence[BiasParts]) -> float:
    """Return the half-width of an axis for all biases, means and finite ends of intervals, by both methods.

    It is at least three times the tolerance and at most a little over 1, which no bias exceeds.
    """
    tolerance = max(audit.statistics.tolerance for audit in audits)
    means = [
        end
        for audit in audits
        for pairs in (
            audit.pairs,
            audit.statistics.data_pairs,
            audit.statistics.second_opinion.pairs if audit.statistics.second_opinion else (),
        )
        for pair in pairs
        for end in (pair.estimate, pair.low, pair.high)
    ]
    values = np.concatenate([*(array.ravel() for part in parts for array in part), means])
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    return 1.05 * min(max(3 * tolerance, largest), 1.0)


def _ridge(axes: Axes, values: NDArray[np.float64], y: float, limit: float, colour: str) -> None:
    """Draw the distribution of values as a hill of height 0.5 on the line ``y``; zero is the centre of a bin."""
    counts, edges = np.histogram(values[np.isfinite(values)], bins=61, range=(-limit, limit))
    heights = y - 0.5 * counts / max(counts.max(), 1)
    axes.stairs(heights, edges, baseline=y, fill=True, color=colour, alpha=0.4, linewidth=0)
    axes.plot([-limit, limit], [y, y], color=style.GRID, linewidth=0.8, zorder=1)


def _mark(axes: Axes, mean: Interval, y: float, limit: float, index: int, marker: str | None = None) -> None:
    """Draw a mean and its interval, which may be infinite, at the height ``y``; pale if it is not judged."""
    colour = style.audit_colour(index)
    alpha = 0.35 if isinstance(mean, PairBias) and not mean.judged else 1.0
    axes.plot(
        np.clip([mean.low, mean.high], -limit, limit),
        [y, y],
        color=colour,
        alpha=alpha,
        linewidth=1.2 if marker else 2.5,
        solid_capstyle="butt",
    )
    axes.plot(
        mean.estimate, y, color=colour, alpha=alpha, marker=marker or style.audit_marker(index), markersize=5
    )


@dataclass(frozen=True)
class _Span:
    """Place of a volume on the common axis: its slices ``first`` to ``last`` start at ``begin``."""

    first: int
    last: int
    begin: int


def _line_up(audits: Sequence[AuditResult]) -> dict[int, _Span]:
    """Place volumes one after another along one axis; a single volume keeps its own z."""
    volume = np.concatenate([audit.measurements.volume for audit in audits])
    z = np.concatenate([audit.measurements.position[:, 0] for audit in audits])
    spans: dict[int, _Span] = {}
    begin = 0
    for v in np.unique(volume).tolist():
        first, last = int(z[volume == v].min()), int(z[volume == v].max())
        spans[v] = _Span(first, last, begin)
        begin += last - first + 2
    if len(spans) == 1:
        spans = {v: _Span(span.first, span.last, span.first) for v, span in spans.items()}
    return spans


def _course(
    axes: Axes, measurements: Measurements, values: NDArray[np.float64], spans: dict[int, _Span], colour: str
) -> None:
    """Draw the mean of a quantity along z, with a band that holds the middle 80 % of neighbouring windows."""
    width = max(1, math.ceil(sum(span.last - span.first + 1 for span in spans.values()) / BINS_ALONG_Z))
    for volume, span in spans.items():
        mine = (measurements.volume == volume) & np.isfinite(values)
        bins = (measurements.position[mine, 0] - span.first) // width
        steps = np.unique(bins)
        groups = [values[mine][bins == step] for step in steps]
        x = span.begin + np.minimum(steps * width + (width - 1) / 2, span.last - span.first)
        low, high = ([float(np.quantile(group, q)) for group in groups] for q in (0.1, 0.9))
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, [float(group.mean()) for group in groups], color=colour, linewidth=1.6)


def _label_course(axes: Axes, spans: dict[int, _Span], most: int) -> None:
    """Label the axis: with the slices of a single volume, or with at most so many of the volumes."""
    if len(spans) == 1:
        axes.set_xlabel("z, in slices")
        return
    axes.set_xlabel("volume, one after another along z")
    shown = list(spans)[:: math.ceil(len(spans) / most)]
    axes.set_xticks([spans[v].begin for v in shown], [str(v + 1) for v in shown])
