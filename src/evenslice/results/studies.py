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

import csv
import io
import math
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray  # noqa: TC002  # ``from_arrays`` reads the annotations

from evenslice._core import ConfigError, read_bounded, read_json, read_log, reading
from evenslice.results.audits import SALIENCY_PERCENTILES
from evenslice.results.comparisons import (
    MAIN_SCORES,
    METRICS,
    POOLED,
    Arm,
    Comparison,
    PooledComparison,
    incomparable,
    run_name,
)
from evenslice.results.documents import definitions_of, from_arrays, from_plain, read_arrays
from evenslice.results.intervals import UNKNOWN, Interval
from evenslice.results.stress import BriefLoss, StressSummary

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import TypeVar

    Compared = TypeVar("Compared", Comparison, PooledComparison)
    Entries = Mapping[str, Any]

STRESS_FILE = "stress.json"  # beside run.json where result.json was not kept: its entry "stress" alone

EXAMPLE_SIZE = 256
"""Largest number of pixels along y and x of the example that a run keeps."""

_reading = partial(
    reading, whole="a study", remedy="remove it and start the study again, which repeats only what is missing"
)


class FailedRun(TypedDict):
    """A run that failed, as ``summary.json`` describes it."""

    dataset: str
    architecture: str
    arm: str
    fold: NotRequired[int]
    seed: int
    error: str


class StudySummary(TypedDict):
    """The content of ``summary.json``; ``planned`` and ``finished`` are numbers of runs."""

    format: int
    planned: int
    finished: int
    failed: list[FailedRun]
    baseline: str
    score: NotRequired[str]  # the main score; summaries without are about Dice
    definitions: NotRequired[int]  # of the figures of its audits; in summaries of version 0.2 they are 1
    comparisons: list[dict[str, Any]]
    pooled: NotRequired[list[dict[str, Any]]]


@dataclass(frozen=True)
class ExampleSlice:
    """A test slice, or its centre: three uint8 arrays (y, x).

    Attributes:
        image: as the network saw it, scaled to 0..255.
        labels: the class of each pixel.
        predicted: the class that the network predicted.
    """

    image: Annotated[NDArray[np.uint8], "y x"]
    labels: Annotated[NDArray[np.uint8], "y x"]
    predicted: Annotated[NDArray[np.uint8], "y x"]


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
        saliency: (slices, percentiles) from ``ExampleWindows.saliency_percentiles``; None if unknown.
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


def read_comparisons(summary: Entries) -> tuple[Comparison, ...]:
    """Return the comparisons of a summary, and check the rest of it but ``pooled``."""
    definitions_of(summary)
    from_plain(StudySummary, dict(summary))
    return _read(Comparison, summary, "comparisons", METRICS)


def read_pooled(summary: Entries) -> tuple[PooledComparison, ...]:
    """Return the comparisons over all data sets of a summary."""
    return _read(PooledComparison, summary, "pooled", POOLED)


def _read(kind: type[Compared], summary: Entries, entry: str, names: Sequence[str]) -> tuple[Compared, ...]:
    """Read comparisons with all metrics, of which an earlier version knew fewer, and with the name of the main score."""
    found = from_plain(tuple[kind, ...], summary.get(entry, []), entry)  # type: ignore[valid-type]
    score = read_score(summary)

    def whole(known: dict[str, Interval]) -> dict[str, Interval]:
        return {name: known.get(name, UNKNOWN) for name in names} if known else {}

    def named(arm: Arm) -> Arm:
        return replace(arm, metrics=whole(arm.metrics), differences=whole(arm.differences), score=score)

    return tuple(replace(item, arms=tuple(map(named, item.arms))) for item in found)


def read_score(summary: Entries) -> str:
    """Return the name of the main score of a summary."""
    score = summary.get("score", MAIN_SCORES["segmentation"])
    if score not in MAIN_SCORES.values():
        raise ValueError(f"score: {score!r:.40} is not a main score")
    return str(score)


