"""What the own studies of the project found, from their summaries and rows; and how pages write numbers."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from evenslice.report.tables import NOTHING, difference, interval
from evenslice.results.intervals import UNKNOWN, Interval, pool_means

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from evenslice.results.intervals import PooledMean

STUDIES = Path(__file__).parent
NAMES = ("price", "short", "families", "classification", "cuts", "five-slices", "default-crops")


def read_interval(entry: Mapping[str, float | None]) -> Interval:
    """Return the interval of an entry of a summary, where null stands for NaN."""
    values = (entry[name] for name in ("estimate", "low", "high"))
    return Interval(*(math.nan if value is None else value for value in values))


@dataclass(frozen=True)
class Study:
    """One study: its name, its configuration, its summary, and a row for each run."""

    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    runs: list[dict[str, str]]

    @classmethod
    def read(cls, name: str, folder: Path = STUDIES) -> Study:
        """Read a study from the folder that holds all."""
        with (folder / name / "results.csv").open(newline="", encoding="utf-8") as file:
            runs = list(csv.DictReader(file))
        config = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        summary = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
        return cls(name, config, summary, runs)

    @property
    def score(self) -> str:
        """The main score of its task."""
        task = self.config.get("training", {}).get("task")
        return "balanced_accuracy" if task == "classification" else "dice"

    @cached_property
    def pooled(self) -> list[Arm]:
        """Each arm over all data sets, for each network."""
        return [Arm(self, item, entry) for item in self.summary["pooled"] for entry in item["arms"]]

    @cached_property
    def alone(self) -> list[Arm]:
        """Each arm on each data set, for each network."""
        return [Arm(self, item, entry) for item in self.summary["comparisons"] for entry in item["arms"]]


@dataclass(frozen=True)
class Arm:
    """One arm of a study, on one data set or over all: an entry of the summary, and the comparison that it stands in."""

    study: Study
    comparison: Mapping[str, Any]
    entry: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return str(self.entry["arm"])

    @property
    def network(self) -> str:
        """The name of its network."""
        return str(self.comparison["architecture"])

    @property
    def datasets(self) -> list[str]:
        """Those that it is about."""
        return list(self.comparison.get("datasets") or [self.comparison["dataset"]])

    @property
    def how(self) -> Mapping[str, Any]:
        """How the configuration starts and trains it."""
        return next(item for item in self.study.config["arms"] if item["name"] == self.name)

    @property
    def runs(self) -> list[dict[str, str]]:
        """Its rows of ``results.csv``."""
        own = [run for run in self.study.runs if run["dataset"] in self.datasets]
        return [run for run in own if (run["architecture"], run["arm"]) == (self.network, self.name)]

    @property
    def start(self) -> str:
        """The kind of its networks: symmetric by construction, or else by their first layer."""
        built = any(self.how.get(name) for name in ("tie", "symmetrize")) or self.how["strategy"] == "twin"
        return "tied, `twin` or symmetrized" if built else str(self.how["strategy"])

    @property
    def test(self) -> Mapping[str, Any]:
        """Its test of non-inferiority; empty for the baseline."""
        return self.entry["non_inferiority"] if self.entry.get("differences") else {}

    @property
    def judgement(self) -> str:
        """The outcome of that test, in words; "superior" where the primary comparison is."""
        if not self.test or self.test["holds"] is None:
            return NOTHING
        if self.entry.get("superiority") and self.entry["superiority"]["holds"]:
            return "superior"
        if self.test["holds"]:
            return "non-inferior"
        return "inferior" if self.change.high < -self.test["margin"] else "open"

    @property
    def change(self) -> Interval:
        """The difference of its score from the baseline's."""
        return self.difference(self.study.score)

    @property
    def change_text(self) -> str:
        """That difference, with as many digits as show on which side of the margin it lies."""
        return difference(self.change, -self.test["margin"]) if self.test else NOTHING

    def figure(self, name: str) -> Interval:
        """Return a figure of the summary."""
        return read_interval(self.entry["figures"][name])

    def difference(self, name: str) -> Interval:
        """Return the difference of a figure from the baseline's; NaN for the baseline itself."""
        found = (self.entry.get("differences") or {}).get(name)
        return UNKNOWN if found is None else read_interval(found)

    def mean(self, value: Callable[[Mapping[str, str], Mapping[str, str]], float]) -> PooledMean:
        """Return the mean, over data sets and replicates, of a value of each run beside the baseline's of the same place."""
        baseline = {
            _place(run): run
            for run in self.study.runs
            if run["architecture"] == self.network and run["arm"] == self.study.summary["baseline"]
        }
        groups = []
        folds = {item["name"]: item.get("folds", 1) for item in self.study.config["datasets"]}
        for dataset in self.datasets:
            replicates: dict[str, list[float]] = {}
            for run in self.runs:
                if run["dataset"] == dataset and _place(run) in baseline:
                    own = replicates.setdefault(run["fold" if folds[dataset] > 1 else "seed"], [])
                    own.append(value(run, baseline[_place(run)]))
            groups.append([float(np.mean(values)) for values in replicates.values()])
        return pool_means(groups, [folds[dataset] for dataset in self.datasets])


def _place(run: Mapping[str, str]) -> tuple[str, str, str]:
    return run["dataset"], run.get("fold", ""), run["seed"]


def lost(kind: str, run: Mapping[str, str], _: Mapping[str, str] | None = None) -> float:
    """Return the Dice that a run loses with the slice before, after, or both missing, or with the stack reversed."""
    intact, disturbed = run.get("stress_intact"), run.get(f"stress_{kind}")
    return float(intact) - float(disturbed) if intact and disturbed else math.nan


def verdicts(studies: Iterable[Study]) -> dict[str, Counter[str]]:
    """Count the verdicts of all audits, by the start of their networks."""
    counts: dict[str, Counter[str]] = {}
    for arm in (arm for study in studies for arm in study.pooled):
        counts.setdefault(arm.start, Counter()).update(run["verdict"] for run in arm.runs if run["verdict"])
    return counts


def quotable(study: Study) -> Iterator[str]:
    """Yield every figure of a study as pages may quote it, with its interval."""
    for arm in (*study.pooled, *study.alone):
        for name in arm.entry["figures"]:
            yield interval(arm.figure(name), *([0.05] if name == "largest_bias" else []))
            yield difference(arm.difference(name))
        yield arm.change_text
        for kind in ("before", "after", "both", "reversed"):
            yield interval(arm.mean(partial(lost, kind)).interval())
        yield interval(arm.mean(lambda run, _: lost("before", run) - lost("after", run)).interval())
