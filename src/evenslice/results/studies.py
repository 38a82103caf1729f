"""The results of a study, read from its folder.

    results = load_study("results")
    results.comparisons[0].arms[1].metrics["dice"]      # an interval over folds, or seeds
    results.pooled[0].arms[1].differences["dice"]       # over all data sets
    results.definitions                                 # of the figures of its audits
    results.runs[0].curves["validation_dice"]           # the log of that run's training

``summary.json``, ``results.csv`` and the ``run.json`` of each finished run are required. The training log, the example,
the configuration and the result of the training may be missing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evenslice._core import ConfigError, read_json, read_log, read_rows, read_text, reading
from evenslice.results.arms import METRICS, SALIENCY_PERCENTILES, Comparison, incomparable
from evenslice.results.intervals import Interval
from evenslice.results.stress import BriefLoss, StressSummary
from evenslice.results.study_files import count, number, read_pictures, text
from evenslice.results.study_summaries import StudySummary, read_comparisons, read_pooled, read_score

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from evenslice.results.pooling import PooledComparison

    Entries = Mapping[str, Any]

__all__ = [
    "ExampleSlice",
    "StudyResults",
    "StudyRun",
    "is_study",
    "load_study",
]

COLUMNS = ("dataset", "architecture", "arm", "seed", "key", "status")  # required in results.csv
STRESS_FILE = "stress.json"  # beside run.json where result.json was not kept: its entry "stress" alone
MAX_RUNS = 5000  # largest number of rows of results.csv

_reading = partial(
    reading, whole="a study", remedy="remove it and start the study again, which repeats only what is missing"
)


@dataclass(frozen=True)
class ExampleSlice:
    """A test slice, or its centre: three uint8 arrays (y, x).

    Attributes:
        image: as the network saw it, scaled to 0..255.
        labels: the class of each pixel.
        predicted: the class that the network predicted.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


@dataclass(frozen=True)
class StudyRun:
    """One finished run.

    Attributes:
        dataset: name of the data set.
        architecture: name of the network.
        arm: name of the arm.
        fold: which parts of the data set were tested; 0 without folds.
        seed: random seed.
        metrics: those of ``METRICS``; NaN where undefined.
        verdict: of the audit: symmetric, balanced, biased, inconclusive or not applicable.
        shares: mean share of each slice of the window in the audit.
        saliency: (slices, percentiles) from ``saliency_percentiles``; None if unknown.
        windows: number of windows of the audit.
        steps: of the training.
        seconds: of the training.
        curves: the columns of the training log by name (``step``, ``loss``, ``learning_rate``, ``validation_dice``
            or ``validation_balanced_accuracy``, ``share_-1`` ..., ``directional_bias`` ...), all of one length, NaN
            where nothing was logged; empty without a log.
        example: a test slice; None if none was kept.
        stress: what disturbed slices cost; None if that was not measured.
        circumstances: ``versions``, ``machine`` and ``created`` of the training; empty if unknown.
        answer_of: what the ``answer_change`` compares: "classes", "scores" or "unknown".
        definitions: those of the figures of its audit, 1 if version 0.2 made it; beside runs with later ones, it has scores
            alone, no verdict and no shares.
    """

    dataset: str
    architecture: str
    arm: str
    seed: int
    metrics: dict[str, float]
    verdict: str
    shares: tuple[float, ...]
    saliency: NDArray[np.float64] | None = None
    windows: int = 0
    steps: int = 0
    seconds: float = math.nan
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    example: ExampleSlice | None = None
    stress: StressSummary | None = None
    circumstances: dict[str, Any] = field(default_factory=dict)
    fold: int = 0
    answer_of: str = "unknown"
    definitions: int = 1


@dataclass(frozen=True)
class StudyResults:
    """The results of a study.

    Attributes:
        summary: the content of ``summary.json``.
        comparisons: the comparisons of the summary, one for each data set and architecture.
        runs: the finished runs, in the order of ``results.csv``.
        config: the text of the study's ``config.yaml``; empty without one.
        pooled: the arms of each architecture over all data sets.
    """

    summary: StudySummary
    comparisons: tuple[Comparison, ...]
    runs: tuple[StudyRun, ...]
    config: str = ""
    pooled: tuple[PooledComparison, ...] = ()

    @property
    def baseline(self) -> str:
        """Name of the arm that the others are compared with."""
        return self.summary["baseline"]

    @property
    def score(self) -> str:
        """Name of the main score, by which the arms are compared."""
        return read_score(self.summary)

    @property
    def definitions(self) -> int:
        """The definitions of the figures of its audits, 1 if version 0.2 made them."""
        return self.summary.get("definitions", 1)

    @property
    def interim(self) -> bool:
        """Whether runs are still missing, so that its tests are a look before the end."""
        return self.summary["finished"] < self.summary["planned"]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all arms, in the order of the comparisons."""
        return tuple(dict.fromkeys(arm.arm for item in self.comparisons for arm in item.arms))

    def runs_of(self, comparison: Comparison, arm: str) -> list[StudyRun]:
        """Return the runs of an arm in a comparison, one for each fold and seed."""
        names = (comparison.dataset, comparison.architecture, arm)
        return [run for run in self.runs if (run.dataset, run.architecture, run.arm) == names]


def is_study(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a study."""
    return (Path(folder) / "summary.json").is_file()


