"""NumPy ``.npy`` files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import VolumeError, open_regular
from evenslice.volumes.read.checks import require_signature
from evenslice.volumes.read.file_voxels import FileSource, FileVoxels

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NpySource"]


class NpySource(FileSource):
    """An array in a ``.npy`` file; pickled objects are refused."""

    format = "NumPy array"

    def __init__(self, path: Path, label: str) -> None:
        require_signature(path, label, "a NumPy array")
        with open_regular(path) as file:
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
        if min(shape, default=0) < 0:
            raise VolumeError(f"{label}: its header claims the impossible shape {shape}; the file is damaged")
        super().__init__(FileVoxels(path, label, dtype, offset, shape, "F" if fortran else "C"))
