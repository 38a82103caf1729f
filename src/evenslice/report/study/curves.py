"""The charts of the training runs of a study: score and loss, and the share of each slice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from evenslice.report.base import style
from evenslice.report.base.drawing import NARROW, WIDTH, Drawing
from evenslice.report.base.wording import few_lines, one_line
from evenslice.report.study.charts import TITLE
from evenslice.results import score_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import Comparison, StudyResults, StudyRun

    Course = tuple[NDArray[np.float64], NDArray[np.float64]]

PANELS: Final = 6  # side by side
PANELS_NARROW: Final = 2
MARKERS_SHOWN: Final = 6  # along a line


def learning_figure(results: StudyResults) -> Drawing | None:
    """Draw the validation score and the training loss over the training steps; None if no run logged them."""
    validation = f"validation_{results.score}"
    learned = ((validation, f"validation {score_title(results.score)}"), ("loss", "training loss"))
    shown = [(name, label) for name, label in learned if any(_courses(results.runs, name))]
    if not shown:
        return None
    if validation in dict(shown):
        reading = "An arm that costs no accuracy rises as fast and as high as the others."
    else:
        reading = "No part of the training data was kept out for validation; the loss says how well these data were learned."
    return Drawing(
        "learning",
        "Learning curves",
        f"Thick lines are means over runs, thin lines single runs. {reading}",
        *(_draw_learning(results, shown, narrow=narrow) for narrow in (False, True)),
    )


def _draw_learning(results: StudyResults, shown: Sequence[tuple[str, str]], *, narrow: bool) -> Figure:
    """Draw what was logged side by side, or, for narrow screens, one above the other."""
    blocks = results.comparisons
    lines = len(blocks) * len(shown) if narrow else len(blocks)
    figure = Figure(figsize=(NARROW if narrow else WIDTH, 1.0 + 2.2 * lines), layout="constrained")
    grid = figure.subplots(lines, 1 if narrow else len(shown), squeeze=False)
    panels = grid.reshape(len(blocks), len(shown))
    for line, item in zip(panels, blocks, strict=True):
        line[0].set_title(one_line(item.title, TITLE // 2 if narrow else TITLE))
        for axes, (name, label) in zip(line, shown, strict=True):
            axes.set_ylabel(label)
            for arm in item.arms:
                courses = _courses(results.runs_of(item, arm.arm), name)
                _draw_courses(axes, courses, results.arms.index(arm.arm))
    for axes in grid.flat:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in grid[-1]:
        axes.set_xlabel("step")
    logged = {run.arm for run in results.runs for name, _ in shown if _courses([run], name)}
    handles = [
        Line2D([], [], label=few_lines(arm), **_look(index))
        for index, arm in enumerate(results.arms)
        if arm in logged
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 2 if narrow else 4))
    return figure


def shares_figure(results: StudyResults) -> Drawing | None:
    """Draw the share of each slice over the training steps, a panel for each arm; None if no run logged it."""
    panels = [(item, _arms_with_shares(results, item)) for item in results.comparisons]
    blocks = [(item, arms) for item, arms in panels if arms]
    if not blocks:
        return None
    every = all(len(arms) == len(item.arms) for item, arms in blocks)
    return Drawing(
        "trajectories",
        "Share of attention of each slice during training",
        f"One panel for each arm{'' if every else ' whose training logged it'}, with means over runs, single runs as thin "
        "lines, and an even split as a gray line. If an arm is fair, the lines of the slices before and after coincide.",
        *(_draw_shares(results, blocks, narrow=narrow) for narrow in (False, True)),
    )


def _arms_with_shares(results: StudyResults, item: Comparison) -> list[str]:
    """Return the arms whose training logged shares; one with the networks of another arm has none of its own."""
    return [arm.arm for arm in item.arms if _offsets(results.runs_of(item, arm.arm))]


def _draw_shares(
    results: StudyResults, blocks: Sequence[tuple[Comparison, Sequence[str]]], *, narrow: bool
) -> Figure:
    """Draw the panels of each comparison in lines."""
    columns = min(PANELS_NARROW if narrow else PANELS, max(len(arms) for _, arms in blocks))
    lines = [-(-len(arms) // columns) for _, arms in blocks]
    figure = Figure(
        figsize=(NARROW if narrow else WIDTH, 0.6 + 1.75 * sum(lines) + 0.35 * len(blocks)),
        layout="constrained",
    )
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=lines)
    top = 1.05 * max(
        float(values.max())
        for run in results.runs
        for k in _offsets([run])
        for _, values in _courses([run], f"share_{k}")
    )
    for part, (item, arms), count in zip(parts[:, 0], blocks, lines, strict=True):
        part.suptitle(one_line(item.title, TITLE // 2 if narrow else TITLE), x=0.01, ha="left", fontsize=10)
        grid = part.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
        grid[0, 0].set_ylim(0, top)
        for axes in grid[:, 0]:
            axes.set_ylabel("share")
        for axes in grid[-1]:
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in grid.flat[len(arms) :]:
            axes.set_axis_off()
        for axes, arm in zip(grid.flat, arms, strict=False):
            index = results.arms.index(arm)
            _share_panel(axes, results.runs_of(item, arm), index)
            axes.set_title(
                one_line(arm, round((65 if narrow else 130) / columns)),
                fontsize=9,
                color=style.audit_colour(index),
            )
    figure.legend(handles=_slice_handles(results), loc="outside upper left", ncols=2 if narrow else 3)
    return figure


def _courses(runs: Sequence[StudyRun], name: str) -> list[Course]:
    """Return the steps and values that each run logged under a name; runs without any are left out."""
    found = []
    for run in runs:
        values = run.curves.get(name, np.empty(0))
        known = ~np.isnan(values)
        if known.any():
            found.append((run.curves["step"][known], values[known]))
    return found


def mean_course(courses: Sequence[Course]) -> Course:
    """Return the mean over courses at the steps common to all.

    Example: the mean ends where a run stopped early.
        >>> one = np.array([1, 2, 3]), np.array([0.1, 0.2, 0.9])
        >>> steps, values = mean_course([one, (np.array([1, 2]), np.array([0.3, 0.4]))])
        >>> steps.tolist(), values.round(2).tolist()
        ([1, 2], [0.2, 0.3])
    """
    common = courses[0][0]
    for steps, _ in courses[1:]:
        common = np.intersect1d(common, steps)
    return common, np.mean([values[np.searchsorted(steps, common)] for steps, values in courses], axis=0)


def _draw_courses(axes: Axes, courses: Sequence[Course], index: int) -> None:
    if not courses:
        return
    colour = style.audit_colour(index)
    if len(courses) > 1:
        for steps, values in courses:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.45)
    steps, values = mean_course(courses)
    apart = max(1, len(steps) // MARKERS_SHOWN)
    axes.plot(steps, values, markevery=(index % apart, apart), **_look(index))


def _look(index: int) -> dict[str, Any]:
    return {
        "color": style.audit_colour(index),
        "linestyle": style.line_style(index),
        "linewidth": 1.8,
        "marker": style.audit_marker(index),
        "markersize": 4.5,
    }


def _share_panel(axes: Axes, runs: Sequence[StudyRun], index: int) -> None:
    colour = style.audit_colour(index)
    offsets = _offsets(runs)
    for k in offsets:
        courses = _courses(runs, f"share_{k}")
        opacity = 1 / max(abs(k), 1) ** 0.5
        if len(courses) > 1:
            for steps, values in courses:
                axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.4 * opacity)
        if courses:
            axes.plot(
                *mean_course(courses), color=colour, linestyle=_slice_style(k), alpha=opacity, linewidth=1.8
            )
    if offsets:
        axes.axhline(1 / len(offsets), color=style.QUIET, linewidth=0.8)


def _slice_handles(results: StudyResults) -> list[Line2D]:
    names = {0: "the middle slice", -1: "slices before it", 1: "slices after it"}
    if not any(k for k in _offsets(results.runs)):
        del names[-1], names[1]
    return [
        Line2D([], [], color=style.QUIET, linestyle=_slice_style(k), linewidth=1.8, label=label)
        for k, label in names.items()
    ]


def _slice_style(offset: int) -> Literal["-", "--", ":"]:
    return "-" if offset == 0 else "--" if offset < 0 else ":"


def _offsets(runs: Sequence[StudyRun]) -> list[int]:
    """Return the offsets -K..K of the slices whose shares were logged."""
    names = {name for run in runs for name in run.curves if np.isfinite(run.curves[name]).any()}
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"share_(-?\d{1,4})", name)))
