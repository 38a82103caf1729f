"""The results of a study, read from its folder.

    results = StudyResults.load("results")
    results.comparisons[0].arms[1].metrics["dice"]      # an interval over folds, or seeds
    results.pooled[0].arms[1].differences["dice"]       # over all data sets
    results.runs[0].curves["validation_dice"]           # the log of that run's training

``summary.json``, ``results.csv`` and the ``run.json`` of each finished run are required. The training log, the example,
the configuration and the result of the training may be missing.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray  # noqa: TC002  # ``from_arrays`` reads the annotations

from evenslice._core import ConfigError, read_bounded, read_json, read_log, reading
from evenslice.results.comparisons import (
    METRICS,
    TASK_SCORES,
    Comparison,
    PooledComparison,
    StudyPlan,
    incomparable,
    pool_runs,
    replicate_means,
    run_name,
    summarize_runs,
)
from evenslice.results.documents import (
    DEFINITIONS,
    FORMAT,
    definitions_of,
    from_arrays,
    from_plain,
    read_arrays,
    to_plain,
)
from evenslice.results.intervals import Interval
from evenslice.results.stress import BriefLoss, StressSummary

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Self

    Entries = Mapping[str, Any]

STRESS_FILE = "stress.json"  # beside run.json where result.json was not kept: its entry "stress" alone
MAIN_SCORES = {names[0] for names in TASK_SCORES.values()}

_reading = partial(
    reading, whole="a study", remedy="remove it and start the study again, which repeats only what is missing"
)


@dataclass(frozen=True)
class FailedRun:
    """A run that failed."""

    dataset: str
    architecture: str
    arm: str
    seed: int
    error: str
    fold: int = 0


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """What a study found: the content of ``summary.json``.

    Attributes:
        planned: number of runs.
        finished: number of those that are done.
        failed: those that failed.
        baseline: the arm that the others are compared with.
        score: name of the main score, by which the arms are compared; summaries without are about Dice.
        definitions: those of the figures of its audits; 1 in summaries of version 0.2.
        comparisons: the arms on each data set with each architecture.
        pooled: the arms of each architecture over all data sets.
    """

    format: int = FORMAT
    planned: int
    finished: int
    failed: tuple[FailedRun, ...]
    baseline: str
    score: str = "dice"
    definitions: int = 1
    comparisons: tuple[Comparison, ...]
    pooled: tuple[PooledComparison, ...] = ()

    @classmethod
    def of_runs(
        cls, rows: Sequence[Entries], failed: Sequence[Entries], planned: int, plan: StudyPlan
    ) -> Self:
        """Summarize the runs of a study so far.

        Args:
            rows: the finished runs; see ``pool_runs``.
            failed: those that failed, each with the entries of a ``FailedRun``.
            planned: number of all runs.
            plan: what is compared.
        """
        return cls(
            planned=planned,
            finished=len(rows),
            failed=tuple(from_plain(FailedRun, dict(run), "failed") for run in failed),
            baseline=plan.baseline,
            score=plan.score,
            definitions=max(
                (row.get("definitions", 1) for row in rows if row["verdict"]), default=DEFINITIONS
            ),
            comparisons=summarize_runs(rows, plan),
            pooled=pool_runs(rows, plan),
        )

    @staticmethod
    def read(document: Entries) -> StudySummary:
        """Read what ``to_dict`` returned, by this version or an earlier one."""
        definitions_of(document)
        found: StudySummary = from_plain(StudySummary, dict(document))
        if found.score not in MAIN_SCORES:
            raise ValueError(f"score: {found.score!r:.40} is not a main score")

        def scored(items: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(
                replace(item, arms=tuple(replace(arm, score=found.score) for arm in item.arms))
                for item in items
            )

        return replace(found, comparisons=scored(found.comparisons), pooled=scored(found.pooled))

    @property
    def interim(self) -> bool:
        """Whether runs are still missing, so that its tests are a look before the end."""
        return self.finished < self.planned

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all arms, in the order of the comparisons."""
        return tuple(dict.fromkeys(arm.arm for item in self.comparisons for arm in item.arms))

    @property
    def errors(self) -> list[tuple[str, str]]:
        """The name of each failed run, with its fold if its data set has any, and its error."""
        folded = {item.dataset for item in self.comparisons if item.unit == "fold"}
        folded |= {run.dataset for run in self.failed if run.fold}
        return [(run_name(vars(run), folded=run.dataset in folded), run.error) for run in self.failed]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, with the keys of ``summary.json``."""
        return {entry.name: to_plain(getattr(self, entry.name)) for entry in fields(StudySummary)}


@dataclass(frozen=True, eq=False)
class ExampleSlice:
    """A test slice, or its centre: three uint8 arrays (y, x) of at most ``LARGEST`` pixels along each.

    Attributes:
        image: as the network saw it, scaled to 0..255.
        labels: the class of each pixel.
        predicted: the class that the network predicted.
    """

    image: Annotated[NDArray[np.uint8], "y x"]
    labels: Annotated[NDArray[np.uint8], "y x"]
    predicted: Annotated[NDArray[np.uint8], "y x"]
    LARGEST: ClassVar[int] = 256

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read the example of a run; None if there is none.

        Raises:
            ConfigError: it cannot be read.
        """
        if not path.is_file():
            return None
        with _reading(path):
            found: Self = from_arrays(cls, read_arrays(path, 4 * cls.LARGEST**2))
            if not found.image.size or max(found.image.shape) > cls.LARGEST:
                raise ValueError(f"its pictures are of shape {found.image.shape}")
            return found


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
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    example: ExampleSlice | None = None
    stress: StressSummary | None = None
    circumstances: dict[str, Any] = field(default_factory=dict)
    fold: int = 0
    answer_of: str = "unknown"
    definitions: int = 1


