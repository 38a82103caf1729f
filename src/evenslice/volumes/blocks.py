"""Iterating over a volume in blocks of bounded memory, and sampling its voxels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import map_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from evenslice.volumes.volume import Volume

    Block = tuple[slice, slice, slice]

BLOCK_BYTES = 2**25
# With a million voxels of EM, the 1st and 99th percentile are then within 1 % of the range.
SAMPLE_BLOCKS = 256
MOST_BLOCKS = 1024

THREADS = 8
"""Most parts of a volume that are fetched at once: a server answers several requests in the time of one."""

IN_FLIGHT = 2**28
"""Bytes that the chunks decoded at once may take, unless one takes more."""


def iterate_blocks(volume: Volume, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Divide a volume into blocks that cover each voxel once, in the order of z, then y, then x.

    A block consists of whole chunks (of rows along x if the volume has no chunks) and takes at most ``max_bytes``,
    unless a single chunk takes more.

    Args:
        volume: the volume to divide.
        max_bytes: limit on the voxels of a block, in bytes.

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
            break  # growing along the next axis would take memory without longer contiguous reads
    # Not itertools.product, which makes lists of its ranges first.
    for z in cut_axis(volume.shape[0], block[0]):
        for y in cut_axis(volume.shape[1], block[1]):
            for x in cut_axis(volume.shape[2], block[2]):
                yield z, y, x


def cut_axis(length: int, step: int) -> Iterator[slice]:
    """Divide an axis into parts of length ``step``; the last one may be shorter.

    Example:
        >>> list(cut_axis(5, 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def sample_voxels(volume: Volume, voxels: int = 1_000_000, seed: int = 0) -> NDArray[Any]:
    """Draw voxels from all over the volume, for percentiles and the like.

    They come from a few hundred chunks, or small blocks of a volume without chunks, one from each of as many equal parts of
    the volume along z; each voxel is almost equally likely. A volume of at most ``voxels`` voxels is returned whole. Of
    chunks that are so small that the sample would take more than 1,024, that many are read.

    Args:
        volume: the volume to sample.
        voxels: approximate number to draw, at least 1.
        seed: the same seed draws the same voxels.

    Returns:
        The values in their own data type, in one dimension.

    Raises:
        VolumeError: the file cannot be read.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> sample_voxels(open_volume(np.arange(8).reshape(2, 2, 2))).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    cell = volume.chunks or _block_shape(volume.shape, max(1, voxels // SAMPLE_BLOCKS))
    total = math.prod(_grid(volume, cell))
    if volume.size <= voxels and (volume.chunks is None or total <= MOST_BLOCKS):
        return volume[...].ravel()
    least = 1 if volume.chunks is None else SAMPLE_BLOCKS
    count = min(total, MOST_BLOCKS, max(least, -(-voxels * total // volume.size)))
    share = min(1.0, voxels * total / (volume.size * count))  # of the voxels of each cell
    random, found = np.random.default_rng(seed), []
    for cell_voxels in _read_cells(volume, cell, count, random):
        kept = cell_voxels.size if share == 1 else math.ceil(share * cell_voxels.size)
        some = kept < cell_voxels.size
        found.append(cell_voxels[random.integers(cell_voxels.size, size=kept)] if some else cell_voxels)
    return np.concatenate(found)


def sample_chunks(volume: Volume, most: int, max_bytes: int, seed: int = 0) -> Iterator[NDArray[Any]]:
    """Read whole chunks spread over a volume, in the order of z, y, x.

    Args:
        volume: the volume; without chunks, a slice counts as one.
        most: largest number of chunks.
        max_bytes: limit on their size in bytes; of chunks that are larger, none is read.
        seed: the same seed reads the same chunks.

    Yields:
        The voxels of a chunk.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(32).reshape(8, 2, 2))
        >>> [int(chunk.min()) // 16 for chunk in sample_chunks(volume, most=2, max_bytes=1000)]
        [0, 1]
    """
    chunk = volume.chunks or (1, *volume.shape[1:])
    count = min(most, max_bytes // (math.prod(chunk) * volume.dtype.itemsize))
    yield from _read_cells(volume, chunk, count, np.random.default_rng(seed))


def _read_cells(
    volume: Volume, cell: tuple[int, ...], count: int, random: np.random.Generator
) -> Iterator[NDArray[Any]]:
    """Read cells of a grid over a volume in C order, one from each of as many equal runs; places are computed, not listed."""
    _, height, width = grid = _grid(volume, cell)
    total = math.prod(grid)
    count = min(count, total)
    chosen = np.floor((np.arange(count) + random.random(count)) * (total / max(count, 1)))
    numbers = sorted({min(int(number), total - 1) for number in chosen})

    def read(number: int) -> NDArray[Any]:
        place = number // (height * width), number // width % height, number % width
        block = (slice(at * size, (at + 1) * size) for at, size in zip(place, cell, strict=True))
        return volume[tuple(block)].ravel()

    threads = reads_at_once(math.prod(cell) * volume.dtype.itemsize, remote=volume.remote)
    return map_ahead(read, numbers, threads=threads, ahead=threads if threads > 1 else 0)


def _grid(volume: Volume, cell: tuple[int, ...]) -> list[int]:
    """Return the number of cells along each axis; the last ones can be smaller."""
    return [-(-length // size) for length, size in zip(volume.shape, cell, strict=True)]


def _block_shape(shape: tuple[int, ...], voxels: int) -> tuple[int, ...]:
    """Return the shape of a block of about ``voxels`` voxels of one slice, which divides the slice evenly."""
    y = _even_part(shape[1], max(math.isqrt(voxels), -(-voxels // shape[2])))
    return 1, y, _even_part(shape[2], voxels // y)


def _even_part(length: int, part: int) -> int:
    """Return the length nearest to ``part`` that divides ``length`` into almost equal parts."""
    return -(-length // max(1, round(length / max(1, part))))


def reads_at_once(size: int, *, remote: bool) -> int:
    """Return how many parts of a volume are best read at once: several from a server, as far as memory allows.

    Args:
        size: bytes of the chunks that a part lies in.
        remote: whether they come from a server.

    Example:
        >>> [reads_at_once(2**20, remote=True), reads_at_once(2**27, remote=True), reads_at_once(1, remote=False)]
        [8, 2, 1]
    """
    return max(1, min(THREADS, IN_FLIGHT // max(size, 1))) if remote else 1
