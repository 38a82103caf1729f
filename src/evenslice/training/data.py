"""Data sets: images with labels, opened and checked before anything is trained.

    data = open_data(config.data, config.model)
    part = data.test[0]
    part.volume.shape == part.labels.shape      the slices of this part alone, first one at index 0
    part.labels[3]                              the class of each voxel, 0 to classes - 1

A ``LabelledVolume`` is a volume of its own: a window at its end is filled from its own slices, so that no window sees a slice of
another part.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, EvensliceError, VolumeError
from evenslice.volumes import (
    LabelledVolume,
    Scaling,
    Volume,
    class_volume,
    fingerprint,
    first_nonfinite,
    fit_scaling,
    hold_in_memory,
    index_classes,
    is_address,
    open_volume,
    sample,
    take_slices,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evenslice.training.config import DataConfig, ModelConfig, Source, VolumeFile
    from evenslice.volumes import ClassIndex

__all__ = ["Data", "fingerprints", "open_data"]

IN_MEMORY = 2**30
"""Bytes of all images and labels together up to which they are kept in memory."""

POSITIONS = 2**18
"""How many voxels of each foreground class are remembered, over all training parts."""

FEW = 1024
"""How many are of a part at the most where they only show which slices hold the class."""

WHOLE_PAIRS = 4
"""How many training pairs there have to be for whole ones to be kept out for validation."""

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """A data set, checked: what to train on, to validate on, and to test on."""

    train: tuple[LabelledVolume, ...]
    validation: tuple[LabelledVolume, ...]
    test: tuple[LabelledVolume, ...]


def open_data(config: DataConfig, model: ModelConfig, *, seed: int = 0) -> Data:
    """Open a data set and check all that training and testing rely on.

    Labels are read once, in blocks of bounded memory; so are images of real numbers, for NaN and infinity. A data set
    of up to 1 GiB is kept in memory. The scaling of an image is fitted to the slices that train, where there are some,
    and else to the part itself.

    Args:
        config: which files and slices.
        model: how many slices a window has, and how far apart they are.
        seed: of the samples of voxels that scalings and foreground crops are drawn from.

    Raises:
        VolumeError: a file is missing, damaged, no volume, constant, or not finite where no fill value is given; image
            and labels differ in shape; a label value belongs to no class.
        ConfigError: parts overlap, or lie so close that a window could see both; a part is shorter than a window; the
            training parts hold no voxel of some class.

    Example:
        >>> from evenslice.training import DataConfig, ModelConfig
        >>> pair = {"image": "missing.tif", "labels": "labels.tif"}
        >>> open_data(DataConfig.model_validate({"train": [pair]}), ModelConfig())
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: data.train[0].image: missing.tif: no such file...
    """
    drafts = _open_sources(config)
    _check_ranges(drafts, model)
    if not config.validation and config.validation_fraction:
        drafts = _hold_out(drafts, config.validation_fraction, model)
        _check_ranges(drafts, model)
    drafts = [_with_classes(draft, config) for draft in _load([draft.cut() for draft in drafts])]
    indices = [_index(draft, config, seed) for draft in drafts]
    _check_classes(drafts, indices, config)
    scalings = _fit_scalings(drafts, config, seed)
    parts: dict[str, list[LabelledVolume]] = {split: [] for split in _SPLITS}
    for draft, index, scaling in zip(drafts, indices, scalings, strict=True):
        parts[draft.split].append(LabelledVolume(draft.name, draft.volume, draft.labels, scaling, index))
    return Data(**{split: tuple(items) for split, items in parts.items()})


def fingerprints(config: DataConfig) -> set[str]:
    """Return the fingerprints of all files that a data set names, images and labels.

    Raises:
        VolumeError: a file is missing, damaged or no volume.
        ConfigError: an option does not suit a file.
    """
    volumes: dict[tuple[Any, ...], Volume] = {}
    for draft in _open_sources(config):
        volumes |= {draft.origin: draft.volume, draft.labels_origin: draft.labels}
    return {fingerprint(volume) for volume in volumes.values()}


@dataclass(frozen=True)
class _Draft:
    """A part on its way: where the configuration names it, which data its image and labels are of, and its slices."""

    split: str
    place: str
    name: str
    origin: tuple[Any, ...]
    labels_origin: tuple[Any, ...]
    volume: Volume
    labels: Volume
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def cut(self) -> _Draft:
        """Return the draft with nothing but its own slices in its volumes."""
        name = self.name if len(self) == len(self.volume) else f"{self.name}[{self.start}:{self.stop}]"
        volume, labels = (take_slices(item, self.start, self.stop) for item in (self.volume, self.labels))
        return replace(self, name=name, volume=volume, labels=labels)


def _open_sources(config: DataConfig) -> list[_Draft]:
    sources: Sequence[tuple[str, Sequence[Source]]] = [(split, getattr(config, split)) for split in _SPLITS]
    return [
        _open_source(config, split, f"data.{split}[{number}]", source)
        for split, items in sources
        for number, source in enumerate(items)
    ]


def _open_source(config: DataConfig, split: str, place: str, source: Source) -> _Draft:
    root = config.root or Path()
    with _at(f"{place}.image"):
        volume = _open(root, source.image, spacing=source.spacing, unit=source.unit)
    with _at(f"{place}.labels"):
        labels = _open(root, source.labels)
    if volume.shape != labels.shape:
        raise VolumeError(
            f"{place}: {volume.path} has the shape {volume.shape} and {labels.path} {labels.shape}; "
            "image and labels must have the same"
        )
    start, stop = source.slices or (0, len(volume))
    if stop > len(volume):
        raise ConfigError(
            f"{place}.slices: [{start}, {stop}]: {volume.path} has {len(volume)} slices; end at {len(volume)} at the latest"
        )
    origins = (_origin(volume, source.image), _origin(labels, source.labels))
    return _Draft(split, place, source.image.path, *origins, volume, labels, start, stop)


def _origin(volume: Volume, file: VolumeFile) -> tuple[Any, ...]:
    """Return what is the same for two sources that read the same voxels."""
    location = volume.location.resolve() if isinstance(volume.location, Path) else volume.location
    return (location, *sorted(file.select.items()))


def _open(root: Path, file: VolumeFile, **options: Any) -> Volume:
    path = file.path if is_address(file.path) else root / Path(file.path).expanduser()
    return open_volume(path, axes=file.axes, select=file.select, level=file.level, **options)


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Say where in the configuration an error arose, and name options as they are written there."""
    try:
        yield
    except EvensliceError as error:
        raise error.within(place, partial(_spelled, place)) from error


