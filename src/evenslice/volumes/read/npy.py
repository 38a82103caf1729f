"""NumPy ``.npy`` files, memory-mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import VolumeError
from evenslice.volumes.read.source import ArraySource, require_signature

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NpySource"]


class NpySource(ArraySource):
    """An array in a ``.npy`` file, mapped into memory; pickled objects are refused, not loaded."""

    def __init__(self, path: Path, label: str) -> None:
        require_signature(path, label, "a NumPy array")
        _check_size(path, label)
        super().__init__(np.lib.format.open_memmap(path, mode="r"))


def _check_size(path: Path, label: str) -> None:
    """Raise if the file holds pickled objects, or fewer bytes than its header claims.

    The header is read by itself first: mapping reports both faults less clearly, and an empty array not at all.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        needed = file.tell() + dtype.itemsize * int(np.prod(shape, dtype=object))
    if dtype.hasobject:
        raise VolumeError(
            f"{label}: holds pickled Python objects, which are never loaded; save a numeric array"
        )
    held = path.stat().st_size
    if held < needed:
        raise VolumeError(
            f"{label}: is truncated, its array of shape {shape} needs {needed:,} bytes and the file has {held:,}; copy it again"
        )
    if 0 in shape:
        raise VolumeError(
            f"{label}: has an empty axis, its shape is {shape}; a volume needs at least one voxel"
        )
