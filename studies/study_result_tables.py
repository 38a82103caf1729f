"""The tables of docs/results.md about studies, in Markdown."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from paging import table

from evenslice.report.base.wording import NOTHING, interval, listed, percent
from evenslice.report.study.pooled import superiority
from evenslice.report.study.stress import stress_group
from evenslice.report.study.tables import extents, figure_groups
from evenslice.report.study.wording import (
    difference_text,
    judgement,
    metric_text,
    p_value,
    removed_part,
    verdicts,
)
from evenslice.results.replicates import replicate_means
from evenslice.results.scores import score_title
from evenslice.results.student import student_interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from found_studies import Study

    from evenslice.results.arms import ArmSummary, Comparison
    from evenslice.results.pooling import PooledArm, PooledComparison
    from evenslice.studying.config import StudyData

__all__ = ["full_table", "pooled_table", "result_table", "run_table", "stress_table"]


def result_table(study: Study, comparison: Comparison) -> str:
    """Return what matters most of each arm, one a row."""
    baseline, score = study.results.baseline, score_title(study.results.score, first=True)
    header = (
        "arm",
        score,
        f"{score} minus {baseline}",
        "not inferior?",
        "largest pair bias",
        "part of it removed",
        "mirror disagreement",
    )
    rows = {arm.arm: _result_row(arm, interim=not study.complete) for arm in comparison.arms}
    return _with_extents(study, [comparison], header, rows)


def _with_extents(
    study: Study, comparisons: Sequence[Comparison], header: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> str:
    """Return a table of arms, with the folds and seeds of each behind its name where the arms differ in them."""
    found = extents(study.results, comparisons, [*rows])
    if found is None:
        return table(header, rows.values())
    return table(
        (header[0], found.label, *header[1:]),
        ([row[0], extent, *row[1:]] for row, extent in zip(rows.values(), found.cells, strict=True)),
    )


def _result_row(arm: ArmSummary, *, interim: bool) -> list[str]:
    compared = bool(arm.differences)
    tested = f"{judgement(arm)} ({p_value(arm.p, interim=interim)})" if not math.isnan(arm.p) else NOTHING
    return [
        arm.arm,
        metric_text(arm.score, arm),
        difference_text(arm.score, arm) if compared else NOTHING,
        tested,
        metric_text("largest_bias", arm),
        removed_part(arm.bias_removed),
        percent(arm.metrics["mirror_disagreement"].estimate),
    ]


def pooled_table(study: Study, item: PooledComparison) -> str:
    """Return what matters most of each arm over all data sets, one a row; the primary comparison is in bold."""
    score = score_title(study.results.score, first=True)
    header = (
        "arm",
        score,
        f"{score} minus {study.results.baseline}",
        "not inferior?",
        "superior?",
        "p of a difference, adjusted",
        "largest pair bias",
        "loss, both neighbours missing",
    )
    columns = zip(header, *(_pooled_row(arm, interim=not study.complete) for arm in item.arms), strict=True)
    known = [column for column in columns if set(column[1:]) != {NOTHING}]
    first, *rows = zip(*known, strict=True)
    names = [arm.arm for arm in item.arms]
    sets = [found for found in study.results.comparisons if found.architecture == item.architecture]
    return _with_extents(study, sets, first, dict(zip(names, rows, strict=True)))


def _pooled_row(arm: PooledArm, *, interim: bool) -> list[str]:
    compared = bool(arm.differences)
    return [
        f"**{arm.arm}**" if arm.primary else arm.arm,
        metric_text(arm.score, arm),
        difference_text(arm.score, arm) if compared else NOTHING,
        f"{judgement(arm)} ({p_value(arm.p, interim=interim)}, margin {arm.margin:g})"
        if not math.isnan(arm.p)
        else NOTHING,
        superiority(arm, interim=interim),
        p_value(arm.p_adjusted, interim=interim),
        metric_text("largest_bias", arm),
        interval(arm.metrics["loss_both"]),
    ]


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
    rows = []
    stress = stress_group(study.results, comparison)
    for group in (*figure_groups(study.results, comparison), *([stress] if stress.rows else [])):
        rows.append([f"**{group.title}**", *[""] * len(names)])
        rows += [[row.label, *row.cells] for row in group.rows]
    rows.append(["**Time**", *[""] * len(names)])
    rows.append(["Minutes of training, median", *(_minutes(study, comparison, name) for name in names)])
    return table(["", *names], rows)


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
