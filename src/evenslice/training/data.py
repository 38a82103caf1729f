"""Data sets: images with labels, opened and checked before training.

    data = open_data(config)
    part = data.test[0]
    part.volume.shape == part.labels.shape      only the slices of this part, the first at index 0
    part.labels[3]                              the class of each voxel, 0 to classes - 1, or LabelValues.IGNORED

A part is a separate ``LabelledVolume``: windows at its ends are filled from its own slices and never see those of
another part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, errors_at
from evenslice.training.config import SPLITS
from evenslice.volumes import (
    LabelledVolume,
    Reading,
    Scaling,
    Volume,
    fingerprint,
    hold_small,
    index_classes,
    open_labels,
    open_volume,
    stored_image,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.training.config import DataConfig, LabelledFiles, ModelConfig, TrainConfig
    from evenslice.training.run_folder import DataPart
    from evenslice.volumes import Volume


POSITIONS = 2**18
"""Number of voxel positions kept for each foreground class, over all training parts."""

FEW_POSITIONS = 1024
"""Number of positions kept for a part if they only show which slices contain the class."""

WHOLE_PAIRS = 4
"""Number of training pairs from which whole pairs are held out for validation."""


@dataclass(frozen=True)
class Data:
    """A checked data set: the parts for training, validation and testing."""

    train: tuple[LabelledVolume, ...]
    validation: tuple[LabelledVolume, ...]
    test: tuple[LabelledVolume, ...]

    def describe(self) -> dict[str, list[DataPart]]:
        """Return the parts of each split, as ``data.json`` and ``result.json`` hold them."""
        return {
            split: [
                {
                    "name": part.name,
                    "shape": list(part.volume.shape),
                    "intensity": [part.scaling.low, part.scaling.high],
                    "image": fingerprint(part.volume),
                    "labels": fingerprint(part.labels),
                }
                for part in getattr(self, split)
            ]
            for split in SPLITS
        }


def open_data(config: TrainConfig) -> Data:
    """Open the data set of a configuration and check everything that training and testing rely on.

    Labels are read once, in blocks of bounded memory; so are floating-point images, to find NaN and infinity. A data
    set of up to 1 GiB is kept in memory. The scaling of an image is fitted to its training slices if there are any,
    else to the part itself.

    Raises:
        VolumeError: a file is missing, damaged, not a volume, constant, or not finite without a fill value; image and
            labels differ in shape or in place; a label value belongs to no class.
        ConfigError: parts overlap, or are so close that a window could see both; a part is shorter than a window; the
            training parts have no voxel of some class; in all validation or test parts, no voxel is foreground, or none
            counts.

    Example:
        >>> from evenslice.training import TrainConfig
        >>> pair = {"image": "missing.tif", "labels": "labels.tif"}
        >>> open_data(TrainConfig.model_validate({"data": {"train": [pair]}}))
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: data.train[0].image: missing.tif: no such file...
    """
    options, model, seed = config.data, config.model, config.seed
    drafts = [
        _open_pair(options, split, f"data.{split}[{number}]", pair)
        for split in SPLITS
        for number, pair in enumerate(getattr(options, split))
    ]
    _check_ranges(drafts, model)
    if not options.validation and options.validation_fraction:
        drafts = _hold_out(drafts, options.validation_fraction, model)
        _check_ranges(drafts, model)
    drafts = [_cut(draft) for draft in drafts]
    held = iter(hold_small([volume for draft in drafts for volume in (draft.volume, draft.labels)]))
    drafts = [
        _with_classes(replace(draft, volume=next(held), labels=next(held)), options, seed) for draft in drafts
    ]
    _check_classes(drafts, options)
    parts: dict[str, list[LabelledVolume]] = {split: [] for split in SPLITS}
    for draft, scaling in zip(drafts, _fit_scalings(drafts, options, seed), strict=True):
        part = LabelledVolume(
            draft.name, draft.volume, draft.labels, scaling, draft.counts, draft.positions, draft.background
        )
        parts[draft.split].append(part)
    return Data(**{split: tuple(items) for split, items in parts.items()})


@dataclass(frozen=True)
class _Draft:
    """A part in preparation: its place in the configuration, the origins of its image and labels, and its slices."""

    split: str
    place: str
    name: str
    origin: tuple[Any, Any]
    labels_origin: tuple[Any, Any]
    volume: Volume
    labels: Volume
    start: int
    stop: int
    background: Volume | None = None
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    positions: tuple[NDArray[np.int64], ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start


def _open_pair(config: DataConfig, split: str, place: str, pair: LabelledFiles) -> _Draft:
    with errors_at(f"{place}.image"):
        volume = config.open(pair.image, spacing=pair.spacing, unit=pair.unit)
    with errors_at(f"{place}.labels"):
        (labels,) = open_labels(config.open(pair.labels), [volume])
    start, stop = pair.slices or (0, len(volume))
    if not 0 <= start < stop <= len(volume):
        raise ConfigError(
            f"{place}.slices: [{start}, {stop}]: give the first slice and the one after the last, of the {len(volume)} of "
            f"{volume.path}"
        )
    origins = (stored_image(volume), stored_image(labels))
    return _Draft(split, place, pair.image.path, *origins, volume, labels, start, stop)


def _check_ranges(drafts: Sequence[_Draft], model: ModelConfig) -> None:
    """Check that parts are no shorter than a window, share no slices, and are not too close to each other.

    Windows never leave their part, whatever the distance. But the slices next to a part resemble its own: those that a
    window at its end would have reached must not belong to another split.
    """
    for draft in drafts:
        if len(draft) < 2 * model.guard + 1:
            count = "1 slice" if len(draft) == 1 else f"{len(draft)} slices"
            steps = f" in steps of {model.step}" if model.step != 1 else ""
            raise ConfigError(
                f"{draft.place}: has {count}; a window of {model.slices}{steps} needs {2 * model.guard + 1}; give more slices, "
                "or set model.slices lower"
            )
    for one, other in combinations(drafts, 2):
        if one.origin[0] == other.origin[0]:
            comparable = one.origin == other.origin
            _check_distance(one, other, model, one.volume.path, comparable=comparable)
        elif one.labels_origin[0] == other.labels_origin[0] and one.split != other.split:
            # Probably copies or channels of one image: the same labels mean the same sample.
            comparable = one.labels_origin == other.labels_origin
            _check_distance(one, other, model, one.labels.path, comparable=comparable)


def _check_distance(one: _Draft, other: _Draft, model: ModelConfig, path: str, *, comparable: bool) -> None:
    both = f"{one.place} and {other.place} both read {path}"
    if not comparable:
        raise ConfigError(
            f"{both}, at different resolution levels or with other axes, so their slices cannot be told apart; read both at one "
            "level and with the same axes"
        )
    distance = max(one.start, other.start) - min(one.stop, other.stop)
    if distance < 0:
        first, last = max(one.start, other.start), min(one.stop, other.stop) - 1
        raise ConfigError(f"{both}, and overlap in slices {first} to {last}; give them separate slices")
    if one.split != other.split and distance < model.guard:
        raise ConfigError(
            f"{both}, {distance} slices apart; leave at least {model.guard} between them, as far as a window of "
            f"{model.slices} in steps of {model.step} reaches"
        )


def _hold_out(drafts: Sequence[_Draft], fraction: float, model: ModelConfig) -> list[_Draft]:
    """Hold out part of the training data for validation.

    If there are enough pairs, at least one whole pair, since the last slices of a scan often contain no object. If
    there are few, or several share a file, the last slices of each.
    """
    training = [draft for draft in drafts if draft.split == "train"]
    apart = all(
        len({getattr(draft, origin) for draft in training}) == len(training)
        for origin in ("origin", "labels_origin")
    )
    if len(training) >= WHOLE_PAIRS and apart:
        count = max(round(fraction * len(training)), 1)
        whole = [_held_out(draft) for draft in training[-count:]]
        split = training[:-count] + whole
    else:
        split = [part for draft in training for part in _split_slices(draft, fraction, model)]
    return split + [draft for draft in drafts if draft.split != "train"]


def _split_slices(draft: _Draft, fraction: float, model: ModelConfig) -> tuple[_Draft, _Draft]:
    kept = max(round(fraction * len(draft)), 2 * model.guard + 1)
    stop = draft.stop - kept - model.guard
    if stop - draft.start < 2 * model.guard + 1:
        raise ConfigError(
            f"{draft.place}: its {len(draft)} slices are too few to hold out {kept} of them for validation; "
            "give data.validation, or set data.validation_fraction to 0"
        )
    return replace(draft, stop=stop), replace(_held_out(draft), start=draft.stop - kept)


def _held_out(draft: _Draft) -> _Draft:
    return replace(draft, split="validation", place=f"{draft.place} (held out for validation)")


def _cut(draft: _Draft) -> _Draft:
    """Return a draft with its volumes cut to its slices."""
    whole = len(draft) == len(draft.volume)
    name = draft.name if whole else f"{draft.name}[{draft.start}:{draft.stop}]"
    slices = slice(draft.start, draft.stop)
    region = [slices if axis == draft.volume.plane else slice(None) for axis in "zyx"]
    volume, labels = (open_volume(item, region=region) for item in (draft.volume, draft.labels))
    return replace(draft, name=name, volume=volume, labels=labels)


def _with_classes(draft: _Draft, config: DataConfig, seed: int) -> _Draft:
    """Return a draft with classes as its labels, and where each of them is."""
    keep = {
        "train": max(POSITIONS // len(config.train), FEW_POSITIONS),
        "validation": FEW_POSITIONS,
        "test": 0,
    }[draft.split]
    labels = config.label_options.class_volume(draft.labels, config.classes)
    background = config.label_options.background_volume(draft.labels)
    with errors_at(f"{draft.place}.labels"):
        counts, positions = index_classes(labels, config.classes, keep=keep, seed=seed)
    return replace(draft, labels=labels, background=background, counts=counts, positions=positions)


def _check_classes(drafts: Sequence[_Draft], config: DataConfig) -> None:
    """Check that each class can be learned, and that validation and test have a foreground."""
    counts = {split: np.zeros(config.classes, np.int64) for split in SPLITS}
    for draft in drafts:
        counts[draft.split] += draft.counts
    for number in np.flatnonzero(counts["train"] == 0):
        value = config.label_options.of_classes(config.classes)[number]
        raise ConfigError(
            f"data.train: has no voxel of class {number} (label value {value}) in its slices; "
            "choose others, or make data.classes and data.label_values match the labels"
        )
    for draft in drafts:
        count = counts[draft.split]
        if not count[1:].any():
            raise ConfigError(
                f"{draft.place}: contains no class but 0 that counts, so it cannot measure a network; give slices with other "
                f"classes as data.{draft.split}"
            )


def _fit_scalings(drafts: Sequence[_Draft], config: DataConfig, seed: int) -> list[Scaling]:
    """Fit the scaling of each part; parts of a file share that of its largest training part."""
    largest = {draft.origin: draft for draft in sorted(drafts, key=len) if draft.split == "train"}
    scalings = {}
    for draft in drafts:
        with errors_at(f"{draft.place}.image"):
            Scaling(0, 1, config.fill).check(draft.volume)
            if draft.origin not in largest or draft is largest[draft.origin]:
                reading = Reading(intensity=config.intensity, fill=config.fill)
                scalings[draft.place] = reading.fit_scaling(draft.volume, seed=seed, blank=False)
    return [scalings[largest.get(draft.origin, draft).place] for draft in drafts]