def load_study(folder: str | os.PathLike[str]) -> StudyResults:
    """Read the results of a study.

    This is safe for files of unknown origin: no more of them is read than a study writes, and nothing is unpickled.

    Args:
        folder: the folder of the study.

    Raises:
        ConfigError: it holds no study, or one of its files cannot be read.
    """
    folder = Path(folder)
    if not is_study(folder):
        raise ConfigError(f"{folder}: holds no study; name a folder that `evenslice study --out` wrote")
    with _reading(folder / "summary.json") as path:
        summary = read_json(path)
        comparisons, pooled = read_comparisons(summary), read_pooled(summary)
    with _reading(folder / "results.csv") as path:
        rows = [row for row in read_rows(path, COLUMNS, MAX_RUNS) if row["status"] == "done"]
        places = [_find_run(folder / "runs", row["key"]) for row in rows]
    runs = tuple(_run(place, row) for place, row in zip(places, rows, strict=True))
    latest = max((run.definitions for run in runs), default=1)
    runs = tuple(run if run.definitions == latest else _scores_alone(run) for run in runs)
    if len({len(run.shares) for run in runs if run.shares}) > 1:
        raise ConfigError(
            f"{folder}: its runs differ in their number of slices, so they do not belong to one study"
        )
    with _reading(folder / "config.yaml") as path:
        config = read_text(path) if path.is_file() else ""
    return StudyResults(cast("StudySummary", summary), comparisons, runs, config, pooled)


def _find_run(base: Path, key: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{1,64}", key):
        raise ValueError(f"{key!r} is not the key of a run")
    found = sorted(base.glob(f"*-{key}"))
    if not found:
        raise ValueError(f"the folder {base.name}/*-{key} is missing")
    return found[0]


def _scores_alone(run: StudyRun) -> StudyRun:
    """Return a run without what its audit found."""
    undefined = dict.fromkeys(incomparable(vars(run)), math.nan)
    metrics = {name: undefined.get(name, value) for name, value in run.metrics.items()}
    return replace(run, metrics=metrics, verdict="", shares=(), saliency=None)


def _run(folder: Path, row: Entries) -> StudyRun:
    """Read a run, with the names from its row in results.csv, which may have been edited."""
    with _reading(folder / "run.json") as path:
        record = read_json(path)
        shares = tuple(number(share) for share in record["shares"] or ())
        return StudyRun(
            dataset=text(row, "dataset"),
            architecture=text(row, "architecture"),
            arm=text(row, "arm"),
            fold=count(int(row.get("fold") or 0)),
            seed=count(int(row["seed"])),
            metrics={name: number(record.get(name)) for name in METRICS},
            verdict=text(record, "verdict"),
            definitions=count(record.get("definitions", 1)),
            answer_of=text({"answer_of": "unknown"} | record, "answer_of"),
            shares=shares,
            saliency=_saliency(record.get("saliency"), len(shares)),
            windows=count(record["windows"]),
            steps=count(record["steps"]),
            seconds=number(record["seconds"]),
            curves=_curves(folder / "log" / "metrics.csv"),
            example=_example(folder / "example.npz"),
            stress=_stress(folder, record),
            circumstances=_circumstances(folder / "result.json"),
        )


def _saliency(values: Any, slices: int) -> NDArray[np.float64] | None:
    if values is None:
        return None
    table = np.array([[number(value) for value in row] for row in values])
    if table.shape != (slices, len(SALIENCY_PERCENTILES)):
        raise ValueError(f"saliency has shape {table.shape}")
    return table


def _curves(path: Path) -> dict[str, NDArray[np.float64]]:
    if not path.is_file():
        return {}
    with _reading(path):
        rows = read_log(path)
        return {
            name: np.array([number(float(row[name]) if row[name] else None) for row in rows])
            for name in (rows[0] if rows else ())
        }


def _example(path: Path) -> ExampleSlice | None:
    if not path.is_file():
        return None
    with _reading(path):
        return ExampleSlice(**read_pictures(path, "image", "labels", "predicted"))


def _stress(folder: Path, record: Entries) -> StressSummary | None:
    """Read what disturbed slices cost a run: from its result, a part of it that was kept, or what ``run.json`` has."""
    for path in (folder / "result.json", folder / STRESS_FILE):
        if path.is_file():
            with _reading(path):
                values = read_json(path).get("stress")
                return None if values is None else StressSummary.from_dict(values)
    names = ("intact", "reversed", "before", "after", "both")
    intact, turned, before, after, both = (number(record.get(f"stress_{name}")) for name in names)
    if math.isnan(intact):
        return None
    missing = BriefLoss("missing", 1, before, after, both, Interval(after - before, math.nan, math.nan))
    return StressSummary("labels", 0, intact, turned, (missing,))


def _circumstances(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with _reading(path):
        result = read_json(path)
        return {name: result[name] for name in ("created", "machine", "versions") if name in result}
