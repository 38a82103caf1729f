"""What the own studies of the project found, from their summaries and rows; what was expected; and how pages write numbers."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import yaml

from evenslice.report.tables import NOTHING, difference, interval
from evenslice.results.intervals import UNKNOWN, Interval, pool_means

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from evenslice.results.intervals import PooledMean

    Item = TypeVar("Item", "Arm", "Best")

STUDIES = Path(__file__).parent
NAMES = ("price", "families", "classification", "stress", "cuts", "five-slices", "default-crops")
LOST = 0.01  # Dice that a fair start is expected to lose at most
LEVEL = 0.025  # of one-sided tests
FAIR = ("uniform", "center", "profile", "mirror", "twin")


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

    def loss(self, kind: str) -> Interval:
        """Return the mean Dice that its runs lose, see ``lost``."""
        return self.mean(lambda run, _: lost(run, kind)).interval()

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


def lost(run: Mapping[str, str], kind: str) -> float:
    """Return the Dice that a run loses with the slice before, after, or both missing, or with the stack reversed."""
    intact, disturbed = run.get("stress_intact"), run.get(f"stress_{kind}")
    return float(intact) - float(disturbed) if intact and disturbed else math.nan


def verdicts(studies: Iterable[Study]) -> dict[str, Counter[str]]:
    """Count the verdicts of all audits, by the start of their networks."""
    counts: dict[str, Counter[str]] = {}
    for arm in (arm for study in studies for arm in study.pooled):
        counts.setdefault(arm.start, Counter()).update(run["verdict"] for run in arm.runs if run["verdict"])
    return counts


# What was expected, held strictly against what was found.


def outcomes(studies: Sequence[Study]) -> dict[str, str]:
    """Hold each expectation against the studies that bear on it, and return what became of it."""
    alone = [arm for study in studies for arm in study.alone]
    pooled = [arm for study in studies for arm in study.pooled if arm.test]
    uniform = [arm for arm in alone if arm.test and starts(arm, "uniform")]
    dice = [arm for arm in alone if arm.test and arm.study.score == "dice"]
    return {
        "A uniform start removes 90 % of the largest pair bias left by training": judge(
            uniform, lambda arm: removed(arm).low >= 0.9, lambda arm: removed(arm).high < 0.9
        ),
        "and loses no more than 0.01 Dice": judge(
            [arm for arm in dice if starts(arm, "uniform")],
            lambda arm: bool(arm.test["holds"]) and arm.test["margin"] <= LOST,
            lambda arm: arm.change.high < -LOST,
        ),
        "The largest pair bias of a tied, `twin` or symmetrized network stays below 1e-4": judge(
            [
                arm
                for arm in alone
                if arm.how.get("tie") or arm.how.get("symmetrize") or arm.how.get("strategy") == "twin"
            ],
            lambda arm: arm.figure("largest_bias").high < 1e-4,
            lambda arm: arm.figure("largest_bias").low > 1e-4,
        ),
        "A random start loses Dice": judge(
            [arm for arm in dice if starts(arm, "random")],
            lambda arm: arm.change.high < 0,
            lambda arm: arm.change.low > 0,
        ),
        "A pretrained start keeps a largest pair bias above 0.05": judge(
            [arm for arm in alone if starts(arm, "pretrained") and arm.how.get("z_flip") is not False],
            lambda arm: arm.figure("largest_bias").low > 0.05,
            lambda arm: arm.figure("largest_bias").high < 0.05,
        ),
        "Symmetrized at the encoder and trained so, a network scores higher": judge(
            [arm for arm in pooled if arm.how.get("symmetrize") == "encoder" and is_trained_so(arm.how)],
            is_higher,
            is_lower,
        ),
        "Symmetrized at the output after training, a network scores higher": judge(
            [arm for arm in pooled if arm.how.get("symmetrize") == "output" and "network_of" in arm.how],
            is_higher,
            is_lower,
        ),
        "The best fair start at one pass loses no more than 0.01": judge(
            list(best_of(arm for arm in pooled if costs_one_pass(arm.how))),
            lambda best: best.p < LEVEL,
            lambda best: all(arm.change.high < -LOST for arm in best.arms),
        ),
        "With the slice before missing, fair starts and training with missing slices lose less than half as much": judge(
            [arm for arm in pooled if should_survive(arm.how) and "stress_intact" in arm.runs[0]],
            lambda arm: less_than_half(arm).high < 0,
            lambda arm: less_than_half(arm).low > 0,
        ),
    }


def judge(found: Sequence[Item], confirms: Callable[[Item], bool], refutes: Callable[[Item], bool]) -> str:
    """Return what became of an expectation: refuted by any finding, confirmed only by all, open otherwise.

    Studies all of whose findings confirm an open one are named. Comparisons with NaN are false: they confirm nothing.
    """
    if any(map(refutes, found)):
        return "refuted"
    unsettled = {item.study.name for item in found if not confirms(item)}
    settled = dict.fromkeys(f"`{item.study.name}`" for item in found if item.study.name not in unsettled)
    if not unsettled:
        return "confirmed"
    return f"open; confirmed in {', '.join(settled)}" if settled else "open"


def starts(arm: Arm, strategy: str) -> bool:
    """Return whether an arm differs from others by starting in one way, and by nothing else."""
    how = arm.how
    return how.get("strategy") == strategy and not any(
        how.get(name) for name in ("tie", "network_of", "symmetrize", "missing_slices")
    )


def is_trained_so(how: Mapping[str, Any]) -> bool:
    """Return whether an arm is trained as it is audited, and otherwise like the baseline."""
    return not how.get("network_of") and not how.get("missing_slices")


def costs_one_pass(how: Mapping[str, Any]) -> bool:
    """Return whether an arm starts fair, in a network that sees each window once."""
    fair = how.get("tie") or how.get("strategy") in FAIR
    return bool(fair) and not how.get("symmetrize") and is_trained_so(how)


def should_survive(how: Mapping[str, Any]) -> bool:
    """Return whether the training of an arm should make it survive a missing slice."""
    fair = costs_one_pass(how) or (how.get("symmetrize") and not how.get("network_of"))
    return bool(how.get("missing_slices") or fair)


def removed(arm: Arm) -> Interval:
    """Return the part of the baseline's bias that an arm removes."""
    return read_interval(arm.entry["bias_removed"])


