"""Random crops of volumes, or whole planes, each of which depends only on the seed and its number.

Crop i of a run does not depend on what was drawn before it, nor on the process: a run that is resumed, or that uses
several devices, sees the same crops. ``SliceWindows`` opens volumes for a user's own loop, and ``train`` reads the
parts of its configuration; both are a ``CropDataset``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from evenslice.training.augmentation import augment
from evenslice.volumes import WindowGrid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.training.config import AugmentationConfig
    from evenslice.volumes import Edge, LabelledVolume, Volume

__all__ = ["CropDataset", "Places"]


class CropDataset(Dataset[Any]):
    """Windows of parts, with the class of each pixel of their centre slices: random crops, or whole planes in turn.

    The position of a crop is uniformly random or, with probability ``foreground``, around a voxel of a foreground
    class. All foreground classes are equally likely, and so are all voxels of a class.

    Args:
        parts: the volumes to crop.
        slices: N, the number of slices of a window, odd.
        step: distance between the slices of a window.
        crop: size along y and x; a smaller plane is reflected at its borders. None for whole planes: window i is
            that around centre slice i, all parts laid end to end, and from the first again if ``length`` is greater.
        length: number of windows; by default as many as cover each part once.
        edge: how windows at the ends of a part are filled, see ``evenslice.volumes.windows``.
        foreground: fraction of crops drawn around a foreground voxel, 0..1.
        augmentation: random changes; None for none.
        scaling: the mean and standard deviation that the network expects of slices in 0..1.
        seed: random seed.
        labelled: whether windows come with their labels.

    Example:
        >>> from evenslice.volumes import LabelledVolume, index_classes
        >>> from evenslice.volumes import open_volume
        >>> from evenslice.volumes import Scaling
        >>> image, labels = open_volume(np.ones((9, 64, 64))), open_volume(np.array([np.eye(64, dtype=int)] * 9))
        >>> part = LabelledVolume("diagonal", image, labels, Scaling(0, 2), index_classes(labels, 2, keep=100))
        >>> crops = CropDataset([part], slices=5, crop=(32, 48), length=100, foreground=1)
        >>> window, classes = crops[7]
        >>> window.shape, classes.shape, int(classes.max())
        (torch.Size([5, 32, 48]), torch.Size([32, 48]), 1)
    """

    def __init__(  # all but two arguments have defaults and names
        self,
        parts: Sequence[LabelledVolume],
        *,
        slices: int,
        step: int = 1,
        crop: tuple[int, int] | None,
        length: int | None = None,
        edge: Edge = "reflect",
        foreground: float = 0.0,
        augmentation: AugmentationConfig | None = None,
        scaling: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        labelled: bool = True,
    ) -> None:
        self._crop, self._augmentation, self._seed = crop, augmentation, seed
        self._mean, self._std = scaling
        self._labels = [part.labels if labelled else None for part in parts]
        self._grids, self._turned = (
            [
                WindowGrid(part.volume, part.scaling, slices, tile or part.volume.shape[1:], step, edge)
                for part in parts
            ]
            for tile in (crop, crop and crop[::-1])
        )
        self._length = sum(map(len, self._grids)) if length is None else length
        self._places = Places(parts, [grid.centres for grid in self._grids], foreground)

    @property
    def has_foreground(self) -> bool:
        """Whether the middle slice of any window has foreground."""
        return self._places.has_foreground

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        """Return window ``index``; a negative one counts from the end, as in a list.

        Returns:
            The window, (N, y, x) float32, scaled for the network; and its classes, (y, x) int64, unless there are no
            labels.

        Raises:
            IndexError: there is no window of this number.
            VolumeError: a file cannot be read, or holds a label value of no class.
        """
        if not -self._length <= index < self._length:
            raise IndexError(f"window {index} of {self._length}")
        index %= self._length
        random = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        turns, grid, source, place = self._place(index, random)
        window = np.rot90(grid.read(*place), turns, (1, 2))
        labels = None if source is None else np.rot90(grid.read_labels(source, *place), turns)
        if self._augmentation:
            window, labels = augment(window, labels, self._augmentation, random)
        scaled = torch.from_numpy(np.ascontiguousarray((window - self._mean) / self._std))
        # Copied: what is one pixel high or wide counts as contiguous, although its strides may be negative.
        return scaled if labels is None else (scaled, torch.from_numpy(labels.copy()))

    def _place(
        self, index: int, random: np.random.Generator
    ) -> tuple[int, WindowGrid, Volume | None, tuple[int, int, int]]:
        """Return by how many quarter turns window ``index`` is rotated, and where it is read."""
        turns = int(random.integers(4)) if self._augmentation and self._augmentation.rotations else 0
        if self._crop is None:
            number, z = self._places.plane(index)
            grid = self._grids[number]
            if grid.tile[0] != grid.tile[1]:
                turns -= turns % 2  # a quarter turn would change its shape
            return turns, grid, self._labels[number], (z, 0, 0)
        tile = self._crop[::-1] if turns % 2 else self._crop
        number, *place = self._places.draw(tile, random)
        grid = (self._turned if turns % 2 else self._grids)[number]
        return turns, grid, self._labels[number], (place[0], place[1], place[2])


class Places:
    """Draws positions of crops: a part, and the slice and corner in it.

    Args:
        parts: the volumes.
        centres: the centre slices of the windows of each.
        foreground: fraction of crops drawn around a foreground voxel.
    """

    def __init__(self, parts: Sequence[LabelledVolume], centres: Sequence[range], foreground: float) -> None:
        self._foreground = foreground
        self._shapes = [part.volume.shape for part in parts]
        self._centres = centres
        self._ends = np.cumsum([len(places) for places in centres])
        self._by_size = _cumulate(
            [len(z) * height * width for z, (_, height, width) in zip(centres, self._shapes, strict=True)]
        )
        found = [_within(part, places) for part, places in zip(parts, centres, strict=True)]
        self._classes = [
            (_cumulate([count for count, _ in by_part]), [positions for _, positions in by_part])
            for by_part in zip(*found, strict=True)
            if any(len(positions) for _, positions in by_part)
        ]

    @property
    def has_foreground(self) -> bool:
        """Whether there is foreground on the centre slices."""
        return bool(self._classes)

    def plane(self, index: int) -> tuple[int, int]:
        """Return the part and the centre slice of plane ``index``, all parts laid end to end and repeated."""
        place = index % int(self._ends[-1])
        number = int(np.searchsorted(self._ends, place, side="right"))
        return number, self._centres[number][place - int(self._ends[number])]

    def draw(self, tile: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        """Return the index of a part, the centre slice z, and the corner y, x."""
        if self._classes and random.random() < self._foreground:
            return self._draw_around(tile, random)
        number = _choose(self._by_size, random)
        z = random.integers(len(self._centres[number]))
        y, x = (
            random.integers(max(length - size, 0) + 1)
            for length, size in zip(self._shapes[number][1:], tile, strict=True)
        )
        return number, self._centres[number][z], int(y), int(x)

    def _draw_around(self, tile: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw a foreground voxel, and a corner of a tile that contains it."""
        number, z, *inside = self._foreground_voxel(random)
        low = [max(at - size + 1, 0) for at, size in zip(inside, tile, strict=True)]
        high = [
            min(at, max(length - size, 0))
            for at, length, size in zip(inside, self._shapes[number][1:], tile, strict=True)
        ]
        y, x = random.integers(low, high, endpoint=True)
        return number, z, int(y), int(x)

    def voxel(self, random: np.random.Generator) -> tuple[int, int, int, int]:
        """Return the index of a part, and z, y, x of a voxel on its centre slices: any, or one of a foreground class."""
        if self._classes and random.random() < self._foreground:
            return self._foreground_voxel(random)
        number = _choose(self._by_size, random)
        z = random.integers(len(self._centres[number]))
        y, x = (int(random.integers(length)) for length in self._shapes[number][1:])
        return number, self._centres[number][z], y, x

    def _foreground_voxel(self, random: np.random.Generator) -> tuple[int, int, int, int]:
        by_part, positions = self._classes[random.integers(len(self._classes))]
        number = _choose(by_part, random)
        z, y, x = np.unravel_index(random.choice(positions[number]), self._shapes[number])
        return number, int(z), int(y), int(x)


def _within(part: LabelledVolume, centres: range) -> list[tuple[float, NDArray[np.int64]]]:
    """Return for each class how many voxels lie on the centre slices, estimated from the sample, and that sample."""
    plane = part.volume.shape[1] * part.volume.shape[2]
    found = []
    for count, positions in zip(part.index.counts, part.index.positions, strict=True):
        first, last = np.searchsorted(positions, (centres.start * plane, centres.stop * plane))
        kept = positions[first:last]
        found.append((count * (len(kept) / len(positions)) if len(positions) else 0.0, kept))
    return found


def _cumulate(weights: Sequence[float]) -> NDArray[np.float64]:
    total = np.cumsum(weights, dtype=np.float64)
    return np.asarray(total / total[-1])


def _choose(cumulated: NDArray[np.float64], random: np.random.Generator) -> int:
    return int(np.searchsorted(cumulated, random.random(), side="right"))
