"""Labels: the class of each voxel from the stored label values, and where each class is found.

labels = class_volume(open_volume("mask.tif"), 2, [0, 255], ignore=128)
index = index_classes(labels, 2, keep=1000)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from evenslice._core import ConfigError, VolumeError, did_you_mean, option
from evenslice.volumes.blocks import iterate_blocks
from evenslice.volumes.boundaries import IGNORED, boundary_volume, is_boundaries
from evenslice.volumes.views import map_voxels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.scaling import Scaling
    from evenslice.volumes.volume import Volume

__all__ = ["ClassIndex", "LabelledVolume", "OtherLabels", "class_volume", "index_classes"]

OtherLabels = Literal["error", "background"]
"""What label values are that belong to no class: an error, or class 0."""

_MOST_NUMBERED = 31  # larger values, such as 255, are rather those of few classes than the number of a class
_BLOCK_BYTES = 2**22
_BOUNDARY_BYTES = 2**25  # of a block that is read with chunks around it, so that few are decoded twice


@dataclass(frozen=True)
class ClassIndex:
    """How often each class occurs, and where to find some of its voxels.

    Attributes:
        counts: (classes,) number of voxels of each class.
        positions: for each class the sorted flat indices (z, y, x in C order) of a random sample of its voxels; empty
            for class 0, the background, and for test data.
    """

    counts: NDArray[np.int64]
    positions: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class LabelledVolume:
    """Consecutive slices of an image with their labels.

    Attributes:
        name: the image as the configuration names it, with the range of slices if it is part of a file.
        volume: the image, (z, y, x).
        labels: the class of each of its voxels, int64, 0 to classes - 1, or ``IGNORED``.
        scaling: the map from voxel values to 0..1.
        index: how often and where each class occurs.
    """

    name: str
    volume: Volume
    labels: Volume
    scaling: Scaling
    index: ClassIndex

    @property
    def classes(self) -> int:
        """The number of classes, including background."""
        return len(self.index.counts)


def class_volume(
    stored: Volume,
    classes: int | None,
    values: Sequence[int] | None = None,
    *,
    others: str = "error",
    ignore: int | None = None,
    instances: str | None = None,
) -> Volume:
    """Return the volume of classes, 0 to ``classes`` - 1, of stored label values.

    Args:
        stored: label values, whole numbers of any data type.
        classes: number of classes; None for class numbers that are not checked.
        values: the stored value of each class; by default the classes themselves.
        others: what all other values are: "error", or "background", which is class 0.
        ignore: the stored value of voxels that do not count, whose class is ``IGNORED``; None if all count.
        instances: "sparse" or "dense" if the values number objects, whose boundaries are class 1; see
            ``boundary_volume``.

    Returns:
        A volume of int64, which raises VolumeError on reading any other value.

    Raises:
        ConfigError: ``others`` is neither, or has no classes to be other than; or the value to ignore is that of a class;
            or numbered objects have values of classes, too, or other classes than 0 and 1.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> stored = open_volume(np.array([[[0, 255, 7]]], np.uint8))
        >>> class_volume(stored, 2, [0, 255], ignore=7)[0].tolist()
        [[0, 1, -100]]
        >>> class_volume(stored, 2, [0, 7], others="background")[0].tolist()
        [[0, 0, 1]]
    """
    if others not in get_args(OtherLabels):
        raise ConfigError(f"{option('other_labels', others)}: {did_you_mean(others, get_args(OtherLabels))}")
    if instances is not None:
        _check_instances(classes, values, others)
        return boundary_volume(stored, instances, ignore=ignore)
    known = tuple(range(classes or 0) if values is None else map(int, values))
    if others == "background" and not known:
        raise ConfigError(
            f"{option('other_labels', others)}: others than which? give {option('label_values', [0, 5])}, too"
        )
    if ignore is not None and ignore in known:
        raise ConfigError(
            f"{option('ignore_label', ignore)}: is the value of class {known.index(ignore)}; give one that is of none"
        )
    return map_voxels(stored, _ClassMap(stored.path, known, others == "background", ignore), np.int64)


def _check_instances(classes: int | None, values: Sequence[int] | None, others: str) -> None:
    """Raise ConfigError if numbered objects are to have other classes than inside and boundary."""
    if classes not in {None, 2}:
        raise ConfigError(f"{option('instances')}: gives 2 classes, inside and boundary, not {classes}")
    for name, given in (("label_values", values), ("other_labels", None if others == "error" else others)):
        if given is not None:
            raise ConfigError(
                f"{option(name, given)}: the labels number objects, which have no classes; omit this, or "
                f"{option('instances')}"
            )


@dataclass(frozen=True)
class _ClassMap:
    """Maps stored values to class numbers."""

    path: str
    values: tuple[int, ...]
    lenient: bool = False
    ignore: int | None = None

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.int64]:
        classes, known = self._classes(stored)
        if self.ignore is not None:
            ignored = stored == self.ignore
            classes[ignored] = IGNORED
            known = known | ignored
        wrong = ~known
        if self.lenient:
            classes[wrong] = 0
            # A fraction is no label at all, nor is NaN.
            wrong = wrong & (np.floor(stored) != stored) if stored.dtype.kind == "f" else np.zeros_like(wrong)
        if wrong.any():
            raise self._wrong(stored[wrong].flat[0].item())
        return classes

    def _classes(self, stored: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the class of each value, and whether it has one."""
        if not self.values:
            return stored.astype(np.int64), np.ones(stored.shape, bool)
        order = np.argsort(self.values)
        rising = np.array(self.values)[order]
        place = np.searchsorted(rising, stored).clip(max=len(rising) - 1)
        classes: NDArray[np.int64] = order[place]
        return classes, rising[place] == stored

    def _wrong(self, value: float) -> VolumeError:
        shown = f"{value:g}" if value % 1 else str(+value).removesuffix(".0")  # whole numbers in full
        if self.lenient:
            return VolumeError(f"{self.path}: holds {shown}, which is not a label; labels are whole numbers")
        return VolumeError(
            f"{self.path}: holds the label value {shown}, but the {len(self.values)} classes have the values "
            f"{', '.join(map(str, self.values))}; set {self._remedy(value)}, or take others as "
            f"{option('other_labels', 'background')}"
        )

    def _remedy(self, value: float) -> str:
        """Name the option under which a value would be that of a class."""
        if value % 1:  # or NaN
            return option("label_values")
        if self.values == tuple(range(len(self.values))) and 0 < value <= _MOST_NUMBERED:
            return option("classes", int(value) + 1)
        return option("label_values", [*self.values[:-1], int(value)])


