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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray  # noqa: TC002  # ``from_arrays`` reads the annotations

from evenslice._core import ConfigError, read_bounded, read_json, read_log, reading
from evenslice.results import documents
from evenslice.results.comparisons import StudySummary, replicate_means
from evenslice.results.intervals import Interval
from evenslice.results.measurements import pair_bias
from evenslice.results.stress import StressSummary

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from typing import Self

    from evenslice.results.comparisons import Comparison

    Entries = Mapping[str, Any]

_reading = partial(
    reading, whole="a study", remedy="remove it and start the study again, which repeats only what is missing"
)


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
    def load(cls, path: Path) -> Self:
        """Read the example of a run.

        Raises:
            ConfigError: it cannot be read.
        """
        with _reading(path):
            arrays = documents.read_arrays(path, 4 * cls.LARGEST**2)
            found: Self = documents.from_arrays(cls, arrays)
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
        verdict: of the audit: symmetric, balanced, biased, inconclusive or not applicable; empty of one by version 0.2, beside
            later ones.
        curves: the columns of the training log by name (``step``, ``loss``, ``learning_rate``, ``validation_dice``
            or ``validation_balanced_accuracy``, ``share_-1`` ..., ``directional_bias`` ...), all of one length, NaN
            where nothing was logged; empty without a log.
        example: a test slice; None if none was kept.
        stress: the cost of disturbed slices; None if that was not measured.
        circumstances: ``versions``, ``machine`` and ``created`` of the training; empty if unknown.
        definitions: those of the figures of its audit, 1 if version 0.2 made it.
    """

    dataset: str
    architecture: str
    arm: str
    seed: int
    verdict: str
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    example: ExampleSlice | None = None
    stress: StressSummary | None = None
    circumstances: dict[str, Any] = field(default_factory=dict)
    fold: int = 0
    definitions: int = 1

    @property
    def largest_bias(self) -> NDArray[np.float64]:
        """The largest absolute pair bias at each step of the log; NaN without pairs."""
        shares = {
            name[6:]: values for name, values in self.curves.items() if re.fullmatch(r"share_-?\d+", name)
        }
        if len(shares) < 3:
            return np.full(1, np.nan)
        biases = pair_bias(np.stack([shares[offset] for offset in sorted(shares, key=int)], axis=1))
        return np.asarray(np.abs(biases).max(axis=1))


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
        runs = tuple(run if run.definitions == latest else replace(run, verdict="") for run in runs)
        config = _read(folder / "config.yaml", lambda path: read_bounded(path).decode(), "")
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
        means = replicate_means([vars(run) for run in runs], lost, comparison.unit)
        return Interval.of_mean(means, (-1, 1), comparison.folds)


def _find_run(base: Path, key: str) -> Path:
    found = sorted(base.glob(f"*-{key}")) if re.fullmatch(r"[0-9a-f]{1,64}", key) else []
    if not found:
        raise ValueError(f"no folder {base.name}/*-KEY has the key {key!r}")
    return found[0]


def _read(path: Path, read: Callable[[Path], Any], missing: Any) -> Any:
    """Return what a function reads from a file of a study, or what stands for a file that is missing."""
    if not path.is_file():
        return missing
    with _reading(path):
        return read(path)


def _run(folder: Path, row: Entries) -> StudyRun:
    """Read a run, with the names from its row in results.csv, which may have been edited."""
    with _reading(folder / "run.json") as path:
        record = read_json(path)
        names = {name: row[name] for name in ("dataset", "architecture", "arm")}
        numbers = {"fold": int(row.get("fold") or 0), "seed": int(row["seed"])}
        run: StudyRun = documents.from_plain(StudyRun, {**record, **names, **numbers})
    return replace(
        run,
        curves=_read(folder / "log" / "metrics.csv", _curves, {}),
        example=_read(folder / "example.npz", ExampleSlice.load, None),
        # An archive of runs keeps a part of the result alone, as stress.json.
        **_read(folder / "result.json", _result, _read(folder / "stress.json", _result, {})),
    )


def _curves(path: Path) -> dict[str, NDArray[np.float64]]:
    rows = read_log(path)
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else ())}


def _result(path: Path) -> dict[str, Any]:
    """Read the cost of disturbed slices in a run, and its circumstances, from its result or a part of it that was kept."""
    result = read_json(path)
    stress = documents.from_plain(StressSummary | None, result.get("stress"), "stress")
    known = {name: result[name] for name in ("created", "machine", "versions") if name in result}
    return {"stress": stress, "circumstances": known}
