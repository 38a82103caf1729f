"""What a study adds to the folder of a run: its outcome, ``run.json``; which files are damaged, and what is repeated then."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any, Literal, Self

from evenslice._core import (
    UNREADABLE,
    json_text,
    needs_extra,
    read_bounded,
    remove_leftovers,
    staged_file,
)
from evenslice.results import AuditResult, ExampleSlice
from evenslice.training import RunFolder

with needs_extra("train", "a study"):
    from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("run.json", "audit.json", "audit.npz", "example.npz")
"""Names of the files that a study adds to a run."""

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
            answer_change, mirror_mismatch: estimates; see ``evenslice.results.METRICS``.
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


def damaged_files(folder: Path) -> set[Path]:
    """Return the files of a run that are there and cannot be read; those that were removed are not damaged."""
    return RunFolder(folder).damaged_files(
        {folder / "audit.json": AuditResult.load, folder / "example.npz": ExampleSlice.load}
    )


def repair_run(folder: Path) -> None:
    """Remove the damaged files of a run and what depends on them, so that it can be resumed; the rest is kept.

    Args:
        folder: the folder of the run; it may be missing.

    Raises:
        OutputError: another process works in it.
    """
    if folder.exists():
        with RunFolder(folder).lock():
            _repair(RunFolder(folder))


def _repair(run: RunFolder) -> None:
    """Do so; hold the lock."""
    damaged = damaged_files(run.path)
    remove_leftovers(run.path, FILES)
    checkpoints = {run.last, run.best}
    untested = run.network.exists() and (run.result in damaged or not run.result.exists())
    # Of a finished run, results may have been kept without what a training goes on from.
    bare = (run.path / "run.json").exists() and not run.config.exists()
    lost = damaged & {run.config, run.data, run.metrics, run.network}
    if lost or bare or (untested and not run.metrics.exists()):
        damaged |= {run.config, run.data, run.metrics, run.network, run.result, *checkpoints}
    elif damaged & checkpoints or not run.metrics.exists():
        damaged |= checkpoints
    if run.network in damaged or not run.network.exists():
        damaged.add(run.result)
    for file in damaged:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
