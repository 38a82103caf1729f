"""The chart of a survey: the colour balance of each network's stem beside its directional bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from evenslice.report import style
from evenslice.report.formatting import one_line
from evenslice.report.style import WIDTH, Drawing
from evenslice.results import Tolerances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from evenslice.results import SurveyedNetwork, SurveyResult

MAX_NETWORKS: Final = 60
"""Largest number of networks in the chart; the table lists all."""

BAR: Final = 0.34  # height of a bar, of 1 for each network: there is room for a name above
CHANNELS: Final = ("red", "green", "blue")
COLOURS: Final = (1, 2, 0, 3, 4, 5, 6, 7)
"""Index of the report's colour for each channel: the closest to red, green and blue come first."""


def balance_figure(survey: SurveyResult) -> Drawing:
    """Draw the energy of each channel of the stems, and D_m with its interval, below the name of each network."""
    networks = survey.measured[:MAX_NETWORKS]
    figure = Figure(figsize=(WIDTH, 1.5 + 0.42 * len(networks)), layout="constrained")
    energy, bias = figure.subplots(1, 2, sharey=True)
    for y, item in enumerate(networks):
        starts = np.cumsum((0.0, *item.energy[:-1])).tolist()
        for channel, (start, part) in enumerate(zip(starts, item.energy, strict=True)):
            energy.barh(y, part, BAR, left=start, color=_colour(channel), edgecolor="none")
        above = energy.text(0, y - BAR / 2 - 0.06, one_line(item.spec, 60), fontsize=9, va="bottom", zorder=3)
        above.set_in_layout(False)  # it may reach into the other panel
    _draw_biases(bias, networks)
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


def _colour(channel: int) -> str:
    return style.audit_colour(COLOURS[channel % len(COLOURS)])


def _draw_biases(axes: Axes, networks: Sequence[SurveyedNetwork]) -> None:
    known = [
        (y, item.directional_bias)
        for y, item in enumerate(networks)
        if np.isfinite(item.directional_bias.estimate)
    ]
    ends = (abs(end) for _, bias in known for end in (bias.estimate, bias.low, bias.high) if np.isfinite(end))
    limit = min(1.05 * max([3 * Tolerances.tolerance, *ends]), 1.05)
    axes.axvspan(-Tolerances.tolerance, Tolerances.tolerance, color=style.BAND, linewidth=0, zorder=0.5)
    axes.axvline(0, color=style.QUIET, linewidth=1)
    for y, bias in known:
        style.draw_interval(axes, y, bias, 0, limit)
    axes.set_xlim(-limit, limit)
