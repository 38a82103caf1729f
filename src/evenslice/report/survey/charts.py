"""The chart of a survey: the colour balance of each network's stem beside its directional bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from evenslice.report.base import style
from evenslice.report.base.drawing import NARROW, WIDTH, Drawing
from evenslice.report.base.wording import one_line
from evenslice.report.survey.tables import channel_names
from evenslice.results import Tolerances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from evenslice.results import SurveyedNetwork, SurveyResult

MAX_NETWORKS: Final = 60
"""Largest number of networks in the chart; the table lists all."""

BAR, NARROW_BAR = 0.75, 0.34
"""Height of a bar, of 1 for each network; the narrow one leaves room for a name."""

COLOURS: Final = (1, 2, 0, 3, 4, 5, 6, 7)
"""Index of the report's colour for each channel: the closest to red, green and blue come first."""


def channel_colour(channel: int) -> int:
    """Return the index of a channel's colour for ``style.audit_colour``."""
    return COLOURS[channel % len(COLOURS)]


def balance_figure(survey: SurveyResult) -> Drawing:
    """Draw the energy of each channel of the stems, and D_m with its interval, one row for each network."""
    networks = survey.measured[:MAX_NETWORKS]
    left_out = len(survey.measured) - len(networks)
    draws = max((item.draws for item in networks), default=1)
    return Drawing(
        "balance",
        "Colour balance of the stem and directional bias of the network",
        "Left: the share of each channel in the energy of the stem. Right: the directional bias of the "
        "network when slices take the place of channels, with its 95 % interval"
        + (f" (of networks with random parts, the mean over {draws} draws of these)" if draws > 1 else "")
        + "; a network whose whole interval lies within the shaded tolerance leans to neither side."
        + (
            f" The {MAX_NETWORKS} networks with the largest directional bias are shown; {left_out} more are in the "
            "table below."
            if left_out
            else ""
        ),
        *(_draw_balance(networks, narrow=narrow) for narrow in (False, True)),
    )


def _draw_balance(networks: Sequence[SurveyedNetwork], *, narrow: bool) -> Figure:
    """Draw the networks, with their names on the left or, for narrow screens, above their bars."""
    size = (NARROW, 1.5 + 0.42 * len(networks)) if narrow else (WIDTH, 1.5 + 0.32 * len(networks))
    figure = Figure(figsize=size, layout="constrained")
    energy, bias = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1) if narrow else (3, 2))
    for y, item in enumerate(networks):
        _bar(energy, item, y, NARROW_BAR if narrow else BAR)
    _biases(bias, networks)
    names = [one_line(item.spec, 52 if narrow else 38) for item in networks]
    energy.set_yticks(range(len(networks)), [""] * len(names) if narrow else names)
    if narrow:
        for y, name in enumerate(names):
            above = energy.text(0, y - NARROW_BAR / 2 - 0.06, name, fontsize=9, va="bottom", zorder=3)
            above.set_in_layout(False)  # it may reach into the other panel
    energy.set_ylim(len(networks) - 0.4, -0.85 if narrow else -0.6)
    energy.set_xlim(0, 1)
    energy.set_title("energy of the stem")
    energy.set_xlabel("share of each channel")
    bias.set_title("bias of the network")
    bias.set_xlabel("directional bias" if narrow else "← before · directional bias · after →")
    for axes in (energy, bias):
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    channels = channel_names(max(len(item.energy) for item in networks))
    handles = [
        Patch(color=style.audit_colour(channel_colour(i)), label=name) for i, name in enumerate(channels)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 3 if narrow else 8))
    return figure


def _bar(axes: Axes, item: SurveyedNetwork, y: int, height: float) -> None:
    """Draw the energies of one network end to end."""
    starts = np.cumsum((0.0, *item.energy[:-1]))
    for channel, (start, part) in enumerate(zip(starts.tolist(), item.energy, strict=True)):
        colour = style.audit_colour(channel_colour(channel))
        axes.barh(y, part, height, left=start, color=colour, edgecolor="none")


def _biases(axes: Axes, networks: Sequence[SurveyedNetwork]) -> None:
    biases = [(y, item.directional_bias) for y, item in enumerate(networks)]
    known = [(y, bias) for y, bias in biases if np.isfinite(bias.estimate)]
    ends = (end for _, bias in known for end in (bias.estimate, bias.low, bias.high))
    reach = max([3 * Tolerances.tolerance, *(abs(end) for end in ends if np.isfinite(end))])
    limit = min(1.05 * reach, 1.05)
    axes.axvspan(-Tolerances.tolerance, Tolerances.tolerance, color=style.BAND, linewidth=0, zorder=0.5)
    axes.axvline(0, color=style.QUIET, linewidth=1)
    for y, bias in known:
        axes.plot(
            np.clip([bias.low, bias.high], -limit, limit),
            [y, y],
            color=style.INK,
            linewidth=2.5,
            solid_capstyle="butt",
        )
        axes.plot(bias.estimate, y, "o", color=style.INK, markersize=5)
    axes.set_xlim(-limit, limit)
