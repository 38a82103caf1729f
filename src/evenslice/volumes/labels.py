"""Labels: the class of each voxel, on top of whatever values stand in a file, and where each class is found.

labels = class_volume(open_volume("mask.tif"), 2, [0, 255])
index = index_classes(labels, 2, keep=1000)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError
from evenslice.volumes.blocks import iterate_blocks
from evenslice.volumes.views import map_voxels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.volume import Volume
    from evenslice.volumes.windows import Scaling

__all__ = ["ClassIndex", "LabelledVolume", "class_volume", "index_classes"]

_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class ClassIndex:
    """How often each class occurs in a part, and where to find some of its voxels.

    Attributes:
        counts: (classes,) voxels of each class.
        positions: for each class the flat indices (z, y, x in C order) of a random sample of its voxels, sorted; empty
            for class 0, the background, and in what is only tested on.
    """

    counts: NDArray[np.int64]
    positions: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class LabelledVolume:
    """Consecutive slices of an image with their labels, as volumes of their own.

    Attributes:
        name: the image as the configuration names it, with the range of slices where it is a part of the file.
        volume: the image, (z, y, x).
        labels: the class of each of its voxels, int64, 0 to classes - 1.
        scaling: voxel values to 0..1.
        index: the classes' voxels.
    """

    name: str
    volume: Volume
    labels: Volume
    scaling: Scaling
    index: ClassIndex

    @property
    def classes(self) -> int:
        """The number of classes, background included."""
        return len(self.index.counts)


def class_volume(stored: Volume, classes: int, values: Sequence[int] | None = None) -> Volume:
    """Return a volume of classes, 0 to ``classes`` - 1, on top of the values that stand in a file.

    Args:
        stored: whole numbers, of whatever data type.
        classes: how many classes there are.
        values: the stored value of each class; by default the classes themselves.

    Returns:
        A volume of int64, which raises VolumeError where it reads a value that is that of no class.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> class_volume(open_volume(np.array([[[0, 255]]], np.uint8)), 2, [0, 255])[0].tolist()
        [[0, 1]]
    """
    return map_voxels(stored, _ClassMap(stored.path, tuple(values or range(classes))), np.int64)


@dataclass(frozen=True)
class _ClassMap:
    """From the stored value of each class to its number."""

    path: str
    values: tuple[int, ...]

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.int64]:
        order = np.argsort(self.values)
        rising = np.array(self.values)[order]
        place = np.searchsorted(rising, stored).clip(max=len(rising) - 1)
        wrong = rising[place] != stored
        if wrong.any():
            value = stored[wrong].flat[0].item()
            raise VolumeError(
                f"{self.path}: holds the label value {value:g}, but the {len(rising)} classes have the values "
                f"{', '.join(map(str, self.values))}; set data.classes, or data.label_values, such as [0, 255]"
            )
        classes: NDArray[np.int64] = order[place]
        return classes


def index_classes(labels: Volume, classes: int, *, keep: int, seed: int = 0) -> ClassIndex:
    """Count the voxels of each class and draw a sample of those of the foreground, reading the labels once.

    Args:
        labels: what to look through; classes, not whatever a file has for them.
        classes: how many there are.
        keep: how many voxels of each foreground class to remember at the most; each has the same chance.
        seed: of the sample.

    Raises:
        VolumeError: a value is that of no class, or the file cannot be read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> index_classes(open_volume(np.array([[[0, 1], [1, 0]]])), 2, keep=10)
        ClassIndex(counts=array([2, 2]), positions=(array([], dtype=int64), array([1, 2])))
    """
    random = np.random.default_rng(seed)
    counts = np.zeros(classes, np.int64)
    samples = [_Sample(keep if number else 0, random) for number in range(classes)]
    for block in iterate_blocks(labels, _BLOCK_BYTES):
        voxels = labels[block]
        found = np.bincount(voxels.ravel(), minlength=classes)
        counts += found
        for number in np.flatnonzero(found):
            if samples[number].size:
                places = np.nonzero(voxels == number)
                shifted = [inside + part.start for inside, part in zip(places, block, strict=True)]
                samples[number].add(np.ravel_multi_index(shifted, labels.shape))
    return ClassIndex(counts, tuple(np.sort(sample.items) for sample in samples))


class _Sample:
    """A uniform sample of bounded size of items that come in pieces: those with the smallest of random keys."""

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
