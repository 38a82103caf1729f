"""Iterating over a volume in blocks of bounded memory, and sampling its voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import map_ahead
from evenslice.volumes.read.chunk_files import reads_at_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.volume import Volume

    Block = tuple[slice, slice, slice]

BLOCK_BYTES = 2**25
# With a million voxels of EM, the 1st and 99th percentile are then within 1 % of the range.
SAMPLE_BLOCKS = 256
MOST_BLOCKS = 1024


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


def find_nonfinite(volume: Volume) -> tuple[int, tuple[int, int, int]] | None:
    """Count the voxels that are NaN or infinite, reading the volume once in blocks of bounded memory.

    Args:
        volume: the volume; one of integers is not read at all.

    Returns:
        Their number and the index z, y, x of the first; None if there are none.

    Raises:
        VolumeError: the file cannot be read.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> array = np.zeros((3, 4, 5), np.float32)
        >>> array[1, 2, 3] = array[2, 0, 0] = np.nan
        >>> find_nonfinite(open_volume(array))
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


def sample_voxels(volume: Volume, voxels: int = 1_000_000, seed: int = 0) -> NDArray[Any]:
    """Draw voxels from small blocks spread over the volume, for percentiles and the like.

    The blocks lie inside chunks, so that few chunks are decoded, and are stratified along z; each voxel is almost
    equally likely. A volume of at most ``voxels`` voxels is returned whole. Of chunks that are so small that the
    sample would take more than 1,024, that many are read.

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
    chunks = _Axes.of(volume.shape, volume.chunks or (1, *volume.shape[1:]), None)
    if volume.size <= voxels and (volume.chunks is None or chunks.total <= MOST_BLOCKS):
        return volume[...].ravel()
    block = _block_shape(chunks.chunk, max(1, voxels // SAMPLE_BLOCKS))
    axes = _Axes.of(volume.shape, chunks.chunk, block)
    count = min(axes.total, -(-voxels * axes.total // volume.size), MOST_BLOCKS)
    blocks = axes.spread(count, np.random.default_rng(seed))
    return np.concatenate(_read_blocks(volume, blocks, chunks))


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
    chunks = _Axes.of(volume.shape, volume.chunks or (1, *volume.shape[1:]), None)
    count = min(chunks.total, most, max_bytes // (math.prod(chunks.chunk) * volume.dtype.itemsize))
    yield from _read_blocks(volume, chunks.spread(count, np.random.default_rng(seed)), chunks)


@dataclass(frozen=True)
class _Axes:
    """A volume divided along each axis into chunks, and these into parts; places are computed, not listed.

    Attributes:
        shape: number of voxels along each axis.
        chunk: size of a chunk.
        part: size of a part of a chunk; a chunk's last can be smaller.
        grid: number of parts along each axis.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    part: tuple[int, ...]
    grid: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], chunk: tuple[int, ...], part: tuple[int, ...] | None) -> _Axes:
        """Divide a volume; without ``part`` a chunk is one part."""
        part = part or chunk
        axes = zip(shape, chunk, part, strict=True)
        grid = tuple(
            length // whole * -(-whole // piece) + -(-(length % whole) // piece)
            for length, whole, piece in axes
        )
        return cls(shape, chunk, part, grid)

    @property
    def total(self) -> int:
        """The number of parts."""
        return math.prod(self.grid)

    def place(self, number: int) -> Block:
        """Return a part by its number, counted along x first."""
        _, height, width = self.grid
        z, y, x = number // (height * width), number // width % height, number % width
        return self._span(0, z), self._span(1, y), self._span(2, x)

    def _span(self, axis: int, number: int) -> slice:
        whole, piece = self.chunk[axis], self.part[axis]
        chunk, inside = divmod(number, -(-whole // piece))
        start = chunk * whole + inside * piece
        return slice(start, min(start + piece, (chunk + 1) * whole, self.shape[axis]))

    def spread(self, count: int, generator: np.random.Generator) -> list[Block]:
        """Return ``count`` parts, in the order of z: one from each of as many equal runs of the grid in C order."""
        total = self.total
        if not count:
            return []
        chosen = np.unique(np.floor((np.arange(count) + generator.random(count)) * (total / count)))
        return [self.place(number) for number in sorted({min(int(place), total - 1) for place in chosen})]

    def number_of_chunk(self, block: Block) -> tuple[int, ...]:
        """Return the numbers along each axis of the chunk that a part lies in."""
        return tuple(part.start // whole for part, whole in zip(block, self.chunk, strict=True))


def _read_blocks(volume: Volume, blocks: Sequence[Block], chunks: _Axes) -> list[NDArray[Any]]:
    """Read blocks; those that lie in one chunk are read together, because each read decodes the whole chunk."""
    if volume.chunks is None:
        return [volume[block].ravel() for block in blocks]
    members: dict[tuple[int, ...], list[int]] = {}
    for number, block in enumerate(blocks):
        members.setdefault(chunks.number_of_chunk(block), []).append(number)
    found: list[NDArray[Any]] = [np.empty(0, volume.dtype)] * len(blocks)

    def read(numbers: list[int]) -> None:
        hull = tuple(
            slice(min(part.start for part in parts), max(part.stop for part in parts))
            for parts in zip(*(blocks[number] for number in numbers), strict=True)
        )
        voxels = volume[hull]
        for number in numbers:
            inside = tuple(
                slice(part.start - whole.start, part.stop - whole.start)
                for part, whole in zip(blocks[number], hull, strict=True)
            )
            found[number] = voxels[inside].flatten()

    threads = reads_at_once(math.prod(volume.chunks) * volume.dtype.itemsize, remote=volume.remote)
    for _ in map_ahead(read, members.values(), threads=threads, ahead=threads if threads > 1 else 0):
        pass
    return found


def _block_shape(chunk: tuple[int, ...], voxels: int) -> tuple[int, ...]:
    """Return the shape of about ``voxels`` voxels, flat along z as far as y and x allow, that divides a chunk evenly."""
    y = _even_part(chunk[1], max(math.isqrt(voxels), -(-voxels // chunk[2])))
    x = _even_part(chunk[2], voxels // y)
    return _even_part(chunk[0], voxels // (y * x)), y, x


def _even_part(length: int, part: int) -> int:
    """Return the length nearest to ``part`` that divides ``length`` into almost equal parts."""
    return -(-length // max(1, round(length / max(1, part))))
