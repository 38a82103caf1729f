"""What the own studies of the project found, from their summaries and rows; and how pages write numbers."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evenslice.report.tables import NOTHING, difference, interval
from evenslice.results.comparisons import StudySummary, replicate_means
from evenslice.results.intervals import UNKNOWN, Interval, pool_means

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from evenslice.results.intervals import PooledMean

STUDIES = Path(__file__).parent
NAMES = ("price", "short", "compute", "families", "classification", "cuts", "five-slices", "default-crops")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Write a CSV anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


@dataclass(frozen=True)
class Study:
    """One study: its name, its configuration, its summary, and a row for each run."""

    name: str
    config: Mapping[str, Any]
    summary: StudySummary
    runs: list[dict[str, str]]

    @classmethod
    def read(cls, name: str, folder: Path = STUDIES) -> Study:
        """Read a study from the folder that holds all."""
        config = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        summary = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
        return cls(name, config, StudySummary.read(summary), read_rows(folder / name / "results.csv"))

    @cached_property
    def pooled(self) -> list[Arm]:
        """Each arm over all data sets, for each network."""
        items = [(item, entry) for item in self.summary.pooled for entry in item.arms]
        return [Arm(self, item.architecture, item.datasets, entry) for item, entry in items]

    @cached_property
    def alone(self) -> list[Arm]:
        """Each arm on each data set, for each network."""
        items = [(item, entry) for item in self.summary.comparisons for entry in item.arms]
        return [Arm(self, item.architecture, (item.dataset,), entry) for item, entry in items]


@dataclass(frozen=True)
class Arm:
    """One arm of a study with one network, on one data set or over all, and its entry of the summary."""

    study: Study
    network: str
    datasets: tuple[str, ...]
    entry: Any

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return str(self.entry.arm)

    @property
    def runs(self) -> list[dict[str, str]]:
        """Its rows of ``results.csv``."""
        own = [run for run in self.study.runs if run["dataset"] in self.datasets]
        return [run for run in own if (run["architecture"], run["arm"]) == (self.network, self.name)]

    @property
    def start(self) -> str:
        """The kind of its networks: symmetric by construction, or else by their first layer."""
        how = next(item for item in self.study.config["arms"] if item["name"] == self.name)
        built = any(how.get(name) for name in ("tie", "symmetrize")) or how["strategy"] == "twin"
        return "tied, `twin` or symmetrized" if built else str(how["strategy"])

    @property
    def change_text(self) -> str:
        """That difference, with as many digits as show on which side of the margin it lies."""
        found = self.difference(self.study.summary.score)
        return difference(found, -self.entry.margin) if self.entry.differences else NOTHING

    def difference(self, name: str) -> Interval:
        """Return the difference of a figure from the baseline's; NaN for the baseline itself."""
        found: Interval = self.entry.differences.get(name, UNKNOWN)
        return found

    def mean(
        self, value: Callable[[Mapping[str, str], Mapping[str, str]], float], beside: str | None = None
    ) -> PooledMean:
        """Return the mean, over data sets and replicates, of a value of each run beside that of the baseline or another arm."""
        named = (self.network, beside or self.study.summary.baseline)
        runs = [run for run in self.study.runs if (run["architecture"], run["arm"]) == named]
        baseline = {_place(run): run for run in runs}
        folds = {item["name"]: item.get("folds", 1) for item in self.study.config["datasets"]}
        groups = []
        for dataset in self.datasets:
            own = [run for run in self.runs if run["dataset"] == dataset and _place(run) in baseline]
            values = [value(run, baseline[_place(run)]) for run in own]
            groups.append(replicate_means(own, values, "fold" if folds[dataset] > 1 else "seed"))
        return pool_means(groups, [folds[dataset] for dataset in self.datasets])


def _place(run: Mapping[str, str]) -> tuple[str, str, str]:
    return run["dataset"], run.get("fold", ""), run["seed"]


def lost(kind: str, run: Mapping[str, str], _: Mapping[str, str] | None = None) -> float:
    """Return the Dice that a run loses with the slice before, after, or both missing, or with the stack reversed."""
    intact, disturbed = run.get("stress_intact"), run.get(f"stress_{kind}")
    return float(intact) - float(disturbed) if intact and disturbed else math.nan


def quotable(study: Study) -> Iterator[str]:
    """Yield every figure of a study as pages may quote it, with its interval."""
    for arm in (*study.pooled, *study.alone):
        for name, found in arm.entry.metrics.items():
            yield interval(found, *([0.05] if name == "largest_bias" else []))
            yield difference(arm.difference(name))
        yield arm.change_text
        for kind in ("before", "after", "both", "reversed"):
            yield interval(arm.mean(partial(lost, kind)).interval())
