"""Arrays from ``.npz`` files of unknown origin: nothing is unpickled, and no more is read than the file may hold."""

from __future__ import annotations

import math
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import open_regular

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from numpy.typing import NDArray

__all__ = ["read_arrays", "stored_size"]

MOST_ARRAYS = 1000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def stored_size(path: Path) -> int:
    """Return the number of bytes that all arrays of an ``.npz`` file claim to have, without reading them.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        zipfile.BadZipFile: it is damaged.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def read_arrays(path: Path, most: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file by name.

    Args:
        path: the file.
        most: largest number of bytes of all arrays together.

    Raises:
        ValueError: it has more, or an array that is not of plain numbers or does not fill its entry.
        OSError: it cannot be read, or is not a regular file.
        zipfile.BadZipFile: it is damaged.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        size = sum(entry.file_size for entry in entries)
        if size > most or len(entries) > MOST_ARRAYS:
            raise ValueError(f"it holds {len(entries)} arrays of {size:,} bytes; at most {most:,} are read")
        arrays = {}
        for entry in entries:
            with archive.open(entry) as member:
                _check_header(member, entry)
            with archive.open(entry) as member:
                arrays[entry.filename.removesuffix(".npy")] = np.lib.format.read_array(
                    member, allow_pickle=False
                )
        return arrays


def _check_header(member: IO[bytes], entry: zipfile.ZipInfo) -> None:
    """Check that an array has the size of its entry, before anything of that size is made."""
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
        raise ValueError(f"{entry.filename} is of version {version}")
    shape, _, dtype = _HEADERS[version](member)
    if dtype.kind not in "biuf":
        raise ValueError(f"{entry.filename} is not of plain numbers")
    if math.prod(shape) * dtype.itemsize + member.tell() != entry.file_size:
        raise ValueError(f"{entry.filename} does not have the size that its header states")
