"""The interface of file formats: a stored array that is read in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError
from evenslice.volumes.read.metadata import letters

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit

__all__ = ["ArraySource", "VoxelSource"]


class VoxelSource(ABC):
    """A stored array of any number of dimensions, read in pieces.

    A subclass opens one file format: its constructor reads and validates the metadata and sets the attributes; voxels
    are read by ``read`` only. It keeps no file open between reads, so that a volume needs no closing and may be used
    from several threads and after a fork, and hundreds of volumes at once.

    Attributes:
        format: the name of the format, for users.
        shape: the stored shape, in stored order.
        dtype: the data type of what ``read`` returns.
        names: one lower-case letter per dimension (z, y, x; t time, c channel, s colour sample), or None if unnamed.
        assumed: whether ``names`` are only those that are usual in such a file, which states none.
        spacing: voxel size along each stored dimension, NaN for those that are not spatial; or None if unknown.
        unit: the unit of ``spacing``, or None if unknown.
        voxel_size: voxel size along z, y, x if the file states it so, whatever the stored order; takes precedence over
            ``spacing``.
        chunks: shape of the pieces that are decoded as one, or None if there are none.
        affine: (4, 4) map from voxel indices (x, y, z, 1), as ``names`` has them, to patient space (x to the right, y
            to the front, z to the head) in mm, or None.
        placed: whether the file states the affine, rather than leaving it to be assumed.
        offset: where the centre of the first voxel lies along each stored dimension, in voxels from the origin of the
            file's own coordinates; or None if it is the origin.
        files: the files that hold the voxels, unless that is the whole path that was opened; else None.
        part: the path of the dataset inside the file, or None for formats with one volume per file.
        selected: the names in the user's selection that the format has applied itself.
        fresh: whether what ``read`` returns is the caller's, if it can be written to, so that it need not be copied.
    """

    format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    names: str | None = None
    assumed: bool = False
    spacing: tuple[float, ...] | None = None
    unit: Unit | None = None
    voxel_size: tuple[float, float, float] | None = None
    chunks: tuple[int, ...] | None = None
    affine: NDArray[np.float64] | None = None
    placed: bool = True
    offset: tuple[float, ...] | None = None
    files: tuple[Path, ...] | None = None
    part: str | None = None
    selected: tuple[str, ...] = ()
    fresh: bool = False

    @abstractmethod
    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the part of the stored array under ``key``.

        Args:
            key: one slice per dimension, not empty, with 0 <= start < stop <= length and step >= 1.

        Returns:
            An array with as many dimensions as the stored one; it may be a view, which the caller copies.
        """


class ArraySource(VoxelSource):
    """An array in memory, or one that is read in pieces, as Dask, Zarr and xarray have them.

    Raises:
        ConfigError: it is of a library whose data types are not NumPy's, as are the tensors of PyTorch; or its shape is
            unknown.
    """

    format = "NumPy array"

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        if any(length != length for length in array.shape):  # noqa: PLR0124  # NaN, where Dask does not know it
            raise ConfigError(
                f"the shape {array.shape} of the array is not known yet; call its compute_chunk_sizes() first"
            )
        self.shape = tuple(array.shape)
        dimensions = getattr(array, "dims", None)  # of xarray
        if isinstance(dimensions, tuple):
            names = letters([str(name).lower() for name in dimensions])
            self.names = names if names and set("zyx") <= set(names) else None
        try:
            self.dtype = np.dtype(array.dtype)
        except TypeError:
            raise ConfigError(
                f"a volume is a path or a NumPy array, not a {type(array).__name__} of {array.dtype}; convert a tensor by "
                "tensor.numpy(), or by tensor.cpu().numpy() if it is on a GPU"
            ) from None
        self.chunks = _chunks(array)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return a view, or a copy of what is not in memory."""
        return np.asarray(self.array[key])


def _chunks(array: Any) -> tuple[int, ...] | None:
    """Return the largest chunk of an array, as Dask, xarray, Zarr and h5py tell it; None if it has none."""
    stored = getattr(array, "chunks", None)
    return None if not stored else tuple(max(part) if isinstance(part, tuple) else part for part in stored)
