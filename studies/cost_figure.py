"""The chart of what an average over window and mirror gains against what it costs, for docs/results.md."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from evenslice.report import style
from evenslice.report.formatting import MINUS
from evenslice.report.style import WIDTH, Drawing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evenslice.results.arms import Comparison

__all__ = ["cost_figure"]

SIDE_BY_SIDE = 9.0  # points between the marks of arms of nearly the same cost
NEAR = 0.05  # passes


def cost_figure(comparison: Comparison, costs: Mapping[str, Any], baseline: str) -> Drawing:
    """Draw each arm's difference in Dice from the baseline over the time of a pass; call it inside ``style.settings()``.

    Args:
        comparison: the arms, each with a difference but for the baseline.
        costs: of each arm its time of a ``pass``, and the ``command`` that measured it; see ``costs.json``.
        baseline: name of the arm that the others are compared with.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    places = [costs["pass"][arm.arm] for arm in comparison.arms]
    for index, (arm, place) in enumerate(zip(comparison.arms, places, strict=True)):
        near = sorted((other, at) for at, other in enumerate(places) if abs(place - other) < NEAR)
        shift = SIDE_BY_SIDE * (near.index((place, index)) - (len(near) - 1) / 2)
        moved = offset_copy(axes.transData, figure, x=shift, units="points")
        marks: dict[str, Any] = {"color": style.audit_colour(index), "label": arm.arm, "transform": moved}
        if arm.arm == baseline:
            axes.plot([place], [0], linestyle="none", marker=style.audit_marker(index), **marks)
            continue
        found = arm.differences["dice"]
        reach = [[found.estimate - found.low], [found.high - found.estimate]]
        axes.errorbar(
            [place], [found.estimate], yerr=reach, fmt=style.audit_marker(index), capsize=3, **marks
        )
    ends = [end for arm in comparison.arms if arm.differences for end in astuple(arm.differences["dice"])]
    for limits, values in ((axes.set_xlim, places), (axes.set_ylim, [0.0, *ends])):
        margin = 0.08 * (
            max(values) - min(values)
        )  # marks that are moved do not count for limits by themselves
        limits(min(values) - margin, max(values) + margin)
    axes.axhline(0, color=style.QUIET, linewidth=1)
    axes.set_xlabel("time of a pass, relative to that without an average")
    axes.set_ylabel(f"Dice minus {baseline}")
    figure.legend(loc="outside right center")
    return Drawing(
        "cost",
        "What an average over window and mirror gains, and what it costs",
        f"The difference in Dice from {baseline} with its 95 % interval, above the time of a pass on one thread of a CPU, as "
        f"`{costs['command']}` measured it (arms of the same time side by side). Further to the right, the average is taken "
        f"later; {MINUS}0.01 is the margin.",
        figure,
    )
