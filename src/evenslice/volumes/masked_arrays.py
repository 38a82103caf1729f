"""NumPy's masked arrays, also within Dask arrays, as arrays without a mask."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, option

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fill_masked", "is_masked"]


def is_masked(array: Any) -> bool:
    """Return whether voxels of an array are masked, or may be, as in a Dask array of masked chunks."""
    return bool(np.ma.is_masked(array)) or _is_lazy(array)


def fill_masked(array: Any, fill: float | None) -> Any:
    """Return an array whose masked voxels, if there are any, have a value.

    Args:
        array: any array; one without masked voxels is returned as it is, or as its data.
        fill: the value; None if the user has given none.

    Raises:
        VolumeError: voxels are masked, and there is no value for them.
        ConfigError: the data type of the array does not hold the value.

    Example:
        >>> masked = np.ma.masked_equal([[[1, 2, 3]]], 2)
        >>> fill_masked(masked, 9)[0, :, 1:].tolist()
        [[9, 3]]
        >>> fill_masked(masked, None)
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: is a masked array; give fill, the value of its masked voxels, or
        array.filled(...)
    """
    given: Any = fill
    if not is_masked(array):
        if given is not None and not isinstance(given, Real):
            raise ConfigError(
                f"{option('fill')}: {given!r:.40} is not a number; give the value of masked voxels"
            )
        return np.ma.getdata(array) if np.ma.isMaskedArray(array) else array
    if fill is None:
        raise VolumeError(
            f"<array>: is a masked array; give {option('fill')}, the value of its masked voxels, or array.filled(...)"
        )
    if not _holds(array.dtype, fill):
        raise ConfigError(
            f"{option('fill', fill)}: the masked array is {array.dtype}, which has no such value; give another"
        )
    value = array.dtype.type(fill)
    return (
        array.map_blocks(np.ma.filled, value, dtype=array.dtype) if _is_lazy(array) else _Filled(array, value)
    )


def _is_lazy(array: Any) -> bool:
    return isinstance(getattr(array, "_meta", None), np.ma.MaskedArray)


def _holds(dtype: np.dtype[Any], value: Any) -> bool:
    if not isinstance(value, Real):
        return False
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return bool(np.isfinite(dtype.type(value))) or not math.isfinite(float(value))
    if dtype.kind not in "biu":
        return True
    number: Any = value
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return bool(low <= number <= high and number % 1 == 0)


class _Filled:
    """A masked array that is filled as it is read, not copied as a whole."""

    def __init__(self, array: Any, fill: Any) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._array, self._fill = array, fill

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return np.ma.filled(self._array[key], self._fill)
