"""The runs of a study: which there are, and how a run is recognized when the study is started again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evenslice._core import ConfigError, EvensliceError, module_file, spelled_in_configuration
from evenslice.networks import parse_specification
from evenslice.studying.folds import fold_data
from evenslice.studying.run_files import RunOutcome, damaged_files
from evenslice.training import (
    MOVABLE,
    ModelConfig,
    RunFolder,
    TrainConfig,
    data_of_result,
    flat_options,
    saved_record,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from evenslice.studying.config import Architecture, Arm, AuditOptions, StudyConfig, StudyData
    from evenslice.training import DataConfig

__all__ = ["LABELS", "Run", "count_runs", "plan_runs"]

FORMAT = 2
LONGEST_SLUG = 120  # characters of the names in a run's folder, which its key tells apart
LABELS = ("dataset", "architecture", "arm", "fold", "seed")
"""The names that tell the runs of a study apart."""

ADDED = {
    "model.symmetrize": None,
    "augmentation.missing_slices": 0.0,
    "data.other_labels": "error",
    "data.ignore_label": None,
    "data.instances": None,
    "data.plane": "z",
    "data.nnunet": None,
    "training.task": "segmentation",
}
"""Options that earlier versions did not have, at their defaults: they leave the keys of earlier runs as they were."""


@dataclass(frozen=True)
class Run:
    """One run of a study: a network that is trained, or taken from another run, and then tested and audited.

    Attributes:
        dataset: the name of the data set.
        architecture: the name of the architecture.
        arm: the name of the arm.
        fold: which parts of the data set are tested; 0 without folds.
        seed: random seed.
        config: how it is trained; of a derived run, how the network that is tested could have been built.
        audit: how it is audited.
        base: the run whose network is symmetrized at ``config.model.symmetrize``, instead of training one.
        places: where the configuration of the study has the options of the network, by their names.
    """

    dataset: str
    architecture: str
    arm: str
    fold: int
    seed: int
    config: TrainConfig
    audit: AuditOptions
    base: Run | None = None
    places: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def labels(self) -> dict[str, Any]:
        """The names, the fold and the seed of the run."""
        return {name: getattr(self, name) for name in LABELS}

    def spell(self, name: str, value: Any) -> str:
        """Spell an option in an error message as in the configuration of the study."""
        return spelled_in_configuration(self.places.get(name, name), value)

    @cached_property
    def key(self) -> str:
        """A hash of all options that training depends on, of the files that the network is built from, and of the base.

        These are the file of weights, the folder of a network of transformers, and the module of a user's function, but
        not what that imports. Data are identified by the name of the data set and their paths relative to its root.
        """
        options = flat_options(self.config.model_dump(mode="json"))
        options = {
            name: value
            for name, value in options.items()
            if name not in MOVABLE and (name not in ADDED or value != ADDED[name])
        }
        model = self.config.model
        if Path(model.weights).is_file():
            options["model.weights"] = _digest_now(Path(model.weights))
        if parts := [_digest_now(file) for file in _network_files(model.spec, model.weights)]:
            options["model.spec"] = [model.spec, *parts]
        whole = [FORMAT, options] if self.base is None else [FORMAT, options, {"network_of": self.base.key}]
        text = json.dumps(whole, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def folder(self, base: Path) -> Path:
        """Return the folder of the run: an existing one with its key, whatever its arm was called, or a new one."""
        slug = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, self.labels.values())).lower())[
            :LONGEST_SLUG
        ].strip("-.")
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

    def tested_data(self, base: Path) -> list[str] | None:
        """Return the fingerprints of the files on which the run was tested, finished or not; None if none are recorded."""
        folder = self.folder(base)
        found = RunOutcome.load(folder / "run.json")
        if found is not None and found.data is not None:
            return found.data
        try:
            return sorted(data_of_result(RunFolder(folder).read_result()))
        except EvensliceError:  # it was not tested, or its result is damaged
            return None


def plan_runs(config: StudyConfig) -> list[Run]:
    """Return the runs of a study in order: the first seed before the others, and in it the first fold.

    So what is done is always a balanced table. A run that takes the network of another comes right after it. Images are
    opened for their shapes if folds need them, see ``fold_data``.

    Raises:
        ConfigError: two arms or two architectures differ only in their names; or a data set cannot be folded.
        VolumeError: an image whose number of slices is needed cannot be opened.
    """
    window = ModelConfig(slices=config.slices, step=config.step)
    folds = {data.name: fold_data(data, window) for data in config.datasets}
    most = max(map(len, folds.values()))
    runs: list[Run] = []
    for seed, fold in product(config.seeds, range(most)):
        places = [
            _Place(config, data, architecture, folds[data.name][fold], fold, seed)
            for data, architecture in product(config.datasets, config.architectures)
            if fold < len(folds[data.name])
        ]
        arms = [arm for arm in config.arms if seed in config.seeds_of(arm)]
        runs += chain.from_iterable(_place_runs(place, arms) for place in places)
    _check_different(runs)
    return runs


def count_runs(config: StudyConfig) -> int:
    """Return the number of runs of a study, without opening any file."""
    folds = sum(data.fold_count for data in config.datasets)
    return folds * len(config.architectures) * sum(len(config.seeds_of(arm)) for arm in config.arms)


class _Place(NamedTuple):
    """Where all arms are run: an architecture on the data of a fold, with a seed."""

    study: StudyConfig
    dataset: StudyData
    architecture: Architecture
    data: DataConfig
    fold: int
    seed: int


def _place_runs(place: _Place, arms: Sequence[Arm]) -> Iterator[Run]:
    """Yield the runs of all arms at a place, each that trains a network followed by those that take it."""
    for arm in arms:
        if arm.network_of is not None:
            continue
        base = _trained_run(place, arm)
        yield base
        for other in arms:
            if other.network_of == arm.name:
                model = base.config.model.model_copy(update={"symmetrize": other.symmetrize})
                taken = base.config.model_copy(update={"model": model})
                yield replace(
                    base,
                    arm=other.name,
                    config=taken,
                    base=base,
                    places=_option_places(place, other, base.places),
                )


def _trained_run(place: _Place, arm: Arm) -> Run:
    study, architecture = place.study, place.architecture
    weights = arm.weights or architecture.weights
    changes = {
        name: value for name in ("z_flip", "missing_slices") if (value := getattr(arm, name)) is not None
    }
    return Run(
        dataset=place.dataset.name,
        architecture=architecture.name,
        arm=arm.name,
        fold=place.fold,
        seed=place.seed,
        config=TrainConfig(
            data=place.data,
            model=ModelConfig(
                spec=architecture.spec,
                weights=weights,
                slices=study.slices,
                step=study.step,
                strategy=_strategy(arm, weights),
                tie=arm.tie,
                symmetrize=arm.symmetrize,
            ),
            augmentation=study.augmentation.model_copy(update=changes),
            training=place.dataset.training,
            seed=place.seed,
        ),
        audit=study.audit,
        places=_option_places(place, arm),
    )


def _option_places(place: _Place, arm: Arm, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return where the configuration of a study has the options of a network, and those it computes with.

    Args:
        place: where the arm is run.
        arm: the arm.
        base: the same for the arm whose network it takes, if it does.
    """
    study = place.study
    data = f"datasets[{study.datasets.index(place.dataset)}]"
    own, network = (
        f"arms[{study.arms.index(arm)}]",
        f"architectures[{study.architectures.index(place.architecture)}]",
    )
    if base is not None:
        return {**base, "arm": own, "symmetrize": f"{own}.symmetrize"}
    return {
        "arm": own,
        "architecture": network,
        "weights": f"{network if arm.weights is None else own}.weights",
        **{name: f"{own}.{name}" for name in ("strategy", "tie", "symmetrize")},
        "data": data,
        "classes": f"{data}.classes",
        "seed": "seeds",
        "device": "training.accelerator",
        "tile": "training.crop",
    }


