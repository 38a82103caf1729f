"""Crops around single voxels, each with the class of its centre: what a classifier is trained and tested on.

The centre pixel of a crop of size (y, x) is (y // 2, x // 2), in the middle slice of the window. Any voxel may be there:
what a crop sees beyond the border of the plane is the plane mirrored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from evenslice.training.augmentation import augment
from evenslice.training.crops import Places
from evenslice.volumes import WindowGrid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.training.config import AugmentationConfig
    from evenslice.volumes import LabelledVolume

__all__ = ["CentredCrops", "read_around"]


class CentredCrops(Dataset[tuple["Tensor", "Tensor"]]):
    """Random windows of parts, with the class of the centre pixel of their middle slices.

    The centre is a uniformly random voxel or, with probability ``foreground``, a voxel of a foreground class. All
    foreground classes are equally likely, and so are all voxels of a class. Augmentation leaves the centre in its place.

    Args:
        parts: the volumes to crop.
        slices: N, the number of slices of a window, odd.
        step: distance between the slices of a window.
        crop: size along y and x.
        length: number of windows.
        foreground: fraction of crops centred at a foreground voxel, 0..1.
        augmentation: random changes; None for none.
        scaling: the mean and standard deviation that the network expects of slices in 0..1.
        seed: random seed.

    Example: the class of a voxel is its column.
        >>> from evenslice.volumes import LabelledVolume, Scaling, index_classes, open_volume
        >>> columns = np.broadcast_to(np.arange(3), (5, 8, 3))
        >>> labels = open_volume(columns.copy())
        >>> part = LabelledVolume("columns", labels, labels, Scaling(0, 2), index_classes(labels, 3, keep=100))
        >>> crops = CentredCrops([part], slices=3, crop=(4, 4), length=50)
        >>> window, label = crops[7]
        >>> window.shape, label.shape, label.item() == 2 * window[1, 2, 2].item()
        (torch.Size([3, 4, 4]), torch.Size([]), True)
    """

    def __init__(  # all but three arguments have defaults, and all but one names
        self,
        parts: Sequence[LabelledVolume],
        *,
        slices: int,
        step: int = 1,
        crop: tuple[int, int],
        length: int,
        foreground: float = 0.0,
        augmentation: AugmentationConfig | None = None,
        scaling: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
    ) -> None:
        self._crop, self._length, self._seed = crop, length, seed
        self._augmentation = augmentation
        self._mean, self._std = scaling
        self._labels = [part.labels for part in parts]
        self._grids = [WindowGrid(part.volume, part.scaling, slices, crop, step, "reflect") for part in parts]
        self._places = Places(parts, [grid.centres for grid in self._grids], foreground)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return window ``index``; a negative one counts from the end, as in a list.

        Returns:
            The window, (N, y, x) float32, scaled for the network; and its class, () int64.

        Raises:
            VolumeError: a file cannot be read.
        """
        if not -self._length <= index < self._length:
            raise IndexError(f"window {index} of {self._length}")
        index %= self._length
        random = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        rotated = self._augmentation is not None and self._augmentation.rotations
        turns = int(random.integers(4)) if rotated else 0
        number, z, y, x = self._places.voxel(random)
        height, width = self._crop[::-1] if turns % 2 else self._crop
        # Flips and rotations leave the centre of an odd size in its place; the pixel too many is cut off after them.
        window = np.rot90(read_around(self._grids[number], (z, y, x), (height | 1, width | 1)), turns, (1, 2))
        if self._augmentation:
            window, _ = augment(window, None, self._augmentation, random)
        window = window[:, : self._crop[0], : self._crop[1]]
        scaled = torch.from_numpy(np.ascontiguousarray((window - self._mean) / self._std, dtype=np.float32))
        return scaled, torch.tensor(int(self._labels[number][z, y : y + 1, x : x + 1].item()))


def read_around(grid: WindowGrid, place: tuple[int, int, int], size: tuple[int, int]) -> NDArray[np.float32]:
    """Read the window whose centre pixel, (size // 2) in the middle slice, is a voxel; it is reflected at the border.

    Args:
        grid: the windows of the volume; its tile does not count.
        place: z, y, x of the voxel.
        size: in-plane size (y, x) of the window.

    Returns:
        (N, y, x) in 0..1.

    Example:
        >>> from evenslice.volumes import Scaling, open_volume
        >>> volume = open_volume(np.arange(12, dtype=np.float32).reshape(1, 3, 4))
        >>> window = read_around(WindowGrid(volume, Scaling(0, 16), 1, (1, 1)), (0, 0, 3), (3, 3))
        >>> (16 * window[0]).tolist()
        [[2.0, 3.0, 3.0], [2.0, 3.0, 3.0], [6.0, 7.0, 7.0]]
    """
    z, *centre = place
    rows, columns = (
        _mirrored(at - length // 2 + np.arange(length), plane)
        for at, length, plane in zip(centre, size, grid.volume.shape[1:], strict=True)
    )
    y, x = int(rows.min()), int(columns.min())
    box = replace(grid, tile=(int(rows.max()) + 1 - y, int(columns.max()) + 1 - x))
    return box.read(z, y, x)[:, rows - y][:, :, columns - x]


def _mirrored(indices: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Map indices beyond an axis into it, as mirrors at both ends would, which show the first and last pixel twice."""
    folded = indices % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)
