"""A lazy (z, y, x) view of a stored array."""

from __future__ import annotations

import operator
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

from evenslice._core import VolumeError
from evenslice.volumes.read.checks import reporting_read_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

    from evenslice.volumes.axes import Arrangement
    from evenslice.volumes.read.source import VoxelSource
    from evenslice.volumes.units import Unit

__all__ = ["Index", "Plane", "Volume", "wrap_source"]

Index = SupportsIndex | slice | EllipsisType

Plane = Literal["z", "y", "x"]
"""The axis along which slices follow one another."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An array (z, y, x) that is read when indexed.

    Indexing takes integers, slices (steps and negative values as in NumPy) and ``...``, and returns a new array that
    may be modified. No file stays open between reads: a volume needs no closing and may be used from several threads,
    after a fork and in other processes (it pickles as a path with its options).

    Made by :func:`evenslice.open_volume`.

    Attributes:
        path: the file, folder or address as the user wrote it; "<array>" for an array in memory.
        location: the absolute path, the address as text, or None for an array in memory.
        part: the path of the dataset inside the file, or None for formats with one volume per file.
        format: the name of the file format.
        shape: number of voxels along z, y, x; each at least 1.
        dtype: data type of the voxels: bool, integer or real, in native byte order.
        spacing: voxel size along z, y, x, finite and positive, or None if unknown.
        unit: unit of the spacing, or None if unknown.
        chunks: size along z, y, x of the pieces that are decoded as one, or None if any part is equally cheap to read.
        chunk_offset: position of the first voxel in its chunk, along z, y, x; other than 0 in a part of a file.
        affine: (4, 4) map from voxel indices (x, y, z, 1) to patient space (x to the right, y to the front, z to the
            head, as in NIfTI) in mm, or None if the file has none.
        placed: whether the file states the affine; that of a NIfTI file with both codes 0 is an assumption.
        offset: where the centre of the first voxel lies along z, y, x, in voxels from the origin of the file's own
            coordinates. These are stated by OME-Zarr, N5 and precomputed volumes (which count from the corner of a voxel);
            in other files, the first voxel is the origin.
        axes_given: whether the user named the stored axes when opening it.
        files: the files that hold the voxels; None if they are all that is at the location.
        plane: the axis of the file along which slices follow one another, "z" by default. It comes first
            here and is called z in all other respects; the other two keep their order.
        region: the first voxel and one past the last along z, y and x of the file; None for the whole file.
        whole_shape: the number of voxels of the file along z, y, x, if this is a region of it; else None.
        level: the resolution level, 0 the finest.
        select: the index that was picked along each other axis of the file, such as ``{"t": 0}``.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(60).reshape(3, 4, 5), spacing=(50, 4, 4), unit="nm")
        >>> volume.shape, volume.spacing
        ((3, 4, 5), (50.0, 4.0, 4.0))
        >>> volume[1, 2:, ::-2].tolist()
        [[34, 32, 30], [39, 37, 35]]
    """

    path: str
    location: Path | str | None
    part: str | None
    format: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    spacing: tuple[float, float, float] | None
    unit: Unit | None
    chunks: tuple[int, int, int] | None
    affine: NDArray[np.float64] | None = field(repr=False)
    files: tuple[Path, ...] | None = field(repr=False)
    _open: Callable[[], VoxelSource] = field(repr=False)
    _arrangement: Arrangement = field(repr=False)
    # The opened source; empty after unpickling, until the first read.
    _sources: list[VoxelSource] = field(repr=False)
    chunk_offset: tuple[int, int, int] = (0, 0, 0)
    plane: Plane = "z"
    region: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None
    whole_shape: tuple[int, int, int] | None = None
    level: int = 0
    placed: bool = True
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    axes_given: bool = False
    select: Mapping[str, int] = field(default_factory=dict)
    # As opened, of what this is a part or a function of.
    _whole: Volume | None = field(default=None, repr=False)

    @property
    def reading(self) -> dict[str, Any]:
        """How it is read, as plain values: level, stored dimensions that are z, y, x, and indices along the others.

        This tells volumes of one file apart, whatever their axes are called.
        """
        return {
            "level": self.level,
            "zyx": list(self._arrangement.zyx),
            "fixed": sorted(self._arrangement.fixed.items()),
        }

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
        if self._sources and self._sources[0].fresh:
            return np.require(part, self.dtype, ["C", "W"])
        return np.require(part, self.dtype, ["C", "O", "W"])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Read the whole volume into memory, for ``np.asarray(volume)``."""
        if copy is False:
            raise ValueError(f"{self.path}: a volume cannot become an array without a copy")
        return self[...] if dtype is None else self[...].astype(dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": [], "_whole": copy(self._whole)}  # which opens anew, too

    def _read(self, window: list[slice]) -> NDArray[Any]:
        """Read slices along z, y, x, all non-empty and with a positive step."""
        with reporting_read_errors(self.path, self.format):
            source = self._source()
            key = [slice(0, 1)] * len(source.shape)
            for dimension, index in self._arrangement.fixed.items():
                key[dimension] = slice(index, index + 1)
            for dimension, part in zip(self._arrangement.zyx, window, strict=True):
                key[dimension] = part
            block = source.read(tuple(key))
            fixed = tuple(self._arrangement.fixed)
            first: tuple[Any, ...] = (..., *(0 for _ in fixed))
            window_block: NDArray[Any] = block.transpose(*self._arrangement.zyx, *fixed)[first]
        return window_block

    def _source(self) -> VoxelSource:
        """Return the opened source; open it again if the volume was unpickled."""
        if not self._sources:
            source = self._open()
            zyx = tuple(source.shape[dimension] for dimension in self._arrangement.zyx)
            if zyx != self.shape or source.dtype.newbyteorder("=") != self.dtype:
                raise VolumeError(f"{self.path}: has changed since it was opened; open it again")
            self._sources.append(source)
        return self._sources[0]


def wrap_source(volume: Volume, wrap: Callable[[VoxelSource], VoxelSource], **changes: Any) -> Volume:
    """Return a volume that reads another's stored array through a wrapper.

    Args:
        volume: the volume to derive it from.
        wrap: makes a stored array of another, with as many dimensions; the volume pickles if it does.
        changes: attributes of the volume that are to differ, such as its shape.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> from evenslice.volumes.read.source import ArraySource
        >>> volume = open_volume(np.arange(3).reshape(1, 1, 3))
        >>> wrap_source(volume, lambda source: ArraySource(source.array + 5), path="more")[0].tolist()
        [[5, 6, 7]]
    """
    return replace(
        volume,
        _open=partial(_open_wrapped, volume._open, wrap),  # noqa: SLF001  # of the same module
        _sources=[wrap(source) for source in volume._sources],  # noqa: SLF001
        **changes,
    )


def _open_wrapped(
    opener: Callable[[], VoxelSource], wrap: Callable[[VoxelSource], VoxelSource]
) -> VoxelSource:
    return wrap(opener())


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
    for axis, (part, length) in enumerate(zip(parts, shape, strict=True)):
        if isinstance(part, slice):
            steps = range(*part.indices(length))
            ranges.append(steps if steps.step > 0 else steps[::-1])
            view.append(slice(None) if steps.step > 0 else slice(None, None, -1))
        else:
            ranges.append(_single(part, length, "zyx"[axis]))
            view.append(0)
    return ranges, tuple(view)


def _single(part: Any, length: int, axis: str) -> range:
    """Return the range of one integer index."""
    index = operator.index(part)  # raises TypeError for anything but an integer
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of range for axis {axis} of length {length}")
    return range(index % length, index % length + 1)
