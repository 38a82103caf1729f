"""What a study found, read from its folder.

    results = load_study("results")
    results.comparisons[0].arms[1].figures["dice"]      # an interval over seeds
    results.runs[0].curves["validation_dice"]           # what was logged while that run trained

Needed are ``summary.json``, ``results.csv`` and, for each finished run, ``run.json``. Of the files that tell more, the
log of the training, the example, the configurations and circumstances, any may be absent.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError
from evenslice.results.intervals import Interval
from evenslice.results.seeds import FIGURES, SALIENCY_PERCENTILES
from evenslice.results.study_files import (
    figure,
    read_json,
    read_pictures,
    read_rows,
    read_text,
    reading,
    whole,
    word,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Record = Mapping[str, Any]

__all__ = [
    "ArmSummary",
    "Comparison",
    "Example",
    "StudyResults",
    "StudyRun",
    "is_study",
    "load_study",
]

STUDY_FORMAT = 1
COLUMNS = ("dataset", "architecture", "arm", "seed", "key", "status")  # of the table, that are read
MAX_RUNS, MAX_LOGGED = 5000, 100_000  # rows of the table and of a log, at most


@dataclass(frozen=True)
class Example:
    """A test slice, or the middle of it: three uint8 arrays (y, x).

    Attributes:
        image: as the network saw it, scaled to 0..255.
        labels: the class of each pixel.
        predicted: the class that the network gave it.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


@dataclass(frozen=True)
class StudyRun:
    """What one finished run found.

    Attributes:
        dataset: the name of the data set.
        architecture: the name of the network.
        arm: the name of the arm.
        seed: of everything that was drawn.
        figures: those of ``summarizing.FIGURES``; NaN where there is none.
        verdict: of the audit: symmetric, biased, inconclusive or not applicable.
        shares: mean share of each slice of the window in the audit.
        saliency: (slices, percentiles) as ``summarizing.saliency_percentiles`` gives them; None where they are not known.
        windows: how many the audit used.
        steps: of the training.
        seconds: of the training.
        curves: the columns of the log of the training by name (``step``, ``loss``, ``learning_rate``,
            ``validation_dice``, ``share_-1`` ..., ``directional_bias`` ...), all of one length, NaN where nothing was
            logged; empty where there is no log.
        example: None where there is none.
        circumstances: ``versions``, ``machine`` and ``created`` of the training; empty where they are not known.
    """

    dataset: str
    architecture: str
    arm: str
    seed: int
    figures: dict[str, float]
    verdict: str
    shares: tuple[float, ...]
    saliency: NDArray[np.float64] | None = None
    windows: int = 0
    steps: int = 0
    seconds: float = math.nan
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    example: Example | None = None
    circumstances: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmSummary:
    """What the runs of one arm say together, see ``summarizing.summarize_runs``.

    Attributes:
        arm: its name.
        seeds: those of its finished runs.
        figures: mean over seeds by name, with its 95 % interval.
        shares: likewise for each slice.
        differences: mean paired difference to the baseline by name; empty for the baseline and where it has no run.
        margin: of the non-inferiority test of Dice; NaN where ``differences`` is empty.
        p: of that test; NaN where there was none.
        holds: its outcome: Dice is not inferior; None where there was none.
        bias_removed: part of the baseline's absolute directional bias that the arm does not have; NaN where not known.
    """

    arm: str
    seeds: tuple[int, ...]
    figures: dict[str, Interval]
    shares: tuple[Interval, ...]
    differences: dict[str, Interval]
    margin: float
    p: float
    holds: bool | None
    bias_removed: float


@dataclass(frozen=True)
class Comparison:
    """The arms on one data set with one network."""

    dataset: str
    architecture: str
    arms: tuple[ArmSummary, ...]

    @property
    def title(self) -> str:
        """The names of both."""
        return f"{self.dataset}, {self.architecture}"


