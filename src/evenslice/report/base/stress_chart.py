"""The chart of what disturbed slices cost: the loss of Dice at -k and at +k, side by side, for each kind.

    stress_figure([StressItem("pretrained", 0, (summary,)), StressItem("uniform", 1, (other,))])

It is narrow enough to be read on a telephone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from evenslice.report.base import style
from evenslice.report.base.drawing import Drawing
from evenslice.report.base.wording import MINUS, few_lines, listed, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes

    from evenslice.results import StressSummary

__all__ = ["StressItem", "stress_figure"]

NARROW: Final = 5.6
"""Width in inches: its text is legible where the figure is 420 pixels wide."""

AFTER_OPACITY: Final = 0.45
ROW: Final = 0.17
"""Height of a bar in inches, as long as the figure is not taller than ``TALLEST``."""

TALLEST: Final = 150.0
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
    rows = {title: _rows(members) for title, members in blocks.items()}
    heights = [0.5 + ROW * sum(2 * len(blocks[title]) + 1 for _ in rows[title]) for title in blocks]
    figure = Figure(figsize=(NARROW, 1.0 + min(sum(heights), TALLEST)), layout="constrained")
    grid = figure.subplots(len(blocks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, members) in zip(grid, blocks.items(), strict=True):
        _draw_block(axes, members, rows[title])
        axes.set_title(one_line(title, 60))
    grid[-1].set_xlabel("loss of Dice")
    names = {item.name: item.index for item in items}
    handles = (
        [Patch(**_look(index), label=few_lines(name)) for name, index in names.items()]
        if len(names) > 1
        else []
    )
    handles += [
        Patch(color=style.QUIET, label=f"slice at {MINUS}k"),
        Patch(color=style.QUIET, alpha=AFTER_OPACITY, label="slice at +k"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=9)
    several = any(len(item.summaries) > 1 for item in items)
    cut = any(offset > FARTHEST for item in items for _, offset in _disturbed(item))
    agreement = all(summary.reference != "labels" for item in items for summary in item.summaries)
    return Drawing(
        "stress",
        "What a disturbed slice costs",
        f"{'Agreement with the intact answer' if agreement else 'Dice'} lost when one neighbouring slice is "
        f"{_kinds(rows.values())}. "
        f"Where a symmetric network has bars of unequal length at {MINUS}k and +k, the data differ, not the network."
        + (" Bars are means over runs, and dots single runs." if several else "")
        + ("" if several or any(blocks) else _intact(items))
        + _nothing(items)
        + (f" Slices more than {FARTHEST} away from the middle are not drawn." if cut else ""),
        figure,
    )


def _intact(items: Sequence[StressItem]) -> str:
    """Return a sentence that says what the losses are losses of; empty where there were no labels."""
    scores = [
        (item.name, summary.intact)
        for item in items
        for summary in item.summaries
        if summary.reference == "labels" and not math.isnan(summary.intact)
    ]
    told = [f"{score:.3f} ({one_line(name)})" if len(items) > 1 else f"{score:.3f}" for name, score in scores]
    return f" With intact slices, the Dice is {listed(told)}." if told else ""


def _nothing(items: Sequence[StressItem]) -> str:
    """Return a sentence that says why there are no bars of items, if so; empty if all have some."""
    empty = [item.name for item in items if all(math.isnan(summary.intact) for summary in item.summaries)]
    if not empty:
        return ""
    names = listed([one_line(name) for name in dict.fromkeys(empty)])
    where = "these slices" if len(items) == 1 else f"the slices of {names}"
    return f" In {where}, no class but 0 was found, so there is nothing to lose."


def _kinds(rows: Iterable[Sequence[tuple[str, int]]]) -> str:
    """Say which disturbances are drawn, in the order of the rows: ``"missing (...), blank or noisy"``."""
    drawn = dict.fromkeys(kind for row in rows for kind, _ in row)
    words = [f"{kind} (the middle slice in its place)" if kind == "missing" else kind for kind in drawn]
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _rows(items: Sequence[StressItem]) -> list[tuple[str, int]]:
    """Return the kinds and offsets that any item has and that are drawn, in their order."""
    found = [key for item in items for key in _disturbed(item)]
    return [key for key in dict.fromkeys(found) if key[1] <= FARTHEST]


def _disturbed(item: StressItem) -> list[tuple[str, int]]:
    """Return the kind and the offset of every loss of an item."""
    return [(loss.kind, loss.offset) for summary in item.summaries for loss in summary.losses]


def _draw_block(axes: Axes, items: Sequence[StressItem], rows: Sequence[tuple[str, int]]) -> None:
    """Draw a group of bars for each kind and offset: two for each item, that of -k above."""
    group = 2 * len(items) + 1
    several = max((offset for _, offset in rows), default=1) > 1
    for row, key in enumerate(rows):
        for place, item in enumerate(items):
            for side, losses in enumerate(_losses(item, key)):
                y = row * group + 2 * place + side
                known = [loss for loss in losses if not math.isnan(loss)]
                if known:
                    alpha = AFTER_OPACITY if side else 1.0
                    axes.barh(y, float(np.mean(known)), 0.92, alpha=alpha, **_look(item.index))
                if len(known) > 1:
                    axes.plot(
                        known, [y] * len(known), color=style.INK, linestyle="none", marker=".", markersize=3
                    )
    axes.axvline(0, color=style.QUIET, linewidth=1)
    labels = [one_line(kind, 12) + (f", k = {offset}" if several else "") for kind, offset in rows]
    axes.set_yticks([row * group + len(items) - 0.5 for row in range(len(rows))], labels)
    axes.set_ylim(len(rows) * group - 1, -1)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _look(index: int) -> dict[str, Any]:
    """Return the colour and the hatching of the bars of an item."""
    return {
        "facecolor": style.audit_colour(index),
        "edgecolor": style.INK,
        "linewidth": 0,
        "hatch": style.hatch(index),
    }


def _losses(item: StressItem, key: tuple[str, int]) -> tuple[list[float], list[float]]:
    """Return the losses before and after, one for each summary that has them."""
    found = [
        (summary.intact - loss.before, summary.intact - loss.after)
        for summary in item.summaries
        for loss in summary.losses
        if (loss.kind, loss.offset) == key
    ]
    return [before for before, _ in found], [after for _, after in found]
