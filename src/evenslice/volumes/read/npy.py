"""NumPy ``.npy`` files, memory-mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import VolumeError
from evenslice.volumes.read.checks import map_file, require_signature
from evenslice.volumes.read.source import ArraySource

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NpySource"]


class NpySource(ArraySource):
    """An array in a ``.npy`` file, mapped into memory; pickled objects are refused."""

    def __init__(self, path: Path, label: str) -> None:
        require_signature(path, label, "a NumPy array")
        with path.open("rb") as file:
            first = np.lib.format.read_magic(file) == (1, 0)
            read_header = (
                np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(file)
            offset = file.tell()
        if dtype.hasobject:
            raise VolumeError(
                f"{label}: holds pickled Python objects, which are never loaded; save a numeric array"
            )
        super().__init__(map_file(path, label, dtype, offset, shape, "F" if fortran else "C"))
