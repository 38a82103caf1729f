"""Volumes with the class of each voxel, and where each class is found.

index = index_classes(labels, 2, keep=1000)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evenslice.volumes.blocks import iterate_blocks
from evenslice.volumes.boundaries import is_boundaries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from evenslice.volumes.scaling import Scaling
    from evenslice.volumes.volume import Volume

__all__ = ["ClassIndex", "LabelledVolume", "check_classes", "index_classes"]

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
        background: where sparse objects are not, whose boundaries are the labels; None for other labels.
    """

    name: str
    volume: Volume
    labels: Volume
    scaling: Scaling
    index: ClassIndex
    background: Volume | None = None

    @property
    def classes(self) -> int:
        """The number of classes, including background."""
        return len(self.index.counts)


def index_classes(labels: Volume, classes: int, *, keep: int, seed: int = 0) -> ClassIndex:
    """Count the voxels of each class and sample those of the foreground, reading the labels once.

    Args:
        labels: a volume of class numbers, as from ``LabelValues.class_volume``.
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
    for block in _blocks(labels):
        voxels = labels[block]
        found = np.bincount(voxels[voxels >= 0], minlength=classes)  # the others are ignored
        counts += found
        for number in np.flatnonzero(found):
            if samples[number].size:
                places = np.nonzero(voxels == number)
                shifted = [inside + part.start for inside, part in zip(places, block, strict=True)]
                samples[number].add(np.ravel_multi_index(shifted, labels.shape))
    return ClassIndex(counts, tuple(np.sort(sample.items) for sample in samples))


def check_classes(labels: Volume) -> None:
    """Read labels once, so that a value of no class is found before anything is computed.

    Raises:
        VolumeError: a value belongs to no class, or the file cannot be read.

    Example:
        >>> from evenslice.volumes import LabelValues, open_volume
        >>> check_classes(LabelValues().class_volume(open_volume(np.array([[[0, 1, 7]]])), 2))
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: holds the label value 7, but the 2 classes have the values 0, 1; set
        label_values=[0, 7] if it is that of a class, or build the network with classes=8 if there are as many, or take
        others as other_labels='background'
    """
    for block in _blocks(labels):
        labels[block]


def _blocks(labels: Volume) -> Iterator[tuple[slice, slice, slice]]:
    return iterate_blocks(
        labels, _BOUNDARY_BYTES if labels.chunks and is_boundaries(labels) else _BLOCK_BYTES
    )


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
