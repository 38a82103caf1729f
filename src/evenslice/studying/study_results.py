"""The results of a study: one row a run in ``results.csv``, and the comparisons of its arms in ``summary.json``."""

from __future__ import annotations

import csv
import json
from itertools import product
from typing import TYPE_CHECKING, Any

from evenslice._core import json_text, staged_file
from evenslice.results import (
    DEFINITIONS,
    FORMAT,
    MAIN_SCORES,
    METRICS,
    TASK_SCORES,
    Primary,
    pool_runs,
    summarize_runs,
)
from evenslice.studying.run_files import STRESS_COLUMNS
from evenslice.studying.runs import LABELS, count_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from evenslice.results import StudySummary
    from evenslice.studying.config import StudyConfig
    from evenslice.studying.run_files import RunOutcome

__all__ = ["write_results"]


def write_results(config: StudyConfig, outcomes: Iterable[RunOutcome], out: Path) -> StudySummary:
    """Write the results of a study so far: ``results.csv`` and ``summary.json``.

    Args:
        config: the configuration of the study.
        outcomes: those of all finished or failed runs.
        out: the folder of the study.

    Returns:
        The content of ``summary.json``.
    """
    names = ([item.name for item in items] for items in (config.architectures, config.arms))
    cells = list(product(*names))
    places = [
        (data.name, *cell, fold, seed)
        for data in config.datasets
        for cell, fold, seed in product(cells, range(data.fold_count), config.seeds)
    ]
    by_labels = {tuple(getattr(outcome, name) for name in LABELS): outcome for outcome in outcomes}
    ordered = [by_labels[labels] for labels in places if labels in by_labels]
    extra = {item.name: {"folds": item.fold_count, "classes": item.classes} for item in config.datasets}
    done = [
        {**outcome.model_dump(exclude_unset=True), **extra[outcome.dataset]}
        for outcome in ordered
        if outcome.status == "done"
    ]
    failed = [outcome for outcome in ordered if outcome.status == "failed"]
    score, chosen = MAIN_SCORES[config.task], config.primary
    primary = None
    if chosen is not None:
        network = chosen.architecture or config.architectures[0].name
        primary = Primary(chosen.arm, network, chosen.margin)
    compared: dict[str, Any] = {"baseline": config.baseline, "margin": config.margin, "score": score}
    pooled = pool_runs(
        done,
        **compared,
        primary=primary,
        datasets=[data.name for data in config.datasets],
        architectures=[item.name for item in config.architectures],
        arms=[arm.name for arm in config.arms],
    )
    summary = {
        "format": FORMAT,
        "planned": count_runs(config),
        "finished": len(done),
        "failed": [outcome.model_dump(include={*LABELS, "error"}) for outcome in failed],
        "baseline": config.baseline,
        "score": score,
        "definitions": max((item.definitions for item in ordered if item.verdict), default=DEFINITIONS),
        "comparisons": [item.to_dict() for item in summarize_runs(done, **compared)],
        "pooled": [item.to_dict() for item in pooled],
    }
    text = json_text(summary)
    with staged_file(out / "summary.json", force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    _write_table(ordered, config, out / "results.csv")
    written: StudySummary = json.loads(text)
    return written


def _write_table(outcomes: Sequence[RunOutcome], config: StudyConfig, path: Path) -> None:
    """Write one row for each run; undefined values are left empty."""
    half = config.slices // 2
    shares = [f"share_{offset}" for offset in range(-half, half + 1)]
    scores = TASK_SCORES[config.task]
    other_task = {name for names in TASK_SCORES.values() for name in names} - {*scores}
    first = (*LABELS, *scores[:2], "directional_bias", "asymmetry", "imbalance", *shares, "seconds")
    measured = any(
        "stress_intact" in outcome.model_dump(exclude_unset=True) for outcome in outcomes
    )  # not by earlier versions
    others = (
        "verdict",
        *(name for name in METRICS if name not in {*first, *other_task}),
        "answer_of",
        *(STRESS_COLUMNS if measured else ()),
        "definitions",
        "windows",
        "steps",
    )
    with staged_file(path, force=True) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, (*first, *others, "key", "status", "error"), extrasaction="ignore")
        table.writeheader()
        for outcome in outcomes:
            record = outcome.model_dump(exclude_unset=True) | dict(
                zip(shares, outcome.shares or (), strict=False)
            )
            if outcome.status == "done":
                record["definitions"] = outcome.definitions
            table.writerow(record)
