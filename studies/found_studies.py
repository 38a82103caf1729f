"""The project's own studies, as the scripts that write about them read them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from run_archive import ARCHIVE, unpack

from evenslice._core.config_files import load_config
from evenslice.results.studies import load_study
from evenslice.studying.config import StudyConfig
from evenslice.studying.runs import count_runs

if TYPE_CHECKING:
    from pathlib import Path

    from evenslice.results.arms import ArmSummary, Comparison
    from evenslice.results.studies import StudyResults

__all__ = ["Found", "Study", "find_studies"]


@dataclass(frozen=True)
class Study:
    """One study: its name, what it was to do, what it found."""

    name: str
    about: str
    config: StudyConfig
    results: StudyResults

    @property
    def planned(self) -> int:
        """Number of runs of its configuration, or of an earlier one that its results are of and that asked for more."""
        return max(count_runs(self.config), self.results.summary["planned"])

    @property
    def complete(self) -> bool:
        """Whether all runs are done, and every arm has results on every data set with every network."""
        config = self.config
        names = [
            [item.name for item in kind] for kind in (config.datasets, config.architectures, config.arms)
        ]
        found = {
            (item.dataset, item.architecture, arm.arm)
            for item in self.results.comparisons
            for arm in item.arms
        }
        return self.results.summary["finished"] >= self.planned and found >= {*product(*names)}


@dataclass(frozen=True)
class Found:
    """An arm of a certain kind in one comparison of a study."""

    study: Study
    comparison: Comparison
    arm: ArmSummary

    @property
    def place(self) -> str:
        """Where it was found."""
        return self.comparison.title


def find_studies(folder: Path) -> list[Study]:
    """Read every study that has results, the largest first."""
    studies = []
    for path in sorted(folder.glob("*/summary.json")):
        name = path.parent.name
        if (path.parent / ARCHIVE).exists():
            unpack(path.parent)
        file = folder / f"{name}.yaml"
        config = load_config(file, StudyConfig)
        studies.append(Study(name, _about(file), config, load_study(path.parent)))
    return sorted(studies, key=lambda study: -study.results.summary["planned"])


def _about(file: Path) -> str:
    """Return the first paragraph of the comment at the head of a configuration."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# ").strip())
    return " ".join(lines)
