"""Readers of what a study's files hold that are safe for files of unknown origin.

They read no more than a study writes, unpickle nothing and check every type. All their errors are of the kinds
``UNREADABLE``, as are those of the readers of whole files in ``_core``.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import open_regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "EXAMPLE_SIZE",
    "count",
    "number",
    "read_pictures",
    "text",
]

EXAMPLE_SIZE = 256
"""Largest number of pixels along y and x of the example that a run keeps."""

LARGEST = 1e9  # no metric of a study can be larger


def read_pictures(path: Path, *names: str) -> dict[str, NDArray[np.uint8]]:
    """Return arrays (y, x) of an ``.npz`` file, all of one shape of at most ``EXAMPLE_SIZE`` along y and x."""
    with open_regular(path) as content, zipfile.ZipFile(content) as file:
        pictures = {name: _picture(file, f"{name}.npy") for name in names}
    if len({picture.shape for picture in pictures.values()}) > 1:
        raise ValueError("its arrays differ in shape")
    return pictures


def _picture(file: zipfile.ZipFile, name: str) -> NDArray[np.uint8]:
    most = EXAMPLE_SIZE**2 + 1024  # with its header
    with file.open(name) as member:
        content = member.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name} has more than {EXAMPLE_SIZE} x {EXAMPLE_SIZE} pixels")
    array: NDArray[np.uint8] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != 2 or array.size == 0 or max(array.shape) > EXAMPLE_SIZE:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    return array


def number(value: Any) -> float:
    """Return a number as a float; None is NaN.

    Example:
        >>> number(None), number(2)
        (nan, 2.0)
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is not a number")
    if abs(value) > LARGEST:
        raise ValueError(f"{value:g} is too large for a result of a study")
    return float(value)


def count(value: Any) -> int:
    """Return a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r:.40} is not a whole number of at least 0")
    return value


def text(record: Mapping[str, Any], name: str) -> str:
    """Return an entry of a record that has to be text."""
    value = record[name]
    if not isinstance(value, str):
        raise TypeError(f"{name}: {value!r:.40} is not text")
    return value
