"""The tables of docs/results.md about studies, in Markdown."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from paging import markdown, table

from evenslice.report.formatting import NOTHING, interval, listed
from evenslice.report.study_tables import statistics_groups, verdicts
from evenslice.report.tables import Group, Row, Table
from evenslice.results.arms import replicate_means
from evenslice.results.intervals import student_interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from found_studies import Study

    from evenslice.results.arms import Comparison
    from evenslice.studying.study_data import StudyData

__all__ = ["full_table", "run_table", "stress_table"]


def stress_table(study: Study, comparison: Comparison) -> str:
    """Return what a missing neighbour costs each arm, one a row; empty if no run measured it."""
    rows = []
    for arm in comparison.arms:
        runs = [run for run in study.results.runs_of(comparison, arm.arm) if run.stress is not None]
        losses = [
            (run, run.stress.intact, loss, run.stress.reversed)
            for run in runs
            if run.stress is not None
            for loss in run.stress.losses
            if (loss.kind, loss.offset) == ("missing", 1)
        ]
        if losses:
            columns = [
                [intact - loss.before for _, intact, loss, _ in losses],
                [intact - loss.after for _, intact, loss, _ in losses],
                [loss.asymmetry.estimate for _, _, loss, _ in losses],
                [intact - loss.both for _, intact, loss, _ in losses],
                [intact - turned for _, intact, _, turned in losses],
            ]
            measured = [vars(run) for run, *_ in losses]
            means = [replicate_means(measured, column, comparison.unit) for column in columns]
            cells = [interval(student_interval(values, (-1, 1))) for values in means]
            rows.append([arm.arm, *cells, verdicts([run.verdict for run in runs])])
    header = ("arm", "loss, slice before missing", "loss, slice after missing", "before less after")
    return table((*header, "loss, both missing", "loss, reversed", "verdicts"), rows) if rows else ""


def full_table(study: Study, comparison: Comparison) -> str:
    """Return every figure of each arm, one a column, in groups below their titles."""
    names = [arm.arm for arm in comparison.arms]
    minutes = Row("Minutes of training, median", tuple(_minutes(study, comparison, name) for name in names))
    groups = (*statistics_groups(study.results, comparison), Group("Time", "", (minutes,)))
    return markdown(Table("", ("", *names), groups))


def _minutes(study: Study, comparison: Comparison, arm: str) -> str:
    """Return the median duration of the trainings of an arm; those with the network of another arm have none."""
    runs = study.results.runs_of(comparison, arm)
    known = [run.seconds / 60 for run in runs if run.steps > 0 and not math.isnan(run.seconds)]
    return f"{median(known):.1f}" if known else NOTHING


def run_table(studies: Sequence[Study]) -> str:
    """Return what was run, a row for each data set and network."""
    header = (
        *("study", "data set", "network", "arms", "folds", "seed numbers", "slices", "steps", "crops"),
        "training minutes per run",
    )
    return table(header, (row for study in studies for row in _run_rows(study)))


def _run_rows(study: Study) -> Iterator[list[str]]:
    for comparison in study.results.comparisons:
        runs = [run for arm in comparison.arms for run in study.results.runs_of(comparison, arm.arm)]
        training = _data(study, comparison.dataset).training
        trained = [run for run in runs if run.steps > 0]  # others have the network of one of these
        known = [run.seconds / 60 for run in trained if not math.isnan(run.seconds)]
        folds = {run.fold for run in runs}
        yield [
            f"`{study.name}`",
            comparison.dataset,
            comparison.architecture,
            str(len(comparison.arms)),
            str(len(folds)) if len(folds) > 1 else NOTHING,
            _seeds(study, comparison),
            str(study.config.slices),
            listed([str(steps) for steps in sorted({run.steps for run in trained})]),
            f"{training.batch} of {training.crop[0]} x {training.crop[1]}",
            f"{median(known):.1f}" if known else NOTHING,
        ]


def _seeds(study: Study, comparison: Comparison) -> str:
    """Return the seeds of the arms, and which arms have fewer."""
    own = {
        arm.arm: ", ".join(map(str, sorted({run.seed for run in study.results.runs_of(comparison, arm.arm)})))
        for arm in comparison.arms
    }
    most = max(own.values(), key=len)
    fewer: dict[str, list[str]] = {}
    for arm, seeds in own.items():
        if seeds != most:
            fewer.setdefault(seeds, []).append(arm)
    return "; ".join([most, *(f"{listed(arms)}: {seeds}" for seeds, arms in fewer.items())])


def _data(study: Study, name: str) -> StudyData:
    return next(data for data in study.config.datasets if data.name == name)