def _strategy(arm: Arm, weights: str) -> str | tuple[float, ...]:
    """Return the strategy of an arm; unless it says otherwise, a saved network stays as it is."""
    if "strategy" not in arm.model_fields_set and saved_record(weights) is not None:
        return "pretrained"
    return arm.strategy


def _check_different(runs: Sequence[Run]) -> None:
    known: dict[str, Run] = {}
    for run in runs:
        same = known.setdefault(run.key, run)
        if same is not run:
            names = [f"{item.dataset}, {item.architecture}, {item.arm}" for item in (same, run)]
            raise ConfigError(f"{names[1]}: is the same as {names[0]}; remove one of the two")


def _network_files(spec: str, weights: str) -> list[Path]:
    """Return the files of this machine that a specification names: code of the user's own, or a network's folder."""
    try:
        specification = parse_specification(spec)
    except EvensliceError:  # of which building it will tell
        return []
    if not specification.library:
        return [file] if (file := module_file(specification.name.partition(":")[0])) is not None else []
    place = Path(specification.name)
    if specification.library != "transformers" or not place.exists():
        return []
    tensors = sorted(place.glob("*.safetensors")) if weights == "imagenet" else []
    return [file for file in (place, place / "config.json", *tensors) if file.is_file()]


def _digest_now(file: Path) -> str:
    stamp = file.stat()
    return _digest(file, stamp.st_mtime_ns, stamp.st_size)


@cache
def _digest(path: Path, _modified: int, _size: int) -> str:
    """Return the digest of a file, which is read once unless it changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