def _spelled(place: str, name: str, value: Any) -> str:
    """Name an option of a volume by its path in the configuration."""
    source = place.rpartition(".")[0]
    path = {"axes": place, "select": place, "level": place, "spacing": source, "unit": source}.get(
        name, "data"
    )
    return f"{path}.{name}" if value is None else f"{path}.{name}: {value}"


def _check_ranges(drafts: Sequence[_Draft], model: ModelConfig) -> None:
    """Refuse parts that are shorter than a window, or that share slices, or that lie too close to each other.

    No window leaves its part, whatever the distance. But the slices next to a part look much like its own: those that
    a window at its end would have reached belong to no other split.
    """
    for draft in drafts:
        if len(draft) < model.extent:
            raise ConfigError(
                f"{draft.place}: has {len(draft)} slices, fewer than the {model.extent} that a window of {model.slices} "
                f"in steps of {model.step} spans; give more slices, or set model.slices lower"
            )
    for one, other in combinations(drafts, 2):
        if one.origin == other.origin:
            _check_distance(one, other, model, one.volume.path)
        elif one.labels_origin == other.labels_origin and one.split != other.split:
            # Copies or channels of one image, it seems: what is labelled alike is the same piece of the world.
            _check_distance(one, other, model, one.labels.path)


def _check_distance(one: _Draft, other: _Draft, model: ModelConfig, path: str) -> None:
    distance = max(one.start, other.start) - min(one.stop, other.stop)
    both = f"{one.place} and {other.place} both read {path}"
    if distance < 0:
        first, last = max(one.start, other.start), min(one.stop, other.stop) - 1
        raise ConfigError(f"{both}, and overlap in slices {first} to {last}; give them slices of their own")
    if one.split != other.split and distance < model.guard:
        raise ConfigError(
            f"{both}, {distance} slices apart; leave at least {model.guard} between them, as far as a window of "
            f"{model.slices} in steps of {model.step} reaches"
        )


def _hold_out(drafts: Sequence[_Draft], fraction: float, model: ModelConfig) -> list[_Draft]:
    """Keep a share of what trains out for validation.

    At least one of the pairs as a whole where there are enough of them: the last slices of a scan often hold no object
    at all. The last slices of each pair where there are few, or where several are of one file.
    """
    training = [draft for draft in drafts if draft.split == "train"]
    apart = all(
        len({getattr(draft, origin) for draft in training}) == len(training)
        for origin in ("origin", "labels_origin")
    )
    if len(training) >= WHOLE_PAIRS and apart:
        count = max(round(fraction * len(training)), 1)
        whole = [_kept_out(draft) for draft in training[-count:]]
        split = training[:-count] + whole
    else:
        split = [part for draft in training for part in _split_slices(draft, fraction, model)]
    return split + [draft for draft in drafts if draft.split != "train"]


