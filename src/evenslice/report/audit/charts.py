"""The charts of an audit's page: shares of the saliency, and the pair biases of saliency and reliance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evenslice.report.base import style
from evenslice.report.base.drawing import MEDIUM, Drawing
from evenslice.report.base.wording import MINUS, one_line, signed
from evenslice.results import PairBias, halves, model_part, pair_bias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import AuditResult

    Floats = NDArray[np.float64]

TALLEST: Final = 150.0  # inches; files cannot hold pictures of more than 65,535 pixels
MOST_TICKS: Final = 21
LEGEND: Final = 3  # names in a line


def shares_figure(audits: Sequence[AuditResult]) -> Drawing:
    """Draw the mean share of each slice in the saliency with its interval, the audits side by side."""
    lines = math.ceil(len(audits) / LEGEND)
    height = min(3.2 + 0.22 * (lines - 1), TALLEST)
    figure = Figure(figsize=(MEDIUM, height), layout="constrained")
    axes = figure.add_subplot(xlabel="slice of the window (0 is the middle)", ylabel="share of the saliency")
    axes.grid(visible=False, axis="x")
    width = 0.8 / max(len(audits), 2)
    for index, audit in enumerate(audits):
        x = np.array(audit.offsets) + width * (index - (len(audits) - 1) / 2)
        label = one_line(audit.name, 24)
        heights = [share.estimate for share in audit.shares]
        axes.bar(x, heights, width * 0.92, color=style.audit_colour(index), label=label)
        low, high = np.clip([[share.low, share.high] for share in audit.shares], 0, 1).T
        axes.vlines(x, low, high, color=style.INK, linewidth=1.4)
    for slices in {len(audit.shares) for audit in audits}:
        axes.hlines(1 / slices, -slices / 2, slices / 2, color=style.QUIET, linestyle="--", linewidth=1)
    half = max(len(audit.shares) // 2 for audit in audits)
    step = math.ceil((2 * half + 1) / MOST_TICKS)  # labels that do not touch
    ticks = sorted({sign * k for k in range(0, half + 1, step) for sign in (-1, 1)})
    axes.set_xticks(ticks, [signed(k) for k in ticks])
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
    """Draw the pair biases of saliency and reliance: their distribution over windows, the figure and its interval."""
    most = max(len(audit.pairs) for audit in audits)
    rows = [(k, i) for k in range(1, most + 1) for i, audit in enumerate(audits) if k <= len(audit.pairs)]
    figure = Figure(figsize=(MEDIUM, 1.4 + min(0.5 * len(rows), TALLEST)), layout="constrained")
    columns = figure.subplots(1, 2, sharex=True, sharey=True)
    limit = _limit(audits)
    for axes, title in zip(columns, ("saliency", "reliance"), strict=True):
        hills = [_saliency(audit) if title == "saliency" else _reliance(audit) for audit in audits]
        for y, (k, i) in enumerate(rows):
            edge = audits[i].statistics.tolerance
            axes.fill_betweenx([y - 0.6, y + 0.4], -edge, edge, color=style.BAND, linewidth=0, zorder=0.5)
            _ridge(axes, hills[i], k, y, limit, style.audit_colour(i))
            pairs = audits[i].pairs if title == "saliency" else audits[i].reliance
            if len(pairs) >= k:
                _mark(axes, pairs[k - 1], y + 0.14, limit, i)
        axes.set_title(title)
        axes.axvline(0, color=style.QUIET, linewidth=1)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("← before · pair bias · after →")
    labels = [one_line(audits[i].name, 18) + (f", k = {k}" if most > 1 else "") for k, i in rows]
    columns[0].set_yticks(range(len(rows)), labels)
    columns[0].set_ylim(len(rows) - 0.5, -0.7)
    columns[0].set_xlim(-limit, limit)
    columns[0].xaxis.set_major_locator(MaxNLocator(4))
    pale = any(not pair.judged for audit in audits for pair in (*audit.pairs, *audit.reliance))
    return Drawing(
        "biases",
        "Which side of each pair is favoured",
        "Each hill is the distribution over windows, and the marker below it the figure with its 95 % interval. A pair is "
        "fair if that lies within the shaded tolerance."
        + (" Pale markers belong to pairs that count so little that they are not judged." if pale else ""),
        figure,
    )


def _saliency(audit: AuditResult) -> tuple[Floats, Floats] | None:
    """Return the pair bias (n, K) of the saliency of each window, and its weight; None if it is not known."""
    if audit.measurements is None:
        return None
    shares = audit.measurements.shares
    bias = model_part(pair_bias(shares[:, 0]), pair_bias(shares[:, 1]))
    return bias, np.ones_like(bias)


def _reliance(audit: AuditResult) -> tuple[Floats, Floats] | None:
    """Return the same of the reliance, in which windows weigh what replacing their slices changes."""
    if audit.measurements is None:
        return None
    sums = audit.measurements.reliance[:, :, 0].sum(axis=1)
    left, right = halves(sums)
    return pair_bias(sums), left + right


def _limit(audits: Sequence[AuditResult]) -> float:
    """Return the half-width of an axis for all biases: three times the tolerance at least, a little over 1 at most."""
    ends = [
        abs(end)
        for audit in audits
        for pair in (*audit.pairs, *audit.reliance)
        for end in (pair.estimate, pair.low, pair.high)
        if math.isfinite(end)
    ]
    tolerance = max(audit.statistics.tolerance for audit in audits)
    return 1.05 * min(max([3 * tolerance, *(1.5 * end for end in ends)]), 1.0)


def _ridge(
    axes: Axes, found: tuple[Floats, Floats] | None, k: int, y: float, limit: float, colour: str
) -> None:
    """Draw the distribution of pair k as a hill of height 0.5 on the line ``y``; zero is the centre of a bin."""
    axes.plot([-limit, limit], [y, y], color=style.GRID, linewidth=0.8, zorder=1)
    if found is None:
        return
    values, weights = (part[:, k - 1] for part in found)
    known = np.isfinite(values) & (weights > 0)
    counts, edges = np.histogram(values[known], bins=61, range=(-limit, limit), weights=weights[known])
    if counts.any():
        heights = y - 0.5 * counts / counts.max()
        axes.stairs(heights, edges, baseline=y, fill=True, color=colour, alpha=0.4, linewidth=0)


def _mark(axes: Axes, pair: PairBias, y: float, limit: float, index: int) -> None:
    """Draw a figure and its interval, which may be infinite, at the height ``y``; pale if it is not judged."""
    colour, alpha = style.audit_colour(index), 1.0 if pair.judged else 0.35
    ends = np.clip([pair.low, pair.high], -limit, limit)
    axes.plot(ends, [y, y], color=colour, alpha=alpha, linewidth=2.5, solid_capstyle="butt")
    axes.plot(pair.estimate, y, color=colour, alpha=alpha, marker=style.audit_marker(index), markersize=5)
