"""The charts of docs/results.md and docs/survey.md, in one style: small SVG files whose text stays text."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.transforms import offset_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from study_results import Arm, Interval

WIDTH = 10.0  # inches
QUIET, BAND = "#59636e", "#e4e9ee"
COLOURS = ("#0072b2", "#c24e00", "#00815d", "#b15097", "#7a6a00")  # after Okabe and Ito
CHANNELS = ("#c24e00", "#00815d", "#0072b2")
MARKERS = "osD^v"
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": "#d8dee4",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "evenslice",
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def write_chart(path: Path, draw: Callable[[], Figure]) -> None:
    """Draw in the style of the pages and write the figure, the same bytes for the same numbers."""
    buffer = io.StringIO()
    with context(STYLE, after_reset=True):
        draw().savefig(buffer, format="svg", metadata=NO_METADATA)
    text = re.sub(r">\n +<", ">\n<", buffer.getvalue())
    path.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", text), encoding="utf-8")


def missing_chart(arms: Sequence[Arm]) -> Figure:
    """Draw the Dice that each arm loses when neighbours of the middle slice are missing."""
    figure = Figure(figsize=(WIDTH, 1.2 + 0.48 * len(arms)), layout="constrained")
    axes = figure.subplots()
    missing = {"before": "the slice before", "after": "the slice after", "both": "both neighbours"}
    for index, (kind, label) in enumerate(missing.items()):
        found = [arm.figure(f"loss_{kind}") for arm in arms]
        axes.errorbar(
            [item.estimate for item in found],
            [place + 0.22 * (index - 1) for place in range(len(arms))],
            xerr=_reach(found),
            fmt=MARKERS[index],
            color=COLOURS[index],
            capsize=2,
            label=f"{label} missing",
        )
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("Dice lost")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def cost_chart(arms: Sequence[Arm], passes: Mapping[str, float]) -> Figure:
    """Draw each arm's difference in Dice from the first, the baseline, over the time of a pass."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    places = [passes[arm.name] for arm in arms]
    for index, (arm, place) in enumerate(zip(arms, places, strict=True)):
        near = sorted((other, at) for at, other in enumerate(places) if abs(place - other) < 0.05)
        shift = 9 * (near.index((place, index)) - (len(near) - 1) / 2)  # points: none hides another
        moved = offset_copy(axes.transData, figure, x=shift, units="points")
        value = [arm.change] if index else []
        axes.errorbar(
            [place],
            [arm.change.estimate if index else 0],
            yerr=_reach(value) if index else None,
            fmt=MARKERS[index],
            color=COLOURS[index],
            capsize=3,
            label=arm.name,
            transform=moved,
        )
    ends = [0.0, *(end for arm in arms[1:] for end in arm.change)]
    for limits, values in ((axes.set_xlim, places), (axes.set_ylim, ends)):
        margin = 0.08 * (max(values) - min(values))
        limits(min(values) - margin, max(values) + margin)
    axes.axhline(0, color=QUIET, linewidth=1)
    axes.set_xlabel("time of a pass, relative to that without an average")
    axes.set_ylabel(f"Dice minus {arms[0].name}")
    figure.legend(loc="outside right center")
    return figure


def survey_chart(networks: Sequence[tuple[str, Sequence[float], Interval]]) -> Figure:
    """Draw the energy of red, green and blue in each network's stem beside its directional bias with its interval."""
    figure = Figure(figsize=(WIDTH, 1.0 + 0.36 * len(networks)), layout="constrained")
    left, right = figure.subplots(ncols=2, sharey=True)
    starts = [0.0] * len(networks)
    for index, channel in enumerate(("red", "green", "blue")):
        parts = [energy[index] for _, energy, _ in networks]
        left.barh(range(len(networks)), parts, left=starts, color=CHANNELS[index], label=channel)
        starts = [start + part for start, part in zip(starts, parts, strict=True)]
    biases = [bias for *_, bias in networks]
    right.axvspan(-0.05, 0.05, color=BAND)
    right.errorbar(
        [bias.estimate for bias in biases],
        range(len(networks)),
        xerr=_reach(biases),
        fmt="o",
        color=COLOURS[0],
        capsize=3,
    )
    right.axvline(0, color=QUIET, linewidth=1)
    left.set_yticks(range(len(networks)), [name for name, *_ in networks])
    left.invert_yaxis()
    left.set_xlabel("share of the stem's energy")
    right.set_xlabel("directional bias")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure


def _reach(found: Iterable[Interval]) -> list[list[float]]:
    """Return how far the intervals reach below and above their estimates."""
    items = list(found)
    return [[item.estimate - item.low for item in items], [item.high - item.estimate for item in items]]
