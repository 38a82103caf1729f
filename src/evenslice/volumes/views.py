"""Volumes derived from others: a range of slices, a copy in memory, mapped values."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError
from evenslice.volumes.axes import Arrangement
from evenslice.volumes.read.source import ArraySource, VoxelSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike, NDArray

    from evenslice.volumes.volume import Volume

__all__ = ["hold_in_memory", "map_voxels", "take_slices"]


def take_slices(volume: Volume, start: int, stop: int) -> Volume:
    """Return the slices from ``start`` up to ``stop`` as a volume, without reading them.

    Args:
        volume: the volume.
        start: first slice.
        stop: one past the last slice.

    Raises:
        VolumeError: the volume does not have these slices.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> part = take_slices(open_volume(np.arange(5).reshape(5, 1, 1)), 2, 4)
        >>> part.path, part[:].ravel().tolist()
        ('<array>[2:4]', [2, 3])
    """
    depth = volume.shape[0]
    if not 0 <= start < stop <= depth:
        raise VolumeError(
            f"{volume.path}: has slices 0 to {depth - 1}, not {start} to {stop - 1}; choose a range among those"
        )
    if (start, stop) == (0, depth):
        return volume
    dimension = volume._arrangement.zyx[0]  # noqa: SLF001  # set by `open_volume`
    opener = partial(_open_range, volume._open, dimension, start, stop)  # noqa: SLF001
    affine = volume.affine
    if affine is not None:
        shift = np.eye(4)
        shift[2, 3] = start
        affine = affine @ shift
    return replace(
        volume,
        path=f"{volume.path}[{start}:{stop}]",
        shape=(stop - start, *volume.shape[1:]),
        affine=affine,
        _open=opener,
        _sources=[_Range(source, dimension, start, stop) for source in volume._sources],  # noqa: SLF001
    )


def hold_in_memory(volume: Volume) -> Volume:
    """Read a volume once and return it as a volume in memory.

    Raises:
        VolumeError: the file cannot be read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> hold_in_memory(open_volume(np.arange(2).reshape(2, 1, 1)))[1].tolist()
        [[1]]
    """
    opener = partial(ArraySource, volume[...])
    return replace(
        volume, chunks=None, _open=opener, _arrangement=Arrangement((0, 1, 2), {}), _sources=[opener()]
    )


def map_voxels(volume: Volume, function: Callable[[NDArray[Any]], NDArray[Any]], dtype: DTypeLike) -> Volume:
    """Return a volume whose voxels are a function of another's, computed when they are read.

    Args:
        volume: the volume to map.
        function: takes stored voxels of any shape and returns an array of that shape; the volume pickles if it does.
        dtype: data type that the function returns.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> doubled = map_voxels(open_volume(np.arange(3).reshape(3, 1, 1)), lambda voxels: 2.0 * voxels, "float64")
        >>> doubled[:].ravel().tolist()
        [0.0, 2.0, 4.0]
    """
    kind = np.dtype(dtype)
    opener = partial(_open_mapped, volume._open, function, kind)  # noqa: SLF001
    sources: list[VoxelSource] = [_Mapped(source, function, kind) for source in volume._sources]  # noqa: SLF001
    return replace(volume, dtype=kind, _open=opener, _sources=sources)


def _open_mapped(
    opener: Callable[[], VoxelSource], function: Callable[[NDArray[Any]], NDArray[Any]], dtype: np.dtype[Any]
) -> VoxelSource:
    return _Mapped(opener(), function, dtype)


class _Mapped(VoxelSource):
    """A function of a stored array."""

    def __init__(
        self, source: VoxelSource, function: Callable[[NDArray[Any]], NDArray[Any]], dtype: np.dtype[Any]
    ) -> None:
        self._source, self._function = source, function
        self.format, self.shape, self.dtype = source.format, source.shape, dtype

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read and map."""
        return self._function(self._source.read(key))


def _open_range(opener: Callable[[], VoxelSource], dimension: int, start: int, stop: int) -> VoxelSource:
    return _Range(opener(), dimension, start, stop)


class _Range(VoxelSource):
    """A stored array, cropped along one dimension."""

    def __init__(self, source: VoxelSource, dimension: int, start: int, stop: int) -> None:
        self._source, self._dimension, self._start = source, dimension, start
        self.format, self.fresh = source.format, source.fresh
        shape = list(source.shape)
        shape[dimension] = stop - start
        self.shape = tuple(shape)
        self.dtype = source.dtype

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read from the whole array."""
        parts = list(key)
        part = parts[self._dimension]
        parts[self._dimension] = slice(part.start + self._start, part.stop + self._start, part.step)
        return self._source.read(tuple(parts))
