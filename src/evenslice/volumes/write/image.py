"""The image to write: the voxels of one volume or several channels, read slab by slab, and their position in space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.volumes.blocks import cut_axis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit
    from evenslice.volumes.volume import Volume

SLAB_BYTES = 2**26
"""Bytes of slices that are held in memory at once, unless a single slice of all channels takes more."""

CHUNK_BYTES = 2**21
DEEPEST_CHUNK = 32


class Tally:
    """Counts written voxels and reports them.

    Args:
        total: number of voxels to write.
        report: called after each piece with the number of voxels written and in total.
    """

    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._report = 0, total, report

    def expect(self, voxels: int) -> None:
        """Increase the total by voxels beyond those of the image."""
        self._total += voxels

    def add(self, voxels: int) -> None:
        """Count written voxels."""
        self._done += voxels
        if self._report is not None:
            self._report(self._done, self._total)


@dataclass(frozen=True, eq=False)
class Image:
    """The voxels to write and their metadata.

    Attributes:
        channels: volumes of one shape and data type; a single one unless ``stacked``.
        stacked: whether they form a leading channel axis.
        labels: whether voxels are class numbers, which must not be averaged.
        dtype: data type to store, which holds all values of the volumes.
        spacing: voxel size along z, y, x, or None if unknown.
        unit: unit of the spacing, or None if unknown.
        affine: (4, 4) map from voxel indices (x, y, z, 1) to patient space, or None.
        placed: whether the affine is stated, rather than assumed.
        tally: counts the voxels written.
        dataset: the path inside a file of several datasets.
        offset: where the centre of the first voxel lies along z, y, x, in voxels from the origin of the file that it comes
            from.
    """

    channels: tuple[Volume, ...]
    stacked: bool
    labels: bool
    dtype: np.dtype[Any]
    spacing: tuple[float, float, float] | None
    unit: Unit | None
    affine: NDArray[np.float64] | None
    placed: bool
    tally: Tally
    dataset: str
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def zyx(self) -> tuple[int, int, int]:
        """The number of voxels along z, y, x."""
        return self.channels[0].shape

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (z, y, x), or (channel, z, y, x)."""
        return (len(self.channels), *self.zyx) if self.stacked else self.zyx

    @property
    def nbytes(self) -> int:
        """The number of bytes of all voxels as they are stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    def slabs(self, multiple: int = 1) -> Iterator[tuple[int, slice, NDArray[Any]]]:
        """Read channel after channel in slabs of whole slices.

        Args:
            multiple: the number of slices of each slab but the last is a multiple of it.

        Yields:
            The channel, the slices, and their voxels (z, y, x), C-contiguous, of the data type to store.
        """
        depth = self._slab_depth(multiple, 1)
        for number, channel in enumerate(self.channels):
            for part in cut_axis(self.zyx[0], depth):
                voxels = channel[part].astype(self.dtype, copy=False)
                yield number, part, voxels
                self.tally.add(voxels.size)

    def stacks(self) -> Iterator[NDArray[Any]]:
        """Read all channels at once in slabs of whole slices.

        Yields:
            Voxels (channel, z, y, x) of the data type to store.
        """
        for part in cut_axis(self.zyx[0], self._slab_depth(1, len(self.channels))):
            voxels = np.stack([channel[part].astype(self.dtype, copy=False) for channel in self.channels])
            yield voxels
            self.tally.add(voxels.size)

    def _slab_depth(self, multiple: int, channels: int) -> int:
        """Return the number of slices to read at once: whole chunks of the volumes, unless these are too large."""
        itemsize = max(self.dtype.itemsize, self.channels[0].dtype.itemsize)
        most = max(1, SLAB_BYTES // (math.prod(self.zyx[1:]) * itemsize * channels))
        stored = max(channel.chunks[0] if channel.chunks else 1 for channel in self.channels)
        step = -(-stored // multiple) * multiple
        step = step if step <= most else multiple
        return max(step, most // step * step)


def chunk_shape(shape: tuple[int, int, int], itemsize: int) -> tuple[int, int, int]:
    """Return the shape of chunks of about 2 MiB for an array (z, y, x).

    They are flatter than cubes because volumes are viewed and segmented slice by slice, and the flatter the larger a
    slice is, so that a whole layer of chunks fits into a slab.

    Example:
        >>> chunk_shape((500, 1000, 1000), 1), chunk_shape((500, 8000, 8000), 1), chunk_shape((9, 50, 50), 4)
        ((32, 256, 256), (1, 1024, 1024), (9, 50, 50))
    """
    layers = max(1, min(DEEPEST_CHUNK, SLAB_BYTES // (shape[1] * shape[2] * itemsize)))
    depth = 2 ** int(math.log2(layers))
    side = 2 ** int(math.log2(max(1, CHUNK_BYTES / itemsize / depth)) / 2)
    return min(depth, shape[0]), min(side, shape[1]), min(side, shape[2])
