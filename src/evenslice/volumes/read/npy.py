"""NumPy ``.npy`` files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import VolumeError, open_regular
from evenslice.volumes.read.checks import require_signature
from evenslice.volumes.read.file_voxels import FileSource, FileVoxels

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NpySource"]

_HEADER_BYTES = 2**17
"""Bytes in which a header has to end; NumPy itself refuses one of more than 10,000."""


class NpySource(FileSource):
    """An array in a ``.npy`` file; pickled objects are refused."""

    format = "NumPy array"

    def __init__(self, path: Path, label: str) -> None:
        require_signature(path, label, "a NumPy array")
        with open_regular(path) as file:
            # Reading from the file itself, NumPy allocates whatever length the header claims.
            head = io.BytesIO(file.read(_HEADER_BYTES))
        first = np.lib.format.read_magic(head) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(head)
        offset = head.tell()
        if dtype.hasobject:
            raise VolumeError(
                f"{label}: holds pickled Python objects, which are never loaded; save a numeric array"
            )
        if min(shape, default=0) < 0:
            raise VolumeError(f"{label}: its header claims the impossible shape {shape}; the file is damaged")
        super().__init__(FileVoxels(path, label, dtype, offset, shape, "F" if fortran else "C"))
