"""The charts of an audit's page: shares of the saliency, pair biases of saliency and reliance, kernels of the stems."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evenslice.report import style
from evenslice.report.formatting import MINUS, one_line, signed
from evenslice.report.stress_chart import StressItem, stress_figure
from evenslice.report.stress_tables import stressed
from evenslice.report.style import TALLEST, WIDTH, Drawing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import AuditResult

    Block = tuple[
        str, NDArray[np.float32], Sequence[str]
    ]  # title, kernels (filters, inputs, ky, kx), names of inputs

MOST_TICKS: Final = 21
LEGEND: Final = 3  # names in a line
FILTERS_SHOWN: Final = 8
INPUTS_SHOWN: Final = 24
IN_A_ROW: Final = 4  # blocks of kernels
KERNELS: Final = 2.6  # height of a row of blocks in inches


def audit_charts(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw the charts of the page; call it inside ``style.settings()``."""
    charts = [shares_figure(audits)]
    if any(audit.pairs for audit in audits):
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
    """Draw the pair biases of saliency and reliance with their intervals, the audits side by side."""
    most = max(len(audit.pairs) for audit in audits)
    rows = [(k, i) for k in range(most) for i, audit in enumerate(audits) if k < len(audit.pairs)]
    labels = [one_line(audits[i].name, 18) + (f", k = {k + 1}" if most > 1 else "") for k, i in rows]
    figure = Figure(figsize=(WIDTH, 1.2 + min(0.34 * len(rows), TALLEST)), layout="constrained")
    columns = figure.subplots(1, 2, sharex=True, sharey=True)
    pairs = [pair for audit in audits for pair in (*audit.pairs, *audit.reliance)]
    ends = [abs(end) for pair in pairs for end in (pair.estimate, pair.low, pair.high) if math.isfinite(end)]
    tolerance = max(audit.statistics.tolerance for audit in audits)
    reach = 1.05 * min(max([3 * tolerance, *ends]), 1.0)
    for axes, title in zip(columns, ("saliency", "reliance"), strict=True):
        for y, (k, i) in enumerate(rows):
            edge = audits[i].statistics.tolerance
            axes.fill_betweenx([y - 0.5, y + 0.5], -edge, edge, color=style.BAND, linewidth=0, zorder=0.5)
            found = audits[i].pairs if title == "saliency" else audits[i].reliance
            if k < len(found):
                style.draw_interval(axes, y, found[k], i, reach, 1.0 if found[k].judged else 0.35)
        axes.set_title(title)
        axes.set_xlabel("← before · pair bias · after →")
        style.name_rows(axes, range(len(rows)), labels, len(rows) - 0.4)
    columns[0].set_xlim(-reach, reach)
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


def _blocks(audits: Sequence[AuditResult], stem: str) -> list[Block]:
    """Collect the stem's kernels: what they were before, each state once, and what became of them in every audit.

    Where nothing changed, or the state before is not known, there is one block under the name of the audit.
    """
    blocks: list[Block] = []
    for audit in audits:
        for before, after in [(found.before, found.after) for found in audit.kernels if found.name == stem]:
            known = [kernels for _, kernels, _ in blocks] + [after]
            if not any(np.array_equal(before, kernels) for kernels in known):
                blocks.append(("before", before, [*"RGB"] if before.shape[1] == 3 else []))
            offsets = [signed(k) for k in audit.offsets]
            blocks.append((audit.name, after, offsets if after.shape[1] == len(offsets) else []))
    return blocks


def _draw_kernels(blocks: Sequence[Block]) -> Figure:
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
        axes.set_axis_on()
        axes.set_title(one_line(title, 20), fontsize=9)
        _name_inputs(axes, kernels, inputs)
    look: dict[str, Any] = {"location": "bottom", "shrink": 0.4, "aspect": 30, "extend": "both"}
    figure.colorbar(weights, ax=places.tolist(), label="weight", **look)
    return figure


def _mosaic(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return filters (filters, inputs, ky, kx) as one picture, one row for each, with gaps of NaN between kernels."""
    filters, inputs, ky, kx = kernels[:, :INPUTS_SHOWN].shape
    gap = _gap(kernels)
    picture = np.full((filters, inputs, ky + gap, kx + gap), np.nan, dtype=np.float32)
    picture[:, :, :ky, :kx] = kernels[:, :INPUTS_SHOWN]
    return picture.transpose(0, 2, 1, 3).reshape(filters * (ky + gap), inputs * (kx + gap))


def _gap(kernels: NDArray[np.float32]) -> int:
    ky, kx = kernels.shape[2:]
    return max(1, int(min(ky, kx)) // 8)


def _name_inputs(axes: Axes, kernels: NDArray[np.float32], names: Sequence[str]) -> None:
    """Name the inputs below their kernels, or say how many there are."""
    total, width = kernels.shape[1], kernels.shape[3]
    inputs = min(total, INPUTS_SHOWN)
    places = [i * (width + _gap(kernels)) + (width - 1) / 2 for i in range(inputs)]
    label = f"{total} inputs" if total == inputs else f"first {inputs} of {total} inputs"
    named = bool(names) and total <= IN_A_ROW + 3
    axes.set_xticks(places if named else [float(np.mean(places))], names if named else [label], fontsize=8)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