@dataclass(frozen=True)
class StudyResults:
    """What a study found.

    Attributes:
        summary: what ``summary.json`` holds, see ``studying.write_results``.
        comparisons: the same as figures with their intervals, one for each data set and network.
        runs: the finished runs, in the order of ``results.csv``.
        config: the text of the study's ``config.yaml``; empty where there is none.
    """

    summary: dict[str, Any]
    comparisons: tuple[Comparison, ...]
    runs: tuple[StudyRun, ...]
    config: str = ""

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return str(self.summary["baseline"])

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of all arms, in the order in which they come."""
        return tuple(dict.fromkeys(arm.arm for item in self.comparisons for arm in item.arms))

    def runs_of(self, comparison: Comparison, arm: str) -> list[StudyRun]:
        """Return the runs of an arm in a comparison, one a seed."""
        names = (comparison.dataset, comparison.architecture, arm)
        return [run for run in self.runs if (run.dataset, run.architecture, run.arm) == names]


def is_study(folder: str | os.PathLike[str]) -> bool:
    """Say whether a folder is that of a study."""
    return (Path(folder) / "summary.json").is_file()


def load_study(folder: str | os.PathLike[str]) -> StudyResults:
    """Read what a study found.

    The files may come from others: no more of them is read than a study writes, and nothing is unpickled.

    Args:
        folder: that of the study.

    Raises:
        ConfigError: it holds no study, or a file of it cannot be read.
    """
    folder = Path(folder)
    if not is_study(folder):
        raise ConfigError(f"{folder}: holds no study; name a folder that `evenslice study --out` wrote")
    with reading(folder / "summary.json") as path:
        summary = read_json(path)
        comparisons = _comparisons(summary)
    with reading(folder / "results.csv") as path:
        rows = [row for row in read_rows(path, COLUMNS, MAX_RUNS) if row["status"] == "done"]
        places = [_find_run(folder / "runs", row["key"]) for row in rows]
    runs = tuple(_run(place, row) for place, row in zip(places, rows, strict=True))
    if len({len(run.shares) for run in runs if run.shares}) > 1:
        raise ConfigError(
            f"{folder}: its runs differ in their number of slices; they are not those of one study"
        )
    with reading(folder / "config.yaml") as path:
        config = read_text(path) if path.is_file() else ""
    return StudyResults(summary, comparisons, runs, config)


def _comparisons(summary: Record) -> tuple[Comparison, ...]:
    """Return the comparisons of a summary, having checked all else that it holds."""
    if summary["format"] != STUDY_FORMAT:
        raise ValueError(f"format {summary['format']}, this version reads {STUDY_FORMAT}")
    word(summary, "baseline")
    for count in ("planned", "finished"):
        whole(summary[count])
    for run in summary["failed"]:
        for name in ("dataset", "architecture", "arm", "error"):
            word(run, name)
        whole(run["seed"])
    return tuple(
        Comparison(
            word(item, "dataset"),
            word(item, "architecture"),
            tuple(_arm_summary(arm) for arm in item["arms"]),
        )
        for item in summary["comparisons"]
    )


def _arm_summary(arm: Record) -> ArmSummary:
    test = arm.get("non_inferiority", {"margin": None, "p": None, "holds": None})
    if not isinstance(test["holds"], bool | None):
        raise TypeError(f"non_inferiority.holds: {test['holds']!r:.40} is neither true nor false")
    return ArmSummary(
        arm=word(arm, "arm"),
        seeds=tuple(whole(seed) for seed in arm["seeds"]),
        figures={name: _interval(arm["figures"][name]) for name in FIGURES},
        shares=tuple(_interval(share) for share in arm["shares"]),
        differences={name: _interval(arm["differences"][name]) for name in FIGURES}
        if "differences" in arm
        else {},
        margin=figure(test["margin"]),
        p=figure(test["p"]),
        holds=test["holds"],
        bias_removed=figure(arm.get("bias_removed")),
    )


def _find_run(base: Path, key: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{1,64}", key):
        raise ValueError(f"{key!r} is no key of a run")
    found = sorted(base.glob(f"*-{key}"))
    if not found:
        raise ValueError(f"there is no folder {base.name}/*-{key}")
    return found[0]


def _run(folder: Path, row: Record) -> StudyRun:
    """Read a run under the names that it now has in the table."""
    with reading(folder / "run.json") as path:
        record = read_json(path)
        shares = tuple(figure(share) for share in record["shares"] or ())
        return StudyRun(
            dataset=word(row, "dataset"),
            architecture=word(row, "architecture"),
            arm=word(row, "arm"),
            seed=whole(int(row["seed"])),
            figures={name: figure(record.get(name)) for name in FIGURES},
            verdict=word(record, "verdict"),
            shares=shares,
            saliency=_saliency(record.get("saliency"), len(shares)),
            windows=whole(record["windows"]),
            steps=whole(record["steps"]),
            seconds=figure(record["seconds"]),
            curves=_curves(folder / "log" / "metrics.csv"),
            example=_example(folder / "example.npz"),
            circumstances=_circumstances(folder / "result.json"),
        )


def _saliency(values: Any, slices: int) -> NDArray[np.float64] | None:
    if values is None:
        return None
    table = np.array([[figure(value) for value in row] for row in values])
    if table.shape != (slices, len(SALIENCY_PERCENTILES)):
        raise ValueError(f"saliency has the shape {table.shape}")
    return table


def _curves(path: Path) -> dict[str, NDArray[np.float64]]:
    if not path.is_file():
        return {}
    with reading(path):
        rows = read_rows(path, ["step"], MAX_LOGGED)
        curves = {
            name: np.array([figure(float(row[name]) if row[name] else None) for row in rows])
            for name in (rows[0] if rows else ())
        }
        if curves and not (np.diff(curves["step"], prepend=-1) > 0).all():
            raise ValueError("its steps do not rise")
    return curves


def _example(path: Path) -> Example | None:
    if not path.is_file():
        return None
    with reading(path):
        return Example(**read_pictures(path, "image", "labels", "predicted"))


def _circumstances(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with reading(path):
        result = read_json(path)
        return {name: result[name] for name in ("created", "machine", "versions") if name in result}


def _interval(value: Record) -> Interval:
    return Interval(*(figure(value[name]) for name in ("estimate", "low", "high")))
