"""Going through a volume in blocks of bounded memory, and sampling it."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from evenslice.volumes.volume import Volume

__all__ = ["first_nonfinite", "iterate_blocks", "sample", "sample_stored"]

BLOCK_BYTES = 2**25
SAMPLE_BLOCKS = (
    256  # on EM and at a million voxels, the 1st and 99th percentile are then within 1 % of the range
)


def iterate_blocks(volume: Volume, max_bytes: int = BLOCK_BYTES) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a volume into blocks that cover each voxel once, in the order of z, then y, then x.

    A block spans whole chunks and takes at most ``max_bytes`` in memory, unless a single chunk takes more: it has to be
    decoded as a whole anyway. Where a volume has no chunks, a row along x is what a block is made of.

    Args:
        volume: what to cut.
        max_bytes: bytes that the voxels of a block may take.

    Yields:
        The block as slices along z, y, x.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.zeros((5, 4, 4), np.uint8))
        >>> [block[0] for block in iterate_blocks(volume, max_bytes=32)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    block = list(volume.chunks or (1, 1, volume.shape[2]))
    for axis in (2, 1, 0):
        bytes_per_chunk = math.prod(block) * volume.dtype.itemsize
        whole = -(-volume.shape[axis] // block[axis])
        block[axis] *= max(1, min(whole, max_bytes // bytes_per_chunk))
        if block[axis] < volume.shape[axis]:
            break  # growing along the next axis would cost memory and make no longer run in the file
    starts = (range(0, length, step) for length, step in zip(volume.shape, block, strict=True))
    for corner in product(*starts):
        z, y, x = (
            slice(start, min(start + step, length))
            for start, step, length in zip(corner, block, volume.shape, strict=True)
        )
        yield z, y, x


def first_nonfinite(volume: Volume) -> tuple[int, tuple[int, int, int]] | None:
    """Count the voxels that are NaN or infinite, reading the volume once in blocks of bounded memory.

    Args:
        volume: what to look through; one of integers is not read at all.

    Returns:
        How many there are, and the index z, y, x of the first in that order; None if there are none.

    Raises:
        VolumeError: the file cannot be read.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> array = np.zeros((3, 4, 5), np.float32)
        >>> array[1, 2, 3] = array[2, 0, 0] = np.nan
        >>> first_nonfinite(open_volume(array))
        (2, (1, 2, 3))
    """
    if volume.dtype.kind != "f":
        return None
    count = 0
    first: tuple[int, int, int] | None = None
    for block in iterate_blocks(volume):
        bad = ~np.isfinite(volume[block])
        found = int(np.count_nonzero(bad))
        if found:
            z, y, x = (
                int(index) + part.start
                for index, part in zip(np.unravel_index(bad.argmax(), bad.shape), block, strict=True)
            )
            # Blocks side by side in a slab: a later one can hold the earlier voxel.
            first = (z, y, x) if first is None else min(first, (z, y, x))
            count += found
    return None if first is None else (count, first)


def sample(volume: Volume, voxels: int = 1_000_000, seed: int = 0) -> NDArray[np.float32]:
    """Draw voxels from small blocks spread over the volume, for percentiles and the like.

    The blocks lie inside chunks, so that few are decoded, are stratified along z, and each voxel has nearly the same
    chance. A volume of at most ``voxels`` voxels is returned whole.

    Args:
        volume: what to draw from.
        voxels: about how many to draw, at least 1.
        seed: the same seed draws the same voxels.

    Returns:
        The values as float32, in one dimension.

    Raises:
        ConfigError: ``voxels`` is below 1.
        VolumeError: the file cannot be read.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> sample(open_volume(np.arange(8).reshape(2, 2, 2))).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    with np.errstate(over="ignore"):  # becomes infinite
        return sample_stored(volume, voxels, seed).astype(np.float32)


def sample_stored(volume: Volume, voxels: int, seed: int) -> NDArray[Any]:
    """Do what :func:`sample` does, and keep the data type."""
    if voxels < 1:
        raise ConfigError(f"a sample of {voxels} voxels: draw at least 1")
    if volume.size <= voxels:
        return volume[...].ravel()
    blocks = _random_blocks(volume, voxels, np.random.default_rng(seed))
    return np.concatenate([volume[block].ravel() for block in blocks])


def _random_blocks(
    volume: Volume, voxels: int, generator: np.random.Generator
) -> list[tuple[slice, slice, slice]]:
    """Choose different blocks of a grid inside the chunks, with about ``voxels`` voxels in all, in the order of z."""
    chunk = volume.chunks or (1, *volume.shape[1:])
    block = _block_shape(chunk, max(1, voxels // SAMPLE_BLOCKS))
    edges = [
        _edges(length, whole, part) for length, whole, part in zip(volume.shape, chunk, block, strict=True)
    ]
    grid = [len(axis) for axis in edges]
    total = math.prod(grid)
    count = min(total, -(-voxels * total // volume.size))
    # One block from each of as many equal runs of the grid, which goes through z first: stratified along z.
    chosen = np.unique(((np.arange(count) + generator.random(count)) * (total / count)).astype(np.int64))
    return [
        (edges[0][z], edges[1][y], edges[2][x])
        for z, y, x in zip(*np.unravel_index(np.minimum(chosen, total - 1), grid), strict=True)
    ]


def _block_shape(chunk: tuple[int, ...], voxels: int) -> tuple[int, ...]:
    """Return the shape of about ``voxels`` voxels, flat along z as far as y and x allow, that divides a chunk evenly."""
    y = _even_part(chunk[1], max(math.isqrt(voxels), -(-voxels // chunk[2])))
    x = _even_part(chunk[2], voxels // y)
    return _even_part(chunk[0], voxels // (y * x)), y, x


def _even_part(length: int, part: int) -> int:
    """Return the part nearest to the wanted one of those that cut a length into nearly equal parts."""
    return -(-length // max(1, round(length / max(1, part))))


def _edges(length: int, chunk: int, part: int) -> list[slice]:
    """Cut an axis at the borders of its chunks, and each chunk into parts."""
    return [
        slice(start, min(start + part, origin + chunk, length))
        for origin in range(0, length, chunk)
        for start in range(origin, min(origin + chunk, length), part)
    ]
