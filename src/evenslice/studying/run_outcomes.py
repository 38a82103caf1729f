"""What runs of a study found: ``run.json`` in the folder of each, and the results of all; which files are damaged."""

from __future__ import annotations

import csv
import json
import math
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Self

from evenslice._core import UNREADABLE, json_text, needs_extra, read_bounded, remove_leftovers, staged_file
from evenslice.results import (
    TASK_SCORES,
    AuditResult,
    ExampleSlice,
    StudyPlan,
    StudySummary,
    run_name,
    score_title,
)
from evenslice.training import RunFolder

with needs_extra("train", "a study"):
    from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from evenslice.studying.config import StudyConfig

FILES = ("run.json", "audit.json", "audit.npz", "example.npz")
"""Names of the files that a study adds to a run."""

LABELS = ("dataset", "architecture", "arm", "fold", "seed")
"""The names that tell the runs of a study apart."""

STRESS_COLUMNS = ("stress_intact", "stress_before", "stress_after", "stress_both", "stress_reversed")

MOST_BYTES = 2**24
"""Largest size of a file that is read."""


class RunOutcome(BaseModel):
    """What one run of a study found, or why it failed; fields that were not set are not written.

    Attributes:
        dataset: name of the data set.
        architecture: name of the architecture.
        arm: name of the arm.
        fold: which parts of the data set were tested; 0 without folds, and in records of versions that had none.
        seed: random seed.
        key: identifies the run, see ``Run.key``.
        status: whether it succeeded.
        error: one line; None if it succeeded.
        traceback: of the error.
        dice, iou, hd95, surface_dice, adapted_rand_error, variation_of_information: on the test volumes, of
            segmentations; None where undefined, like all metrics.
        balanced_accuracy, accuracy, macro_f1: likewise, of classifications.
        stress_intact, stress_before, stress_after, stress_both, stress_reversed: mean Dice on a sample of the test
            slices: of intact windows, with the slice at -1, at +1 or both missing, and of reversed windows.
        verdict: of the audit on the test volumes, like all below up to ``windows``.
        definitions: those of its figures; 1 in records of version 0.2, which did not write them.
        shares: mean share of each slice of the window in the saliency.
        directional_bias, absolute_bias, largest_bias, reliance, asymmetry, imbalance, mirror_error, mirror_disagreement,
            answer_change, mirror_mismatch: estimates.
        answer_of: what ``answer_change`` compares: "classes", "scores" or, as in records of versions that did not tell,
            "unknown".
        windows: number of windows of the audit.
        steps: of the training; 0 of a network that was trained by another run.
        seconds: of the training, likewise.
        data: fingerprints of the files; None in records of versions that did not write them.
        audit: the options of the audit.
    """

    model_config = ConfigDict(frozen=True)

    dataset: str
    architecture: str
    arm: str
    fold: int = 0
    seed: int
    key: str
    status: Literal["done", "failed"]
    error: str | None
    traceback: str = ""
    dice: float | None = None
    iou: float | None = None
    hd95: float | None = None
    surface_dice: float | None = None
    adapted_rand_error: float | None = None
    variation_of_information: float | None = None
    balanced_accuracy: float | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    stress_intact: float | None = None
    stress_before: float | None = None
    stress_after: float | None = None
    stress_both: float | None = None
    stress_reversed: float | None = None
    verdict: str = ""
    definitions: int = 1
    shares: tuple[float | None, ...] | None = None
    directional_bias: float | None = None
    absolute_bias: float | None = None
    largest_bias: float | None = None
    reliance: float | None = None
    asymmetry: float | None = None
    imbalance: float | None = None
    mirror_error: float | None = None
    mirror_disagreement: float | None = None
    answer_change: float | None = None
    answer_of: str = "unknown"
    mirror_mismatch: float | None = None
    windows: int = 0
    steps: int = 0
    seconds: float = math.nan
    data: list[str] | None = None
    audit: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read what ``save`` wrote; None if there is no such file, or a damaged one."""
        try:
            return cls.model_validate_json(read_bounded(path, MOST_BYTES))
        except UNREADABLE:
            return None

    def save(self, path: Path) -> Self:
        """Write the outcome, and return it as it will be read: with None for NaN."""
        text = json_text(self.model_dump(exclude_unset=True))
        with staged_file(path, force=True) as beside:
            beside.write_text(text, encoding="utf-8")
        return self.model_validate_json(text)

    def line(self, *, folded: bool) -> str:
        """Return the result in one line, with the fold if the data set has several."""
        place = run_name(vars(self), folded=folded)
        if self.status == "failed":
            return f"{place}: failed: {self.error}"
        scores = [(getattr(self, names[0]), score_title(names[0]), ".3f") for names in TASK_SCORES.values()]
        figures = " ".join(
            f"{title} {value:{form}}"
            for value, title, form in (*scores, (self.directional_bias, "D_m", "+z.4f"))
            if value is not None
        )
        return f"{place}: {figures}, trained in {self.seconds:.0f} s"


def damaged_files(folder: Path) -> set[Path]:
    """Return the files of a run that are there and cannot be read; those that were removed are not damaged."""
    return RunFolder(folder).damaged_files(
        {folder / "audit.json": AuditResult.load, folder / "example.npz": ExampleSlice.load}
    )


def repair_run(folder: Path) -> None:
    """Remove the damaged files of a run, so that it can go on; with those that training left if one of these is damaged.

    Args:
        folder: the folder of the run; it may be missing.

    Raises:
        OutputError: another process works in it.
    """
    if not folder.exists():
        return
    run = RunFolder(folder)
    training = {run.config, run.data, run.metrics, run.last, run.best, run.network, run.result}
    with run.lock():
        damaged = damaged_files(folder)
        remove_leftovers(folder, FILES)
        # Of a finished run, results may have been kept without what a training goes on from.
        bare = (folder / "run.json").exists() and not run.config.exists()
        if damaged & training or bare or (run.result.exists() and not run.network.exists()):
            damaged |= training
        for file in damaged:
            file.unlink(missing_ok=True)


def write_results(
    config: StudyConfig, outcomes: Iterable[RunOutcome], planned: int, out: Path
) -> dict[str, Any]:
    """Write the results of a study so far: ``results.csv`` and ``summary.json``.

    Args:
        config: the configuration of the study.
        outcomes: those of all finished or failed runs.
        planned: the number of runs of the study.
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
    chosen, primary = config.primary, None
    if chosen is not None:
        primary = (chosen.arm, chosen.architecture or config.architectures[0].name, chosen.margin)
    plan = StudyPlan(
        config.baseline,
        config.margin,
        TASK_SCORES[config.task][0],
        primary,
        tuple(data.name for data in config.datasets),
        tuple(item.name for item in config.architectures),
        tuple(arm.name for arm in config.arms),
    )
    failures = [outcome.model_dump(include={*LABELS, "error"}) for outcome in failed]
    summary = StudySummary.of_runs(done, failures, planned, plan)
    text = json_text(summary.to_dict())
    with staged_file(out / "summary.json", force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    _write_table(ordered, config, out / "results.csv")
    return dict(json.loads(text))


def _write_table(outcomes: Sequence[RunOutcome], config: StudyConfig, path: Path) -> None:
    """Write one row for each run; undefined values are left empty."""
    half = config.slices // 2
    shares = [f"share_{offset}" for offset in range(-half, half + 1)]
    scores = TASK_SCORES[config.task]
    other_task = {name for names in TASK_SCORES.values() for name in names} - {*scores}
    metrics = [name for name, entry in RunOutcome.model_fields.items() if entry.annotation == float | None]
    first = (*LABELS, *scores[:2], "directional_bias", "asymmetry", "imbalance", *shares, "seconds")
    # Earlier versions did not measure it.
    measured = any("stress_intact" in outcome.model_dump(exclude_unset=True) for outcome in outcomes)
    others = (
        "verdict",
        *(name for name in metrics if name not in {*first, *other_task, *STRESS_COLUMNS}),
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
            own = outcome.shares or ()
            first_own = (len(shares) - len(own)) // 2  # an arm may have fewer slices
            record = outcome.model_dump(exclude_unset=True) | dict(zip(shares[first_own:], own, strict=False))
            if outcome.status == "done":
                record["definitions"] = outcome.definitions
            table.writerow(record)
