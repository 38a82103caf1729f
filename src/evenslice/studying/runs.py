"""The runs of a study: which there are, and how a run is recognized when the study is started again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError
from evenslice.studying.outcome import RunOutcome
from evenslice.studying.repair import damaged_files
from evenslice.training import MOVABLE, ModelConfig, TrainConfig, flat_options

if TYPE_CHECKING:
    from evenslice.studying.config import Architecture, Arm, AuditOptions, StudyConfig, StudyData

__all__ = ["LABELS", "Run", "plan_runs"]

FORMAT = 2
LABELS = ("dataset", "architecture", "arm", "seed")
"""The names that tell the runs of a study apart."""

ADDED = {"model.symmetrize": None, "augmentation.missing_slices": 0.0}
"""Options that earlier versions did not have, at their defaults: they leave the keys of earlier runs as they were."""


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        dataset: the name of the data set.
        architecture: the name of the architecture.
        arm: the name of the arm.
        seed: random seed.
        config: how it is trained.
        audit: how it is audited.
    """

    dataset: str
    architecture: str
    arm: str
    seed: int
    config: TrainConfig
    audit: AuditOptions

    @property
    def labels(self) -> dict[str, Any]:
        """The names and the seed of the run."""
        return {name: getattr(self, name) for name in LABELS}

    @cached_property
    def key(self) -> str:
        """A hash of all options that training depends on, and of the weights if these are a file.

        Data are identified by the name of the data set and their paths relative to its root.
        """
        options = flat_options(self.config.model_dump(mode="json"))
        options = {
            name: value
            for name, value in options.items()
            if name not in MOVABLE and (name not in ADDED or value != ADDED[name])
        }
        weights = Path(self.config.model.weights)
        if weights.is_file():
            options["model.weights"] = _digest(weights)
        text = json.dumps([FORMAT, options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def folder(self, base: Path) -> Path:
        """Return the folder of the run: an existing one with its key, whatever its arm was called, or a new one."""
        slug = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, self.labels.values())).lower()).strip("-.")
        return next(iter(sorted(base.glob(f"*-{self.key}"))), base / f"{slug}-{self.key}")

    def outcome(self, base: Path) -> RunOutcome | None:
        """Return the outcome of the run under its present names, or None if it is not finished.

        A run that was audited with other options is not finished: its audit has to be repeated. Nor is one with a
        damaged file.
        """
        folder = self.folder(base)
        found = RunOutcome.load(folder / "run.json")
        if found is None or found.status != "done" or found.audit != self.audit.model_dump(mode="json"):
            return None
        return None if damaged_files(folder) else found.model_copy(update=self.labels)


def plan_runs(config: StudyConfig) -> list[Run]:
    """Return the runs of a study in order: all with the first seed come first.

    Raises:
        ConfigError: two arms or two architectures differ only in their names.
    """
    runs = [
        _make_run(config, *choice)
        for choice in product(config.seeds, config.datasets, config.architectures, config.arms)
    ]
    known: dict[str, Run] = {}
    for run in runs:
        same = known.setdefault(run.key, run)
        if same is not run:
            names = [f"{item.dataset}, {item.architecture}, {item.arm}" for item in (same, run)]
            raise ConfigError(f"{names[1]}: is the same as {names[0]}; remove one of the two")
    return runs


def _make_run(config: StudyConfig, seed: int, data: StudyData, architecture: Architecture, arm: Arm) -> Run:
    flip = config.augmentation.z_flip if arm.z_flip is None else arm.z_flip
    return Run(
        dataset=data.name,
        architecture=architecture.name,
        arm=arm.name,
        seed=seed,
        config=TrainConfig(
            data=data.data(),
            model=ModelConfig(
                spec=architecture.spec,
                weights=arm.weights or architecture.weights,
                slices=config.slices,
                step=config.step,
                strategy=arm.strategy,
                tie=arm.tie,
            ),
            augmentation=config.augmentation.model_copy(update={"z_flip": flip}),
            training=data.training,
            seed=seed,
        ),
        audit=config.audit,
    )


@cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
