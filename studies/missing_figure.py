"""The chart of what missing slices cost each arm over all data sets of a study, for the README and docs/results.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from evenslice.report import style
from evenslice.report.style import WIDTH, Drawing

if TYPE_CHECKING:
    from evenslice.results.arms import PooledComparison

__all__ = ["missing_figure"]

LOSSES = {
    "loss_before": "the slice before",
    "loss_after": "the slice after",
    "loss_both": "both neighbours",
}
"""The metrics that are drawn, and what is missing in each."""

APART = 0.22
"""Between the marks of an arm, where the arms are 1 apart."""


def missing_figure(pooled: PooledComparison) -> Drawing:
    """Draw the Dice that each arm loses when neighbours of the middle slice are missing; call it inside ``style.settings()``."""
    figure = Figure(figsize=(WIDTH, 1.2 + 0.48 * len(pooled.arms)), layout="constrained")
    axes = figure.subplots()
    for index, (name, missing) in enumerate(LOSSES.items()):
        found = [arm.metrics[name] for arm in pooled.arms]
        axes.errorbar(
            [item.estimate for item in found],
            [place + APART * (index - 1) for place in range(len(found))],
            xerr=[
                [item.estimate - item.low for item in found],
                [item.high - item.estimate for item in found],
            ],
            fmt=style.audit_marker(index),
            color=style.audit_colour(index),
            capsize=2,
            label=f"{missing} missing",
        )
    axes.axvline(0, color=style.QUIET, linewidth=1)
    axes.set_yticks(range(len(pooled.arms)), [arm.arm for arm in pooled.arms])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("Dice lost")
    figure.legend(loc="outside upper left", ncols=len(LOSSES))
    return Drawing(
        "missing",
        "What missing slices cost",
        f"Mean Dice lost over {', '.join(pooled.datasets)} when the slice before the middle one, the one after it, or both are "
        "replaced by the middle one, with 95 % intervals.",
        figure,
    )
