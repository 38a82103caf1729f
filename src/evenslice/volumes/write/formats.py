"""The table of file formats that are written. A new one is a module with a function and a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import OutputError, nearest
from evenslice.volumes.write.hdf5 import write_hdf5
from evenslice.volumes.write.mha import write_mha
from evenslice.volumes.write.nifti import write_nifti
from evenslice.volumes.write.npy import write_npy
from evenslice.volumes.write.nrrd import write_nrrd
from evenslice.volumes.write.tiff import write_tiff
from evenslice.volumes.write.zarr import write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from evenslice.volumes.write.image import Image

__all__ = ["FORMATS", "HDF5", "ZARR", "Format", "find_format"]


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: how messages call it.
        suffixes: endings of file names, in lower case.
        packages: what has to be installed, all of the extra ``volumes``.
        write: writes an image under a path; of a file that can hold several, to the named place in it.
        wider: the data types that the format lacks, and the smallest of its own that holds all their values.
    """

    name: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[Path, Image, str], None]
    wider: dict[str, str]

    def stored(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the data type in which voxels of another are stored, little-endian; no value changes."""
        return np.dtype(self.wider.get(dtype.name, dtype.name)).newbyteorder("<")


_NO_BOOL = {"bool": "uint8"}
_NO_HALF = {"bool": "uint8", "float16": "float32"}

HDF5 = Format("HDF5", (".h5", ".hdf5", ".hdf"), ("h5py",), write_hdf5, _NO_BOOL)
ZARR = Format("OME-Zarr", (".zarr",), ("zarr",), lambda path, image, _: write_zarr(path, image), _NO_BOOL)
FORMATS = (
    Format(
        "TIFF",
        (".tif", ".tiff", ".btf", ".tf8"),
        ("tifffile", "imagecodecs"),
        lambda path, image, _: write_tiff(path, image),
        _NO_HALF,
    ),
    Format(
        "NIfTI", (".nii", ".nii.gz"), ("nibabel",), lambda path, image, _: write_nifti(path, image), _NO_HALF
    ),
    ZARR,
    HDF5,
    Format("MetaImage", (".mha",), (), lambda path, image, _: write_mha(path, image), _NO_HALF),
    Format("NRRD", (".nrrd",), (), lambda path, image, _: write_nrrd(path, image), _NO_HALF),
    Format("NumPy array", (".npy",), (), lambda path, image, _: write_npy(path, image), {}),
)


def find_format(name: str, label: str) -> Format:
    """Return the format that the suffix of a file name says.

    Args:
        name: the last part of the path.
        label: the path as the user wrote it.

    Raises:
        OutputError: there is no such format.

    Example:
        >>> find_format("labels.ome.zarr", "out/labels.ome.zarr").name
        'OME-Zarr'
    """
    for file_format in FORMATS:
        if name.lower().endswith(file_format.suffixes):
            return file_format
    suffix = f".{name.rpartition('.')[2]}" if "." in name.lstrip(".") else ""
    known = [suffix for file_format in FORMATS for suffix in file_format.suffixes]
    raise OutputError(
        f"{label}: {f'the suffix {suffix!r} is none' if suffix else 'has no suffix'} that evenslice writes; {nearest(suffix, known)}"
    )
