# ruff: noqa: SLF001  # volumes are made from one another here
"""A lazy (z, y, x) view of a stored array; volumes derived from it: sliced along another axis, regions, mapped values.

Also blocks of bounded memory that cover a volume, and samples of its voxels.
"""

from __future__ import annotations

import math
import operator
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, cast, get_args

import numpy as np

from evenslice._core import ConfigError, VolumeError, check_known, map_ahead, option
from evenslice.volumes.read.source import ArraySource, VoxelSource, reporting_read_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

    from evenslice.volumes.geometry import Unit

    Block = tuple[slice, slice, slice]

Index = SupportsIndex | slice | EllipsisType

Plane = Literal["z", "y", "x"]
"""The axis along which slices follow one another."""


_ORDERS: dict[str, tuple[int, int, int]] = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
"""Which axes of the file, z, y, x, are the axes of a volume sliced along one of them."""

IN_MEMORY = 2**30
"""Largest total size in bytes of the volumes that ``hold_small`` keeps in memory."""

BLOCK_BYTES = 2**25
# With a million voxels of EM, the 1st and 99th percentile are then within 1 % of the range.
SAMPLE_BLOCKS = 256
MOST_BLOCKS = 1024

THREADS = 8
"""Most parts of a volume that are fetched at once: a server answers several requests in the time of one."""

IN_FLIGHT = 2**28
"""Bytes that the chunks decoded at once may take, unless one takes more."""


@dataclass(frozen=True)
class Origin:
    """Where a volume comes from and how it was opened; see ``Volume``, whose properties these are."""

    location: Path | str | None
    part: str | None
    format: str
    files: tuple[Path, ...] | None
    level: int
    select: Mapping[str, int]
    axes_given: bool


@dataclass(frozen=True, eq=False)
class Stored:
    """The stored array of a volume, and how it becomes the volume.

    Attributes:
        zyx: the stored dimensions that are z, y and x.
        lengths: the stored lengths of these.
        fixed: for every other stored dimension, the one index that is read.
        open: opens the array.
        sources: the opened one; empty in a copy, until the first read.
        start: where the volume starts along z, y and x.
        whole: the volume as it was opened from a file, of which this is a part or a function.
    """

    zyx: tuple[int, int, int]
    lengths: tuple[int, int, int]
    fixed: dict[int, int]
    open: Callable[[], VoxelSource]
    sources: list[VoxelSource]
    start: tuple[int, int, int] = (0, 0, 0)
    whole: Volume | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sources": [], "whole": copy(self.whole)}


