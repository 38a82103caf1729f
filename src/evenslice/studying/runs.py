"""The runs of a study: which there are, on which folds of the data, and how a run is recognized when the study goes on.

A part of a folded data set is a pair of image and labels, or a block of its slices. Fold f of k tests on parts f, f + k,
f + 2 k ..., by networks that were trained on the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, EvensliceError, ModelError, errors_at, load_config, module_file
from evenslice.networks import parse_specification
from evenslice.neutralizing import read_saved
from evenslice.studying.run_outcomes import LABELS, RunOutcome, damaged_files
from evenslice.training import DataConfig, RunFolder, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evenslice.studying.config import Architecture, Arm, AuditOptions, StudyConfig, StudyData
    from evenslice.training import LabelledFiles, TrainingConfig

FORMAT = 2
LONGEST_SLUG = 120  # characters of the names in a run's folder, which its key tells apart
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
    """

    dataset: str
    architecture: str
    arm: str
    fold: int
    seed: int
    config: TrainConfig
    audit: AuditOptions
    base: Run | None = None

    @property
    def labels(self) -> dict[str, Any]:
        """The names, the fold and the seed of the run."""
        return {name: getattr(self, name) for name in LABELS}

    @cached_property
    def key(self) -> str:
        """A hash of all options that training depends on, of the files that the network is built from, and of the base.

        These are the file of weights, the folder of a network of transformers, and the module of a user's function, but
        not what that imports. Data are identified by the name of the data set and their paths relative to its root.
        """
        options = {
            name: value
            for name, value in self.config.lasting_options().items()
            if name not in ADDED or value != ADDED[name]
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
            return RunFolder(folder).tested_data()
        except EvensliceError:  # it was not tested, or its result is damaged
            return None


def plan_runs(config: StudyConfig) -> list[Run]:
    """Return the runs of a study in order: the first seed before the others, and in it the first fold.

    So what is done is always a balanced table. A run that takes the network of another comes right after it. Images are
    opened for their shapes if folds need them, see ``fold_data``.

    Raises:
        ConfigError: two arms or two architectures differ only in their names; a data set cannot be folded; or the options of
            a run do not fit each other.
        VolumeError: an image whose number of slices is needed cannot be opened.
    """
    guard = config.slices // 2 * config.step
    folds = {data.name: fold_data(data, guard) for data in config.datasets}
    runs: list[Run] = []
    for seed, fold in product(config.seeds, range(max(map(len, folds.values())))):
        arms = [arm for arm in config.arms if seed in config.seeds_of(arm)]
        for data, architecture in product(config.datasets, config.architectures):
            if fold < len(folds[data.name]):
                train = partial(
                    _train_config, config, architecture, folds[data.name][fold], data.training, seed
                )
                make = partial(Run, data.name, architecture.name, fold=fold, seed=seed, audit=config.audit)
                runs += _runs_of_arms(make, arms, train)
    _check_different(runs)
    return runs


def _runs_of_arms(
    make: Callable[..., Run], arms: Sequence[Arm], train: Callable[[Arm], TrainConfig]
) -> Iterator[Run]:
    """Yield the runs of all arms at a place, each that trains a network followed by those that take it."""
    for arm in arms:
        if arm.network_of is not None:
            continue
        base = make(arm=arm.name, config=train(arm))
        yield base
        for other in arms:
            if other.network_of == arm.name:
                model = base.config.model.model_copy(update={"symmetrize": other.symmetrize})
                yield replace(
                    base, arm=other.name, config=base.config.model_copy(update={"model": model}), base=base
                )


def _train_config(
    study: StudyConfig,
    architecture: Architecture,
    data: DataConfig,
    training: TrainingConfig,
    seed: int,
    arm: Arm,
) -> TrainConfig:
    weights = arm.weights or architecture.weights
    changes = {
        name: value for name in ("z_flip", "missing_slices") if (value := getattr(arm, name)) is not None
    }
    model = {
        "spec": architecture.spec,
        "weights": weights,
        "slices": arm.slices or study.slices,
        "step": study.step,
        "strategy": _strategy(arm, weights),
        "tie": arm.tie,
        "symmetrize": arm.symmetrize,
    }
    augmentation = study.augmentation.model_copy(update=changes)
    training = training.model_copy(update={"steps": max(1, round(arm.steps * training.steps))})
    options = {"data": data, "model": model, "augmentation": augmentation, "training": training, "seed": seed}
    with errors_at(f"datasets: {data.name!r}, arms: {arm.name!r}"):
        return load_config(options, TrainConfig)


def _strategy(arm: Arm, weights: str) -> str | tuple[float, ...]:
    """Return the strategy of an arm; unless it says otherwise, a saved network stays as it is."""
    if "strategy" not in arm.model_fields_set:
        with suppress(ModelError):  # a damaged file, of which building the network will tell
            if read_saved(weights) is not None:
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


OPTIONS = ("training", "pairs", "folds", "blocks")
"""Options of a data set of a study that ``train`` does not have."""


@dataclass(frozen=True)
class _Part:
    """A pair, or a block of its slices; these are None for all of a pair of unknown length, which shares no file."""

    number: int
    pair: LabelledFiles
    files: frozenset[tuple[Any, ...]]
    slices: tuple[int, int] | None = None

    def near(self, other: _Part) -> bool:
        """Return whether both read the same image or the same labels."""
        return bool(self.files & other.files)


def fold_data(data: StudyData, guard: int) -> list[DataConfig]:
    """Return the data set of each fold, or the one data set without folds.

    Training leaves out the slices of a file of the test that are within the reach of a window of a test slice, and one
    more; what remains of a block between two tests is left out if it is shorter than a window. Blocks need the number
    of slices: images without ``slices`` are opened for their shapes, but no voxel is read.

    Args:
        data: the data set.
        guard: the number of slices that a window extends beyond its middle slice, on either side.

    Raises:
        ConfigError: a block is shorter than a window, or a fold leaves nothing to train on.
        VolumeError: an image whose number of slices is needed cannot be opened.

    Example: two halves of a volume of 100 slices.
        >>> from evenslice.studying.config import StudyData
        >>> pair = {"image": "image.tif", "labels": "labels.tif", "slices": [0, 100]}
        >>> data = StudyData.model_validate({"name": "em", "pairs": [pair], "blocks": 2, "folds": 2})
        >>> first, second = fold_data(data, guard=1)
        >>> first.test[0].slices, first.train[0].slices
        ((0, 50), (52, 100))
        >>> second.test[0].slices, second.train[0].slices
        ((50, 100), (0, 48))
    """
    options = data.model_dump(exclude={*OPTIONS})
    if data.folds is None:
        return [DataConfig.model_validate(options)]
    parts = _cut(data, guard)
    return [
        DataConfig.model_validate(options | _one_fold(data, parts, fold, guard)) for fold in range(data.folds)
    ]


def cut_blocks(start: int, stop: int, blocks: int) -> list[tuple[int, int]]:
    """Return contiguous blocks of slices whose lengths differ by at most one.

    Example:
        >>> cut_blocks(0, 10, 3)
        [(0, 3), (3, 6), (6, 10)]
    """
    ends = [start + (stop - start) * number // blocks for number in range(blocks + 1)]
    return list(pairwise(ends))


def _cut(data: StudyData, guard: int) -> list[_Part]:
    """Cut the pairs of a data set into the parts of which each is tested once."""
    whole = [_Part(number, pair, _files(data, pair)) for number, pair in enumerate(data.pairs)]
    parts, extent = [], 2 * guard + 1
    for part in whole:
        alone = data.blocks == 1 and not any(part.near(other) for other in whole if other is not part)
        if alone and part.pair.slices is None:
            parts.append(part)
            continue
        start, stop = part.pair.slices or (0, _length(data, part))
        for first, last in cut_blocks(start, stop, data.blocks):
            if last - first < extent:
                raise ConfigError(
                    f"datasets: {data.name!r}: blocks: {data.blocks}: cuts pairs[{part.number}] into blocks of "
                    f"{last - first} slices, fewer than the {extent} that a window spans; give fewer blocks"
                )
            parts.append(replace(part, slices=(first, last)))
    return parts


def _one_fold(
    data: StudyData, parts: Sequence[_Part], fold: int, guard: int
) -> dict[str, list[LabelledFiles]]:
    """Return the pairs for training and tests of one fold."""
    tested = parts[fold :: data.fold_count]
    train = []
    for number, pair in enumerate(data.pairs):
        kept = [part for part in parts if part.number == number and part not in tested]
        slices = {z for part in kept if part.slices for z in range(*part.slices)}
        if kept and not slices:
            train.append(pair)
            continue
        for part in tested:
            if kept and part.slices and part.near(kept[0]):
                first, last = part.slices
                slices -= set(range(first - guard - 1, last + guard + 1))
        train += [_slices(pair, *ends) for ends in _runs(slices) if ends[1] - ends[0] > 2 * guard]
    if not train:
        raise ConfigError(
            f"datasets: {data.name!r}: fold {fold} has no slices to train on: those that are not tested are too near "
            "to the test, or fewer than a window spans; give more pairs or other blocks and folds"
        )
    return {
        "train": train,
        "test": [part.pair if part.slices is None else _slices(part.pair, *part.slices) for part in tested],
    }


def _runs(slices: set[int]) -> Iterator[tuple[int, int]]:
    """Yield the contiguous ranges of a set of slices in order."""
    start = None
    for z in sorted(slices):
        start = z if start is None else start
        if z + 1 not in slices:
            yield start, z + 1
            start = None


def _slices(pair: LabelledFiles, start: int, stop: int) -> LabelledFiles:
    return pair.model_copy(update={"slices": (start, stop)})


def _files(data: StudyData, pair: LabelledFiles) -> frozenset[tuple[Any, ...]]:
    """Return values that pairs share if they read the same image or the same labels, whatever the resolution level."""
    found = set()
    for kind, file in (("image", pair.image), ("labels", pair.labels)):
        path = data.path_of(file)
        where = path.resolve() if isinstance(path, Path) else path
        found.add((kind, where, *sorted(file.select.items())))
    return frozenset(found)


def _length(data: StudyData, part: _Part) -> int:
    """Return the number of slices of the image of a pair; only its header is read."""
    with errors_at(f"datasets: {data.name!r}: pairs[{part.number}].image"):
        return len(data.open(part.pair.image))
