"""The charts of an audit's page: shares, pair biases, and pair biases along z."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from evenslice.report.base import style
from evenslice.report.base.drawing import WIDTH, Drawing
from evenslice.report.base.wording import MINUS, one_line, signed
from evenslice.results import split_biases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import AuditResult, BiasParts, Interval, Measurements

BINS_ALONG_Z: Final = 60

PARTS: Final = ("model part (the network)", "data part (the content)")


def shares_figure(audits: Sequence[AuditResult]) -> Drawing:
    """Draw the mean share of each slice with its interval, the audits side by side."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
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
    axes.set_xticks(range(-half, half + 1), [signed(k) for k in range(-half, half + 1)])
    _legend(figure, audits)
    return Drawing(
        "shares",
        "How the attention is shared among the slices",
        f"A fair network has bars of the same height at {MINUS}k and +k. The dashed line is an even split, "
        "and the thin dark "
        "lines on the bars are 95 % intervals.",
        figure,
    )


def biases_figure(audits: Sequence[AuditResult]) -> Drawing:
    """Draw the distribution of each pair bias over the windows, model part and data part, with mean and interval."""
    most = _most_pairs(audits)
    rows = [(k, i) for k in range(1, most + 1) for i, audit in enumerate(audits) if k <= len(audit.pairs)]
    parts = [split_biases(audit.measurements) for audit in audits]
    limit = _limit(audits, parts)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.45 * len(rows)), layout="constrained")
    columns = figure.subplots(1, 2, sharex=True, sharey=True)
    for y, (k, i) in enumerate(rows):
        statistics = audits[i].statistics
        edge = statistics.tolerance
        columns[0].fill_betweenx([y - 0.6, y + 0.4], -edge, edge, color=style.BAND, linewidth=0, zorder=0.5)
        for axes, values, means in zip(
            columns, parts[i], (statistics.pairs, statistics.data_pairs), strict=True
        ):
            _ridge(axes, values[:, k - 1], y, limit, style.audit_colour(i))
            _mark(axes, means[k - 1], y + 0.2, limit, i)
    labels = [one_line(audits[i].name, 20) + (f", k = {k}" if most > 1 else "") for k, i in rows]
    columns[0].set_yticks(range(len(rows)), labels)
    columns[0].set_ylim(len(rows) - 0.5, -0.7)
    columns[0].set_xlim(-limit, limit)
    for axes, title in zip(columns, PARTS, strict=True):
        axes.set_title(title)
        axes.set_xlabel("← slice before · pair bias · slice after →")
        axes.axvline(0, color=style.QUIET, linewidth=1)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    return Drawing(
        "biases",
        "Which side of each pair is favoured",
        "Each hill is the distribution over windows, and the marker below it the mean with its 95 % "
        "interval. A network is "
        "fair if its markers on the left lie within the shaded tolerance; the right side shows what the content adds.",
        figure,
    )


def course_figure(audits: Sequence[AuditResult]) -> Drawing:
    """Draw the pair biases along z, one row for each pair, with the volumes one after another."""
    most = _most_pairs(audits)
    spans = _line_up([audit for audit in audits if audit.pairs])
    parts = [split_biases(audit.measurements) for audit in audits]
    figure = Figure(figsize=(WIDTH, 1.2 + 1.6 * most), layout="constrained")
    grid = figure.subplots(most, 2, sharex=True, sharey=True, squeeze=False)
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
    for k, axes in enumerate(grid[:, 0], start=1):
        axes.set_ylabel("pair bias" + (f", k = {k}" if most > 1 else ""))
    for axes, title in zip(grid[0], PARTS, strict=True):
        axes.set_title(title)
    for axes in grid[-1]:
        _label_course(axes, spans)
    _legend(figure, audits)
    return Drawing(
        "course",
        "Pair bias along z",
        "Lines are means of neighbouring windows, and pale bands hold the middle 80 % of them. A bias of the network "
        "stays on one side of zero; a bias of the content varies along z.",
        figure,
    )


def _most_pairs(audits: Sequence[AuditResult]) -> int:
    return max(len(audit.pairs) for audit in audits)


def _limit(audits: Sequence[AuditResult], parts: Sequence[BiasParts]) -> float:
    """Return the half-width of an axis for all biases and at least three times the tolerance, at most a little over 1."""
    tolerance = max(audit.statistics.tolerance for audit in audits)
    values = np.concatenate([array.ravel() for part in parts for array in part])
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    return 1.05 * min(max(3 * tolerance, largest), 1.0)


def _legend(figure: Figure, audits: Sequence[AuditResult]) -> None:
    """Add a legend of the audits above a figure, unless there is only one."""
    if len(audits) > 1:
        handles = [
            Patch(color=style.audit_colour(i), label=one_line(audit.name)) for i, audit in enumerate(audits)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4))


def _ridge(axes: Axes, values: NDArray[np.float64], y: float, limit: float, colour: str) -> None:
    """Draw the distribution of values as a hill of height 0.5 on the line ``y``; zero is the centre of a bin."""
    counts, edges = np.histogram(values[np.isfinite(values)], bins=61, range=(-limit, limit))
    heights = y - 0.5 * counts / max(counts.max(), 1)
    axes.stairs(heights, edges, baseline=y, fill=True, color=colour, alpha=0.4, linewidth=0)
    axes.plot([-limit, limit], [y, y], color=style.GRID, linewidth=0.8, zorder=1)


def _mark(axes: Axes, mean: Interval, y: float, limit: float, index: int) -> None:
    """Draw a mean and its interval, which may be infinite, at the height ``y``."""
    colour = style.audit_colour(index)
    axes.plot(
        np.clip([mean.low, mean.high], -limit, limit),
        [y, y],
        color=colour,
        linewidth=2.5,
        solid_capstyle="butt",
    )
    axes.plot(mean.estimate, y, color=colour, marker=style.audit_marker(index), markersize=5)


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


def _label_course(axes: Axes, spans: dict[int, _Span]) -> None:
    """Label the axis: with the slices of a single volume, or with about eight of the volumes."""
    if len(spans) == 1:
        axes.set_xlabel("z, in slices")
        return
    axes.set_xlabel("volume, one after another along z")
    shown = list(spans)[:: math.ceil(len(spans) / 8)]
    axes.set_xticks([spans[v].begin for v in shown], [str(v + 1) for v in shown])
