"""The chart of what disturbed slices cost: the loss of Dice at -k and at +k, side by side, for each kind.

stress_figure([StressItem("pretrained", 0, (summary,)), StressItem("uniform", 1, (other,))])
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evenslice.report import style
from evenslice.report.formatting import MINUS, few_lines, listed, one_line
from evenslice.report.stress_tables import lost
from evenslice.report.style import TALLEST, WIDTH, Drawing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from evenslice.results import StressSummary

__all__ = ["StressItem", "stress_figure"]

ROW: Final = 0.17  # inches for each item, as long as the figure is not taller than ``TALLEST``
FARTHEST: Final = 3  # offset that is drawn


@dataclass(frozen=True)
class StressItem:
    """A network, or an arm of a study, in the chart.

    Attributes:
        name: its name.
        index: that of its colour, see ``style.audit_colour``.
        summaries: what disturbed slices cost it: one, or one for each run, of which the chart shows the mean.
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
    heights = [0.5 + ROW * len(rows) * (len(members) + 1) for members in blocks.values()]
    figure = Figure(figsize=(WIDTH, 1.0 + min(sum(heights), TALLEST)), layout="constrained")
    grid = figure.subplots(len(blocks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, members) in zip(grid, blocks.items(), strict=True):
        _draw_block(axes, members, rows)
        axes.set_title(one_line(title, 60))
    grid[-1].set_xlabel("loss of Dice")
    names = {item.name: item.index for item in items}
    handles = [
        Line2D(
            [], [], color=style.audit_colour(index), marker=style.audit_marker(index), label=few_lines(name)
        )
        for name, index in names.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    agreement = all(summary.reference != "labels" for item in items for summary in item.summaries)
    reading = (
        f"{'Agreement with the intact answer' if agreement else 'Dice'} lost when one neighbouring slice is missing (the middle "
        f"slice in its place), blank, noisy or shifted: filled at {MINUS}k, hollow at +k. Where a symmetric network has them "
        "apart, the data differ, not the network."
    )
    empty = [item.name for item in items if all(math.isnan(summary.intact) for summary in item.summaries)]
    if empty:
        reading += (
            f" No class but 0 was found by {listed([one_line(name) for name in dict.fromkeys(empty)])}."
        )
    return Drawing("stress", "What a disturbed slice costs", reading, figure)


def _draw_block(axes: Axes, items: Sequence[StressItem], rows: Sequence[tuple[str, int]]) -> None:
    """Draw a line for each item in a group for each kind and offset: from the loss at -k to that at +k."""
    for row, (kind, offset) in enumerate(rows):
        for place, item in enumerate(items):
            ends = []
            for side in ("before", "after"):
                values = [lost(summary, kind, offset, side) for summary in item.summaries]
                known = [value for value in values if not math.isnan(value)]
                ends.append(float(np.mean(known)) if known else math.nan)
            y, colour = row * (len(items) + 1) + place, style.audit_colour(item.index)
            axes.plot(ends, [y, y], color=colour, linewidth=1.5)
            for end, fill in zip(ends, (colour, "none"), strict=True):
                marker = style.audit_marker(item.index)
                axes.plot(end, y, color=colour, marker=marker, markerfacecolor=fill, markersize=5)
    several = any(offset > 1 for _, offset in rows)
    labels = [one_line(kind, 12) + (f", k = {offset}" if several else "") for kind, offset in rows]
    places = [row * (len(items) + 1) + (len(items) - 1) / 2 for row in range(len(rows))]
    style.name_rows(axes, places, labels, len(rows) * (len(items) + 1) - 1)