def failed_runs(summary: Entries) -> list[tuple[str, str]]:
    """Return the name of each failed run, with its fold if its data set has any, and its error.

    Example:
        >>> failed = {"dataset": "em", "architecture": "net", "arm": "twin", "fold": 0, "seed": 1, "error": "no luck"}
        >>> comparison = {"dataset": "em", "architecture": "net", "unit": "fold", "arms": []}
        >>> failed_runs({"comparisons": [comparison], "failed": [failed, failed | {"dataset": "mri"}]})
        [('em, net, twin, fold 0, seed 1', 'no luck'), ('mri, net, twin, seed 1', 'no luck')]
    """
    folded = {item["dataset"] for item in summary["comparisons"] if item.get("unit") == "fold"}
    folded |= {run["dataset"] for run in summary["failed"] if run.get("fold")}
    return [(run_name(run, folded=run["dataset"] in folded), run["error"]) for run in summary["failed"]]


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
        table = csv.DictReader(io.StringIO(read_bounded(path).decode(), newline=""), restval="")
        if "status" not in (table.fieldnames or ()):
            raise ValueError("it has no column 'status'")
        rows = [row for row in table if row["status"] == "done"]
        places = [_find_run(folder / "runs", row["key"]) for row in rows]
    runs = tuple(_run(place, row) for place, row in zip(places, rows, strict=True))
    latest = max((run.definitions for run in runs), default=1)
    runs = tuple(run if run.definitions == latest else _scores_alone(run) for run in runs)
    if len({len(run.shares) for run in runs if run.shares}) > 1:
        raise ConfigError(
            f"{folder}: its runs differ in their number of slices, so they do not belong to one study"
        )
    with _reading(folder / "config.yaml") as path:
        config = read_bounded(path).decode() if path.is_file() else ""
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
        metrics = {name: from_plain(float, record.get(name), name) for name in METRICS}
        names = {name: row[name] for name in ("dataset", "architecture", "arm")}
        numbers = {"fold": int(row.get("fold") or 0), "seed": int(row["seed"])}
        known = {"shares": record["shares"] or [], "metrics": metrics, "saliency": None}
        run: StudyRun = from_plain(StudyRun, {**record, **known, **names, **numbers})
        return replace(
            run,
            saliency=_saliency(record.get("saliency"), len(run.shares)),
            curves=_curves(folder / "log" / "metrics.csv"),
            example=read_example(folder / "example.npz"),
            stress=_stress(folder, record),
            circumstances=_circumstances(folder / "result.json"),
        )


def _saliency(values: Any, slices: int) -> NDArray[np.float64] | None:
    if values is None:
        return None
    table = np.array(from_plain(tuple[tuple[float, ...], ...], values, "saliency"))
    if table.shape != (slices, len(SALIENCY_PERCENTILES)):
        raise ValueError(f"saliency has shape {table.shape}")
    return table


def _curves(path: Path) -> dict[str, NDArray[np.float64]]:
    if not path.is_file():
        return {}
    with _reading(path):
        rows = read_log(path)
        return {
            name: np.array([from_plain(float, float(row[name]) if row[name] else None, name) for row in rows])
            for name in (rows[0] if rows else ())
        }


def read_example(path: Path) -> ExampleSlice | None:
    """Read the example of a run; None if there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    if not path.is_file():
        return None
    with _reading(path):
        found: ExampleSlice = from_arrays(ExampleSlice, read_arrays(path, 4 * EXAMPLE_SIZE**2))
        if not found.image.size or max(found.image.shape) > EXAMPLE_SIZE:
            raise ValueError(f"its pictures are of shape {found.image.shape}")
        return found


def _stress(folder: Path, record: Entries) -> StressSummary | None:
    """Read what disturbed slices cost a run: from its result, a part of it that was kept, or what ``run.json`` has."""
    for path in (folder / "result.json", folder / STRESS_FILE):
        if path.is_file():
            with _reading(path):
                values = read_json(path).get("stress")
                found: StressSummary | None = from_plain(StressSummary | None, values, "stress")
                return found
    names = ("intact", "reversed", "before", "after", "both")
    intact, turned, before, after, both = (
        from_plain(float, record.get(f"stress_{name}"), f"stress_{name}") for name in names
    )
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