@dataclass(frozen=True, kw_only=True)
class StudyResults(StudySummary):
    """The results of a study: its summary, and what is in its folder.

    Attributes:
        document: the content of ``summary.json`` as it was read.
        runs: the finished runs, in the order of ``results.csv``.
        config: the text of the study's ``config.yaml``; empty without one.
    """

    document: Entries
    runs: tuple[StudyRun, ...]
    config: str = ""

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the results of a study.

        This is safe for files of unknown origin: no more of them is read than a study writes, and nothing is unpickled.

        Args:
            folder: the folder of the study.

        Raises:
            ConfigError: it holds no study, or one of its files cannot be read.
        """
        folder = Path(folder)
        if not (folder / "summary.json").is_file():
            raise ConfigError(f"{folder}: holds no study; name a folder that `evenslice study --out` wrote")
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
        with _reading(folder / "summary.json") as path:
            document = read_json(path)
            return cls(**vars(cls.read(document)), document=document, runs=runs, config=config)

    def runs_of(self, comparison: Comparison, arm: str) -> list[StudyRun]:
        """Return the runs of an arm in a comparison, one for each fold and seed."""
        names = (comparison.dataset, comparison.architecture, arm)
        return [run for run in self.runs if (run.dataset, run.architecture, run.arm) == names]

    def mean_loss(self, comparison: Comparison, arm: str, which: tuple[str, int, str]) -> Interval:
        """Return the mean over folds, or seeds, of a loss of an arm; see ``StressSummary.lost``."""
        runs = self.runs_of(comparison, arm)
        lost = [run.stress.lost(*which) if run.stress else math.nan for run in runs]
        return Interval.of_mean(replicate_means([vars(run) for run in runs], lost, comparison.unit), (-1, 1))


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
    return replace(run, metrics=metrics, verdict="", shares=())


def _run(folder: Path, row: Entries) -> StudyRun:
    """Read a run, with the names from its row in results.csv, which may have been edited."""
    with _reading(folder / "run.json") as path:
        record = read_json(path)
        metrics = {name: from_plain(float, record.get(name), name) for name in METRICS}
        names = {name: row[name] for name in ("dataset", "architecture", "arm")}
        numbers = {"fold": int(row.get("fold") or 0), "seed": int(row["seed"])}
        known = {"shares": record["shares"] or [], "metrics": metrics}
        run: StudyRun = from_plain(StudyRun, {**record, **known, **names, **numbers})
        return replace(
            run,
            curves=_curves(folder / "log" / "metrics.csv"),
            example=ExampleSlice.load(folder / "example.npz"),
            stress=_stress(folder, record),
            circumstances=_circumstances(folder / "result.json"),
        )


def _curves(path: Path) -> dict[str, NDArray[np.float64]]:
    if not path.is_file():
        return {}
    with _reading(path):
        rows = read_log(path)
        return {
            name: np.array([from_plain(float, float(row[name]) if row[name] else None, name) for row in rows])
            for name in (rows[0] if rows else ())
        }


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