@dataclass(frozen=True, eq=False)
class Volume:
    """An array (z, y, x) that is read when indexed.

    Indexing takes integers, slices (steps and negative values as in NumPy) and ``...``, and returns a new array that
    may be modified. No file stays open between reads: a volume needs no closing and works in several threads, after a
    fork and in other processes (it pickles as a path with its options).

    Made by :func:`evenslice.open_volume`.

    Attributes:
        path: the file, folder or address that was given; "<array>" for an array in memory.
        origin: the file and how it was opened.
        shape: number of voxels along z, y, x; each at least 1.
        dtype: data type of the voxels: bool, integer or real, in native byte order.
        spacing: voxel size along z, y, x, finite and positive, or None if unknown.
        unit: unit of the spacing, or None if unknown.
        chunks: size along z, y, x of the pieces that are decoded as one, or None if any part is equally cheap to read.
        affine: (4, 4) map from voxel indices (x, y, z, 1) to patient space (x to the right, y to the front, z to the
            head, as in NIfTI) in mm, or None if the file has none.
        offset: where the centre of the first voxel lies along z, y, x, in voxels from the origin of the file's own
            coordinates. These are stated by OME-Zarr, N5 and precomputed volumes (which count from the corner of a voxel);
            in other files, the first voxel is the origin.
        plane: the axis of the file along which slices follow one another, "z" by default. It comes first and is
            called z everywhere else; the other two keep their order.
        region: (first, last + 1) voxel along z, y and x of the file; None for the whole file.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(60).reshape(3, 4, 5), spacing=(50, 4, 4), unit="nm")
        >>> volume
        Volume '<array>' 3 x 4 x 5 int64, 50 x 4 x 4 nm
        >>> volume.shape, volume.spacing
        ((3, 4, 5), (50.0, 4.0, 4.0))
        >>> volume[1, 2:, ::-2].tolist()
        [[34, 32, 30], [39, 37, 35]]
    """

    path: str
    origin: Origin
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    spacing: tuple[float, float, float] | None
    unit: Unit | None
    chunks: tuple[int, int, int] | None
    affine: NDArray[np.float64] | None
    offset: tuple[float, float, float]
    _stored: Stored
    plane: Plane = "z"
    region: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None

    @property
    def location(self) -> Path | str | None:
        """The absolute path, the address as text, or None for an array in memory."""
        return self.origin.location

    @property
    def part(self) -> str | None:
        """The path of the dataset inside the file, or None for formats with one volume per file."""
        return self.origin.part

    @property
    def format(self) -> str:
        """The name of the file format."""
        return self.origin.format

    @property
    def files(self) -> tuple[Path, ...] | None:
        """The files that hold the voxels; None if they are all that is at the location."""
        return self.origin.files

    @property
    def level(self) -> int:
        """The resolution level, 0 the finest."""
        return self.origin.level

    @property
    def select(self) -> Mapping[str, int]:
        """The index that was picked along each other axis of the file, such as ``{"t": 0}``."""
        return self.origin.select

    @property
    def whole_shape(self) -> tuple[int, int, int] | None:
        """The number of voxels of the file along z, y, x, if this is a region of it; else None."""
        return None if self.region is None else reslice(self, "z")._stored.lengths

    @property
    def reading(self) -> dict[str, Any]:
        """How it is read, as plain values: level, stored dimensions that are z, y, x, and indices along the others.

        Tells volumes of one file apart, however their axes are named.
        """
        return {
            "level": self.level,
            "zyx": list(self._stored.zyx),
            "fixed": sorted(self._stored.fixed.items()),
        }

    @property
    def chunk_offset(self) -> tuple[int, ...]:
        """Position of the first voxel in its chunk, along z, y, x; other than 0 in a part of a file."""
        starts = [low for low, _ in self.region or ((0, 0),) * 3]
        chunks = zip(_ORDERS[self.plane], self.chunks or (1, 1, 1), strict=True)
        return tuple(starts[axis] % chunk for axis, chunk in chunks)

    @property
    def ndim(self) -> int:
        """The number of axes, 3."""
        return 3

    @property
    def size(self) -> int:
        """The number of voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def nbytes(self) -> int:
        """The number of bytes that the whole volume takes in memory."""
        return self.size * self.dtype.itemsize

    @property
    def remote(self) -> bool:
        """Whether it is at an address, where waiting for several reads at once saves time."""
        return isinstance(self.location, str)

    def __repr__(self) -> str:
        shape, sizes = (
            " x ".join(f"{length:g}" for length in lengths) for lengths in (self.shape, self.spacing or ())
        )
        stated = f", {sizes} {self.unit or '(no unit)'}" if sizes else ""
        return f"Volume {self.path!r} {shape} {self.dtype}{stated}"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Index | tuple[Index, ...]) -> NDArray[Any]:
        """Read a part.

        Args:
            key: up to three integers or slices along z, y, x; ``...`` stands for the axes that are not named.

        Returns:
            A new C-contiguous array of the volume's dtype; an axis indexed by an integer is dropped, as in NumPy.

        Raises:
            IndexError: an integer is out of range, or there are more indices than axes.
            TypeError: an index is not an integer, slice or ``...``.
            VolumeError: the file cannot be read.
        """
        ranges, view = _resolve(key, self.shape)
        if all(len(steps) for steps in ranges):
            block = self._read([slice(steps[0], steps[-1] + 1, steps.step) for steps in ranges])
        else:
            block = np.empty([len(steps) for steps in ranges], self.dtype)
        part = block[view]
        fresh = any(source.fresh for source in self._stored.sources)
        return np.require(part, self.dtype, ["C", "W"] if fresh else ["C", "O", "W"])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Read the whole volume into memory, for ``np.asarray(volume)``."""
        if copy is False:
            raise ValueError(f"{self.path}: a volume cannot become an array without a copy")
        return self[...] if dtype is None else self[...].astype(dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stored": copy(self._stored)}  # which opens anew

    @property
    def _whole(self) -> Volume:
        return self._stored.whole or self

    def _read(self, window: list[slice]) -> NDArray[Any]:
        """Read slices along z, y, x, all non-empty and with a positive step."""
        with reporting_read_errors(self.path, self.format):
            source, arranged = self._source(), self._stored
            key = [slice(0, 1)] * len(source.shape)
            for dimension, index in arranged.fixed.items():
                key[dimension] = slice(index, index + 1)
            for dimension, start, part in zip(arranged.zyx, arranged.start, window, strict=True):
                key[dimension] = slice(part.start + start, part.stop + start, part.step)
            block = source.read(tuple(key))
            first: tuple[Any, ...] = (..., *(0 for _ in arranged.fixed))
            window_block: NDArray[Any] = block.transpose(*arranged.zyx, *arranged.fixed)[first]
        return window_block

    def _source(self) -> VoxelSource:
        """Return the opened source; open it again if the volume was unpickled."""
        stored = self._stored
        if not stored.sources:
            source = stored.open()
            lengths = tuple(source.shape[dimension] for dimension in stored.zyx)
            if lengths != stored.lengths or source.dtype.newbyteorder("=") != self.dtype:
                raise VolumeError(f"{self.path}: has changed since it was opened; open it again")
            stored.sources.append(source)
        return stored.sources[0]


def _resolve(
    key: Index | tuple[Index, ...], shape: tuple[int, int, int]
) -> tuple[list[range], tuple[int | slice, ...]]:
    """Split an index into the part to read and the view of it.

    Returns:
        For each axis the ascending range of indices to read; and the index into that block that drops axes given as
        integers and reverses those with a negative step.
    """
    parts = list(key) if isinstance(key, tuple) else [key]
    dots = [position for position, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or len(parts) - len(dots) > 3:
        raise IndexError(f"a volume has three axes; too many indices in {key!r}")
    where = dots[0] if dots else len(parts)
    parts[where : where + 1] = [slice(None)] * (3 - len(parts) + len(dots))
    ranges: list[range] = []
    view: list[int | slice] = []
    for part, length in zip(parts, shape, strict=True):
        steps: int | range = range(length)[part]  # type: ignore[index]  # as for a list: IndexError, TypeError
        if isinstance(steps, int):
            ranges.append(range(steps, steps + 1))
            view.append(0)
        else:
            ranges.append(steps if steps.step > 0 else steps[::-1])
            view.append(slice(None) if steps.step > 0 else slice(None, None, -1))
    return ranges, tuple(view)


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
    order = [now.index(axis) for axis in _ORDERS[plane]]

    def ordered(values: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        return _three(values[axis] for axis in order)

    affine = volume.affine
    if affine is not None:  # its columns belong to x, y and z
        affine = affine[:, [*(2 - axis for axis in reversed(order)), 3]]
    named = volume.path.removesuffix(f" along {volume.plane}")
    stored = volume._stored
    return replace(
        volume,
        path=named if plane == "z" else f"{named} along {plane}",
        shape=ordered(volume.shape),
        spacing=volume.spacing and ordered(volume.spacing),
        chunks=volume.chunks and ordered(volume.chunks),
        affine=affine,
        offset=ordered(volume.offset),
        plane=cast(Plane, plane),
        _stored=replace(
            stored, zyx=ordered(stored.zyx), lengths=ordered(stored.lengths), start=ordered(stored.start)
        ),
    )


def take_region(volume: Volume, region: Sequence[Any]) -> Volume:
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
    bounds = _region_bounds(region, whole.shape, whole.path)
    starts = [start for start, _ in bounds]
    affine, stored = whole.affine, whole._stored
    if affine is not None:
        shift = np.eye(4)
        shift[:3, 3] = starts[::-1]
        affine = affine @ shift

    def moved(places: Iterable[float]) -> tuple[Any, Any, Any]:
        return _three(place + start for place, start in zip(places, starts, strict=True))

    part = replace(
        whole,
        path=f"{whole.path}[{','.join(f'{low}:{high}' for low, high in bounds)}]",
        shape=_three(stop - start for start, stop in bounds),
        affine=affine,
        offset=moved(whole.offset),
        _stored=replace(stored, start=moved(stored.start)),
        region=_three(
            (low + first, high + first)
            for (low, high), (first, _) in zip(bounds, whole.region or ((0, 0),) * 3, strict=True)
        ),
    )
    return reslice(part, volume.plane)


def _region_bounds(region: Sequence[Any], shape: tuple[int, ...], path: str) -> list[tuple[int, int]]:
    """Return the first voxel and one past the last along z, y and x of a region, checked."""
    bounds = []
    try:
        for part, length in zip(region, shape, strict=True):
            stop = operator.index(length if part.stop is None else part.stop)
            bounds.append((operator.index(part.start or 0), stop))
            if part.step not in (None, 1) or not 0 <= bounds[-1][0] < stop <= length:
                raise ValueError(part)
    except (AttributeError, TypeError, ValueError):  # not slices, not of whole numbers, not three
        inside = ", ".join(f"{axis} 0:{length}" for axis, length in zip("zyx", shape, strict=True))
        raise ConfigError(
            f"{path}: {option('region')} {region!r:.90}: give one slice without a step along each of {inside}"
        ) from None
    return bounds


def _three(values: Iterable[Any]) -> tuple[Any, Any, Any]:
    z, y, x = values
    return z, y, x


def hold_small(volumes: Sequence[Volume]) -> list[Volume]:
    """Read volumes into memory if they are small, up to 1 GiB together: random crops of compressed files are slow.

    Raises:
        VolumeError: a file cannot be read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> hold_small([open_volume(np.arange(2).reshape(2, 1, 1))])[0][1].tolist()
        [[1]]
    """
    if sum(volume.nbytes for volume in volumes) > IN_MEMORY:
        return list(volumes)
    return [_made(volume, partial(ArraySource, volume[...]), chunks=None) for volume in volumes]


def _made(volume: Volume, opener: Callable[[], VoxelSource], **changes: Any) -> Volume:
    """Return a volume whose stored array (z, y, x) is made of the voxels of another."""
    stored = Stored((0, 1, 2), volume.shape, {}, opener, [opener()], whole=volume._stored.whole)
    return replace(volume, _stored=stored, **changes)


def run_end(volume: Volume, z: int, area: int, most: int) -> int:
    """Return the end of the slices from z on that are best read at once: each read decodes all that share their chunks.

    Args:
        volume: the volume.
        z: the first slice.
        area: number of voxels that are read of each.
        most: number of voxels to read at once, unless one slice has more.

    Example:
        >>> import dask.array as da
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(da.zeros((23, 4, 4), chunks=(10, 4, 4)))
        >>> [run_end(volume, z, 16, most=64) for z in (0, 3, 8, 22)]
        [4, 4, 10, 23]
    """
    stored = (volume.chunks or (1,))[0]
    inside = (z + volume.chunk_offset[0]) % stored
    run = min(stored, max(1, most // area))
    return min(z - inside % run + run, z - inside + stored, len(volume))


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
    return _made(volume, partial(_InRuns, volume, stop, max_bytes), chunks=(1, *volume.chunks[1:]))


def map_voxels(
    volume: Volume,
    function: Callable[[NDArray[Any]], NDArray[Any]],
    dtype: DTypeLike,
    *,
    around: bool = False,
) -> Volume:
    """Return a volume whose voxels are a function of another's, computed when they are read.

    Args:
        volume: the volume to map.
        function: takes stored voxels of any shape and returns an array of that shape; the volume pickles if it does.
        dtype: data type that the function returns.
        around: whether the function also needs one voxel more on each side within the plane of what is read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> doubled = map_voxels(open_volume(np.arange(3).reshape(3, 1, 1)), lambda voxels: 2.0 * voxels, "float64")
        >>> doubled[:].ravel().tolist()
        [0.0, 2.0, 4.0]
    """
    kind = np.dtype(dtype)
    return _made(volume, partial(_Mapped, volume, function, kind, around), dtype=kind)


class _Derived(VoxelSource):
    """An array (z, y, x) that is made of a volume when it is read."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.format, self.shape, self.dtype = volume.format, volume.shape, volume.dtype


class _Mapped(_Derived):
    """A function of a volume, and of one voxel more on each side within the plane if it needs what lies around."""

    def __init__(
        self, volume: Volume, function: Callable[..., NDArray[Any]], dtype: np.dtype[Any], around: bool
    ) -> None:
        super().__init__(volume)
        self._function, self.dtype, self.around = function, dtype, around

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read, with what lies around it, map, and keep what was asked for."""
        z, *plane = key
        if not self.around:
            return self._function(self._volume._read([z, *plane]))
        wide = [
            slice(max(part.start - 1, 0), min(part.stop + 1, length))
            for part, length in zip(plane, self.shape[1:], strict=True)
        ]
        inside = [
            slice(part.start - whole.start, part.stop - whole.start, part.step)
            for part, whole in zip(plane, wide, strict=True)
        ]
        return self._function(self._volume._read([z, *wide]))[:, *inside]


class _InRuns(_Derived):
    """A volume that holds the slices which it has read together, as ``read_in_runs`` says."""

    def __init__(self, volume: Volume, stop: int, max_bytes: int) -> None:
        super().__init__(volume)
        self._stop, self._most = stop, max_bytes // volume.dtype.itemsize
        self._held, self._plane = range(0), list[slice]()
        self._run: NDArray[Any] | None = None

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return a view of what is held, which is read first if need be."""
        wanted, *plane = key
        inside = self._held.start <= wanted.start and wanted.stop <= self._held.stop
        if self._run is None or not inside or self._plane != plane:
            self._run = None  # two would take twice the memory
            area = math.prod(part.stop - part.start for part in plane)
            end = min(run_end(self._volume, wanted.start, area, self._most), self._stop)
            self._held, self._plane = range(wanted.start, max(end, wanted.stop)), plane
            self._run = self._volume._read([slice(self._held.start, self._held.stop), *plane])
        first = self._held.start
        return self._run[wanted.start - first : wanted.stop - first : wanted.step]


# Blocks and samples


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