def is_higher(arm: Arm) -> bool:
    """Return whether an arm scores higher: the primary one by its test of superiority, others by their adjusted p."""
    if arm.entry.get("primary"):
        return bool(arm.entry["superiority"]["holds"])
    return arm.change.estimate > 0 and _adjusted(arm) < 2 * LEVEL


def is_lower(arm: Arm) -> bool:
    """Return whether an arm scores lower, likewise."""
    if arm.entry.get("primary"):
        return arm.change.high < 0
    return arm.change.estimate < 0 and _adjusted(arm) < 2 * LEVEL


def _adjusted(arm: Arm) -> float:
    p = arm.entry["difference"]["p_adjusted"]
    return float("nan") if p is None else float(p)


class Best(NamedTuple):
    """The arm that scores highest of a kind, and how many there are; its p is multiplied by their number."""

    study: Study
    arms: list[Arm]

    @property
    def p(self) -> float:
        """That of the test that the best loses more than ``LOST``."""
        best = max(self.arms, key=lambda arm: arm.change.estimate)
        score = best.study.score
        gained = best.mean(lambda run, other: float(run[score]) - float(other[score]))
        return min(1.0, len(self.arms) * gained.p_above(-LOST))


def best_of(arms: Iterable[Arm]) -> Iterable[Best]:
    """Group arms by their study and network."""
    for _, group in groupby(arms, key=lambda arm: (arm.study.name, arm.network)):
        found = list(group)
        yield Best(found[0].study, found)


def less_than_half(arm: Arm) -> Interval:
    """Return an arm's loss with the slice before missing, less half of the baseline's, over paired runs."""
    return arm.mean(lambda run, other: lost(run, "before") - lost(other, "before") / 2).interval()


def quotable(study: Study) -> Iterator[str]:
    """Yield every figure of a study as pages may quote it, with its interval."""
    for arm in (*study.pooled, *study.alone):
        for name in arm.entry["figures"]:
            yield interval(arm.figure(name), *([0.05] if name == "largest_bias" else []))
            yield difference(arm.difference(name))
        yield arm.change_text
        for kind in ("before", "after", "both", "reversed"):
            yield interval(arm.loss(kind))
        yield interval(arm.mean(lambda run, _: lost(run, "before") - lost(run, "after")).interval())