def _split_slices(draft: _Draft, fraction: float, model: ModelConfig) -> tuple[_Draft, _Draft]:
    kept = max(round(fraction * len(draft)), model.extent)
    stop = draft.stop - kept - model.guard
    if stop - draft.start < model.extent:
        raise ConfigError(
            f"{draft.place}: its {len(draft)} slices are too few to keep {kept} of them out for validation; "
            "give data.validation, or set data.validation_fraction to 0"
        )
    return replace(draft, stop=stop), replace(_kept_out(draft), start=draft.stop - kept)


def _kept_out(draft: _Draft) -> _Draft:
    return replace(draft, split="validation", place=f"{draft.place} (kept out for validation)")


def _load(drafts: list[_Draft]) -> list[_Draft]:
    """Read everything into memory where it is small: random crops of compressed files are slow."""
    if sum(draft.volume.nbytes + draft.labels.nbytes for draft in drafts) > IN_MEMORY:
        return drafts
    return [
        replace(draft, volume=hold_in_memory(draft.volume), labels=hold_in_memory(draft.labels))
        for draft in drafts
    ]


def _with_classes(draft: _Draft, config: DataConfig) -> _Draft:
    return replace(draft, labels=class_volume(draft.labels, config.classes, config.label_values))


def _index(draft: _Draft, config: DataConfig, seed: int) -> ClassIndex:
    keep = {"train": max(POSITIONS // len(config.train), FEW), "validation": FEW, "test": 0}[draft.split]
    with _at(f"{draft.place}.labels"):
        return index_classes(draft.labels, config.classes, keep=keep, seed=seed)


def _check_classes(drafts: Sequence[_Draft], indices: Sequence[ClassIndex], config: DataConfig) -> None:
    """Refuse a class that no voxel teaches, and a validation with nothing in it to find."""
    counts = {split: np.zeros(config.classes, np.int64) for split in _SPLITS}
    for draft, index in zip(drafts, indices, strict=True):
        counts[draft.split] += index.counts
    for number in np.flatnonzero(counts["train"] == 0):
        value = config.label_values[number] if config.label_values else number
        raise ConfigError(
            f"data.train: has no voxel of class {number} (label value {value}) in the slices to train on; "
            "give others, or set data.classes or data.label_values to what the labels hold"
        )
    for split in ("validation", "test"):
        if counts[split].any() and not counts[split][1:].any():
            place = next(draft.place for draft in drafts if draft.split == split)
            raise ConfigError(
                f"{place}: holds voxels of class 0 alone, which tell no network from another; "
                f"give slices with other classes as data.{split}"
            )


def _fit_scalings(drafts: Sequence[_Draft], config: DataConfig, seed: int) -> list[Scaling]:
    """Fit the scaling of each part; the largest part of its file that trains stands for the others of that file."""
    largest = {draft.origin: draft for draft in sorted(drafts, key=len) if draft.split == "train"}
    scalings = {}
    for draft in drafts:
        with _at(f"{draft.place}.image"):
            _check_finite(draft.volume, config)
            if draft.origin not in largest or draft is largest[draft.origin]:
                scalings[draft.place] = _fit_scaling(draft.volume, config, seed)
    return [scalings[largest.get(draft.origin, draft).place] for draft in drafts]


def _fit_scaling(volume: Volume, config: DataConfig, seed: int) -> Scaling:
    scaling = fit_scaling(volume, intensity=config.intensity, fill=config.fill, seed=seed)
    if config.intensity is not None and np.ptp(scaling(sample(volume, seed=seed))) == 0:
        raise ConfigError(
            f"{volume.path}: all voxels are alike within data.intensity, {list(config.intensity)}; give the voxel values that "
            "should become black and white, or leave it out"
        )
    return scaling


def _check_finite(volume: Volume, config: DataConfig) -> None:
    bad = first_nonfinite(volume) if config.fill is None else None
    if bad is not None:
        raise VolumeError(
            f"{volume.path}: {bad[0]} voxels are NaN or infinite, the first at z, y, x = {bad[1]}; "
            "to accept them, set data.fill to the voxel value that stands in for them"
        )