def index_classes(labels: Volume, classes: int, *, keep: int, seed: int = 0) -> ClassIndex:
    """Count the voxels of each class and sample those of the foreground, reading the labels once.

    Args:
        labels: a volume of class numbers, as from ``class_volume``.
        classes: number of classes.
        keep: size limit of the sample of each foreground class; each voxel is equally likely.
        seed: seed of the sample.

    Raises:
        VolumeError: a value belongs to no class, or the file cannot be read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> index_classes(open_volume(np.array([[[0, 1], [1, 0]]])), 2, keep=10)
        ClassIndex(counts=array([2, 2]), positions=(array([], dtype=int64), array([1, 2])))
    """
    random = np.random.default_rng(seed)
    counts = np.zeros(classes, np.int64)
    samples = [_Sample(keep if number else 0, random) for number in range(classes)]
    most = _BOUNDARY_BYTES if labels.chunks and is_boundaries(labels) else _BLOCK_BYTES
    for block in iterate_blocks(labels, most):
        voxels = labels[block]
        found = np.bincount(voxels[voxels >= 0], minlength=classes)  # the others are ignored
        counts += found
        for number in np.flatnonzero(found):
            if samples[number].size:
                places = np.nonzero(voxels == number)
                shifted = [inside + part.start for inside, part in zip(places, block, strict=True)]
                samples[number].add(np.ravel_multi_index(shifted, labels.shape))
    return ClassIndex(counts, tuple(np.sort(sample.items) for sample in samples))


class _Sample:
    """A uniform sample of bounded size of items that arrive in pieces: those with the smallest random keys."""

    def __init__(self, size: int, random: np.random.Generator) -> None:
        self.size = size
        self.items = np.empty(0, np.int64)
        self._keys = np.empty(0)
        self._random = random

    def add(self, items: NDArray[np.int64]) -> None:
        keys = np.concatenate([self._keys, self._random.random(len(items))])
        items = np.concatenate([self.items, items])
        if len(items) > self.size:
            chosen = np.argpartition(keys, self.size)[: self.size]
            keys, items = keys[chosen], items[chosen]
        self._keys, self.items = keys, items
