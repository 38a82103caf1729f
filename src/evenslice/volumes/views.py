"""Volumes derived from others: sliced along another axis, a range of slices, a region, a copy in memory, mapped values."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from evenslice._core import ConfigError, VolumeError, check_known, option
from evenslice.volumes.axes import Arrangement
from evenslice.volumes.blocks import run_end
from evenslice.volumes.read.checks import reporting_read_errors
from evenslice.volumes.read.source import ArraySource, VoxelSource
from evenslice.volumes.volume import Plane, wrap_source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import DTypeLike, NDArray

    from evenslice.volumes.volume import Volume

    Region = Sequence[Any]

__all__ = [
    "hold_in_memory",
    "hold_small",
    "in_plane",
    "map_voxels",
    "read_in_runs",
    "region_bounds",
    "reslice",
    "take_region",
    "take_slices",
]

_ORDERS: dict[str, tuple[int, int, int]] = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
"""Which axes of the file, z, y, x, are the axes of a volume sliced along one of them."""

IN_MEMORY = 2**30
"""Largest total size in bytes of the volumes that ``hold_small`` keeps in memory."""


def in_plane(volume: Volume, plane: str) -> Volume:
    """Return a volume as ``Reading.plane`` says: sliced along "y" or "x", or with "z" as it was opened."""
    return volume if plane == "z" else reslice(volume, plane)


def reslice(volume: Volume, plane: str) -> Volume:
    """Return a volume whose slices follow one another along another axis of the file, without reading it.

    Args:
        volume: a volume sliced along any axis.
        plane: "z" for the order of the file (z, y, x), "y" for (y, z, x), "x" for (x, z, y). Spacing, chunks and
            position follow.

    Raises:
        ConfigError: it is no axis.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(24).reshape(2, 3, 4), spacing=(50, 4, 5))
        >>> coronal = reslice(volume, "y")
        >>> coronal.shape, coronal.spacing, coronal.path, coronal[0].tolist()
        ((3, 2, 4), (4.0, 50.0, 5.0), '<array> along y', [[0, 1, 2, 3], [12, 13, 14, 15]])
        >>> reslice(reslice(coronal, "x"), "z").path
        '<array>'
    """
    check_known("plane", plane, get_args(Plane))
    if plane == volume.plane:
        return volume
    now = _ORDERS[volume.plane]
    first, second, third = (now.index(axis) for axis in _ORDERS[plane])

    def ordered(values: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        return values[first], values[second], values[third]

    affine = volume.affine
    if affine is not None:  # its columns belong to x, y and z
        affine = affine[:, [*(2 - axis for axis in (third, second, first)), 3]]
    named = volume.path.removesuffix(f" along {volume.plane}")
    arrangement = volume._arrangement  # noqa: SLF001  # noqa: SLF001  # set by `open_volume`
    return replace(
        volume,
        path=named if plane == "z" else f"{named} along {plane}",
        shape=ordered(volume.shape),
        spacing=volume.spacing and ordered(volume.spacing),
        chunks=volume.chunks and ordered(volume.chunks),
        chunk_offset=ordered(volume.chunk_offset),
        affine=affine,
        offset=ordered(volume.offset),
        plane=cast(Plane, plane),
        _arrangement=replace(arrangement, zyx=ordered(arrangement.zyx)),
    )


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
    bounds = ((start, stop), *((0, length) for length in volume.shape[1:]))
    return replace(_cropped(volume, bounds), path=f"{volume.path}[{start}:{stop}]")


def take_region(volume: Volume, region: Region) -> Volume:
    """Return a box of a volume as a volume, without reading it; affine and offset are those of the first voxel of the box.

    Args:
        volume: the volume, sliced along any axis.
        region: one slice for each axis of the file, z, y, x, whatever the volume is sliced along: first voxel and one
            past the last, either may be None.

    Raises:
        ConfigError: it is not three ranges inside the volume; the message names the axis.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> part = take_region(open_volume(np.arange(60).reshape(3, 4, 5)), (slice(1, 3), slice(None), slice(3, None)))
        >>> part.path, part.shape, part[0, 0].tolist()
        ('<array>[1:3,0:4,3:5]', (2, 4, 2), [23, 24])
        >>> part.region
        ((1, 3), (0, 4), (3, 5))
    """
    whole = reslice(volume, "z")
    bounds = region_bounds(region, whole.shape, whole.path)
    origin = [start for start, _ in whole.region or ((0, 0),) * 3]
    z, y, x = ((low + start, high + start) for (low, high), start in zip(bounds, origin, strict=True))
    named = ",".join(f"{low}:{high}" for low, high in bounds)
    part = replace(
        _cropped(whole, bounds),
        path=f"{whole.path}[{named}]",
        region=(z, y, x),
        whole_shape=whole.whole_shape or whole.shape,
    )
    return reslice(part, volume.plane)


def region_bounds(region: Region, shape: tuple[int, ...], label: str) -> tuple[tuple[int, int], ...]:
    """Return the first voxel and one past the last along z, y and x of a region, checked.

    Raises:
        ConfigError: it is not three ranges inside the shape.

    Example:
        >>> region_bounds((slice(1, 3), slice(None), slice(2, None)), (3, 4, 5), "<array>")
        ((1, 3), (0, 4), (2, 5))
    """
    parts = region if isinstance(region, tuple | list) else ()
    ranges = [part for part in parts if isinstance(part, slice) and part.step in (None, 1)]
    if not len(parts) == len(ranges) == 3:
        raise ConfigError(
            f"{label}: {option('region')} needs one slice without a step for each of z, y, x, such as 0:16,0:512,0:512"
        )
    bounds = []
    for axis, part, length in zip("zyx", ranges, shape, strict=True):
        start, stop = 0 if part.start is None else part.start, length if part.stop is None else part.stop
        whole = isinstance(start, Real) and isinstance(stop, Real) and start % 1 == stop % 1 == 0
        if not (whole and 0 <= start < stop <= length):
            raise ConfigError(
                f"{label}: {option('region')} asks for {start}:{stop} along {axis}, which has 0:{length}; give "
                f"two whole numbers from 0 to {length}, the first below the second"
            )
        bounds.append((int(start), int(stop)))
    return tuple(bounds)


def _cropped(volume: Volume, bounds: Sequence[tuple[int, int]]) -> Volume:
    """Return a box of a volume: first voxel and one past the last along each of its axes."""
    zyx = volume._arrangement.zyx  # noqa: SLF001  # noqa: SLF001  # set by `open_volume`
    crops = tuple((dimension, *ends) for dimension, ends in zip(zyx, bounds, strict=True))
    affine = volume.affine
    if affine is not None:
        shift = np.eye(4)
        shift[:3, 3] = [start for start, _ in reversed(bounds)]
        affine = affine @ shift
    z, y, x = (stop - start for start, stop in bounds)
    above, front, left = (place + start for place, (start, _) in zip(volume.offset, bounds, strict=True))
    first, second, third = (
        (offset + start) % chunk
        for offset, (start, _), chunk in zip(
            volume.chunk_offset, bounds, volume.chunks or (1, 1, 1), strict=True
        )
    )
    return wrap_source(
        volume,
        partial(_Cropped, crops=crops),
        shape=(z, y, x),
        chunk_offset=(first, second, third),
        affine=affine,
        offset=(above, front, left),
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
        volume,
        chunks=None,
        chunk_offset=(0, 0, 0),
        _open=opener,
        _arrangement=Arrangement((0, 1, 2), {}),
        _sources=[opener()],
    )


def hold_small(volumes: Sequence[Volume]) -> list[Volume]:
    """Hold volumes in memory if they are small, up to 1 GiB together: random crops of compressed files are slow.

    Raises:
        VolumeError: a file cannot be read.
    """
    if sum(volume.nbytes for volume in volumes) > IN_MEMORY:
        return list(volumes)
    return [hold_in_memory(volume) for volume in volumes]


def read_in_runs(volume: Volume, stop: int, max_bytes: int) -> Volume:
    """Return a volume whose slices are cheap to read one by one in ascending order, always the same part of the plane.

    With a slice, those after it that share its chunks are read and held, in their own data type, until one beyond them is
    read: by itself, each would decode these chunks again. Not for several threads at once.

    Args:
        volume: the volume.
        stop: one past the last slice that is needed.
        max_bytes: limit on the voxels that are held, unless a single slice has more.

    Example:
        >>> import dask.array as da
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(da.arange(20, chunks=10).reshape(20, 1, 1))
        >>> held = read_in_runs(volume, 20, max_bytes=2**10)
        >>> volume.chunks, held.chunks, held[11].tolist()
        ((10, 1, 1), (1, 1, 1), [[11]])
    """
    if volume.chunks is None or volume.chunks[0] == 1:
        return volume
    with reporting_read_errors(volume.path, volume.format):
        volume._source()  # noqa: SLF001  # noqa: SLF001  # opened once, whatever is read of it later
    return wrap_source(
        volume,
        partial(_InRuns, volume=volume, stop=stop, max_bytes=max_bytes),
        chunks=(1, *volume.chunks[1:]),
        chunk_offset=(0, *volume.chunk_offset[1:]),
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
    return wrap_source(volume, partial(_Mapped, function=function, dtype=kind), dtype=kind)


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


class _InRuns(VoxelSource):
    """A stored array that holds the slices which it has read together, as ``read_in_runs`` says."""

    def __init__(self, source: VoxelSource, volume: Volume, stop: int, max_bytes: int) -> None:
        self._source, self._volume, self._stop = source, volume, stop
        self._most = max_bytes // volume.dtype.itemsize
        self._axis = volume._arrangement.zyx[0]  # noqa: SLF001  # noqa: SLF001  # set by `open_volume`
        self.format, self.shape, self.dtype = source.format, source.shape, source.dtype
        self._key: tuple[slice, ...] = ()
        self._run: NDArray[Any] | None = None

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return a view of what is held, which is read first if need be."""
        wanted = key[self._axis]
        if self._run is None or not self._holds(key):
            self._run = None  # two would take twice the memory
            area = math.prod(part.stop - part.start for part in self._with(key, 0, 1))
            end = min(run_end(self._volume, wanted.start, area, self._most), self._stop)
            self._key = self._with(key, wanted.start, max(end, wanted.stop))
            self._run = self._source.read(self._key)
        first = self._key[self._axis].start
        inside = slice(wanted.start - first, wanted.stop - first, wanted.step)
        return self._run[(slice(None),) * self._axis + (inside,)]

    def _holds(self, key: tuple[slice, ...]) -> bool:
        held, wanted = self._key[self._axis], key[self._axis]
        return (
            held.start <= wanted.start
            and wanted.stop <= held.stop
            and self._with(key, held.start, held.stop) == self._key
        )

    def _with(self, key: tuple[slice, ...], start: int, stop: int) -> tuple[slice, ...]:
        """Return a key that asks for these slices."""
        return *key[: self._axis], slice(start, stop), *key[self._axis + 1 :]


class _Cropped(VoxelSource):
    """A stored array, cropped: some of its dimensions, each with the first index and one past the last."""

    def __init__(self, source: VoxelSource, crops: Sequence[tuple[int, int, int]]) -> None:
        self._source, self._starts = source, {dimension: start for dimension, start, _ in crops}
        self.format, self.fresh = source.format, source.fresh
        shape = list(source.shape)
        for dimension, start, stop in crops:
            if stop > shape[dimension]:
                raise VolumeError("the file has fewer voxels than when it was opened; open it again")
            shape[dimension] = stop - start
        self.shape = tuple(shape)
        self.dtype = source.dtype

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read from the whole array."""
        parts = list(key)
        for dimension, start in self._starts.items():
            part = parts[dimension]
            parts[dimension] = slice(part.start + start, part.stop + start, part.step)
        return self._source.read(tuple(parts))
