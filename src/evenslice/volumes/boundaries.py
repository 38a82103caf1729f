"""Boundaries of numbered objects, found slice by slice when they are read.

classes = boundary_volume(open_volume("neurons.zarr"), "dense")    # 1 where objects meet, else 0
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from evenslice._core import VolumeError, check_known
from evenslice.volumes.read.source import VoxelSource
from evenslice.volumes.volume import wrap_source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.volumes.volume import Volume

__all__ = ["IGNORED", "Instances", "boundary_volume", "find_fractions", "is_boundaries", "no_label"]

IGNORED = -100
"""The class number of voxels that count neither in a loss nor in scores; PyTorch's cross entropy leaves it out, too."""

Instances = Literal["sparse", "dense"]
"""What 0 is in labels that number objects: the background of "sparse" ones, or what lies between "dense" ones."""


def boundary_volume(stored: Volume, instances: str, *, ignore: int | None = None) -> Volume:
    """Return the volume of boundaries, 0 or 1, of a volume that numbers objects.

    A boundary is two voxels wide: a voxel is on it if its number is not that of a neighbour by an edge in its slice, as in
    the mode "thick" of scikit-image's ``find_boundaries``. Neighbours in other slices do not count.

    Args:
        stored: (z, y, x) numbers of objects, of any data type; slices are those along the volume's plane.
        instances: "sparse" for objects on a background, 0; "dense" for objects that fill the volume, where what is 0 lies
            between them and is boundary itself.
        ignore: the number of voxels that do not count, which become ``IGNORED``; None if all count. Next to them there
            is no boundary.

    Returns:
        A volume of int64, which reads one voxel more on each side of what it is asked for, and raises VolumeError if one
        is no whole number.

    Raises:
        ConfigError: ``instances`` is neither.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> objects = open_volume(np.array([[[0, 0, 0, 7, 7, 7, 9]]], np.uint64))
        >>> boundary_volume(objects, "sparse")[0].tolist(), boundary_volume(objects, "dense")[0].tolist()
        ([[0, 0, 1, 1, 0, 1, 1]], [[1, 1, 1, 1, 0, 1, 1]])
    """
    check_known("instances", instances, get_args(Instances))
    axes = stored._arrangement.zyx[1:]  # noqa: SLF001  # set by `open_volume`
    wrap = partial(_Boundaries, path=stored.path, axes=axes, dense=instances == "dense", ignore=ignore)
    return wrap_source(stored, wrap, dtype=np.dtype(np.int64))


def is_boundaries(volume: Volume) -> bool:
    """Return whether a volume comes from ``boundary_volume``, so that parts of it overlap as they are read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> objects = open_volume(np.zeros((1, 2, 2), np.uint8))
        >>> is_boundaries(objects), is_boundaries(boundary_volume(objects, "dense"))
        (False, True)
    """
    return isinstance(volume._source(), _Boundaries)  # noqa: SLF001  # set by `boundary_volume`


def find_fractions(stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where values are no labels at all: fractions, NaN and infinity.

    Example:
        >>> find_fractions(np.array([1.0, 0.5, np.nan, np.inf])).tolist()
        [False, True, True, True]
    """
    if stored.dtype.kind != "f":
        return np.zeros(stored.shape, bool)
    found: NDArray[np.bool_] = ~np.isfinite(stored) | (np.floor(stored) != stored)
    return found


def no_label(path: str, value: float) -> VolumeError:
    """Return the error about a value that is no label at all."""
    return VolumeError(f"{path}: holds {value:g}, which is not a label; labels are whole numbers")


class _Boundaries(VoxelSource):
    """The boundaries of a stored array of numbers along two of its dimensions."""

    def __init__(
        self, source: VoxelSource, *, path: str, axes: tuple[int, int], dense: bool, ignore: int | None
    ) -> None:
        self._source, self._path, self._axes, self._dense, self._ignore = source, path, axes, dense, ignore
        self.format, self.shape, self.dtype = source.format, source.shape, np.dtype(np.int64)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read with one voxel more on each side, and keep what was asked for."""
        wide, inside = list(key), [slice(None)] * len(key)
        for axis in self._axes:
            start, stop, step = key[axis].indices(self.shape[axis])
            wide[axis] = slice(max(start - 1, 0), min(stop + 1, self.shape[axis]))
            inside[axis] = slice(start - wide[axis].start, stop - wide[axis].start, step)
        return self._classes(self._source.read(tuple(wide)))[tuple(inside)]

    def _classes(self, numbers: NDArray[Any]) -> NDArray[np.int64]:
        wrong = find_fractions(numbers)
        if wrong.any():
            raise no_label(self._path, numbers[wrong].flat[0].item())
        counts = np.ones(numbers.shape, bool) if self._ignore is None else numbers != self._ignore
        found = (numbers == 0) & self._dense
        for axis in self._axes:
            here, there = _pairs(numbers.ndim, axis)
            meet = (numbers[here] != numbers[there]) & counts[here] & counts[there]
            found[here] |= meet
            found[there] |= meet
        return np.where(counts, found, IGNORED).astype(np.int64, copy=False)


def _pairs(dimensions: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the indices of all voxels but the last along an axis, and of all but the first."""
    here, there = ([slice(None)] * dimensions for _ in range(2))
    here[axis], there[axis] = slice(None, -1), slice(1, None)
    return tuple(here), tuple(there)
