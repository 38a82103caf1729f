"""The table of formats that can be written. A new one needs a module with a function and a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import OutputError, did_you_mean
from evenslice.volumes.write.hdf5 import write_hdf5
from evenslice.volumes.write.mha import write_mha
from evenslice.volumes.write.nifti import write_nifti
from evenslice.volumes.write.npy import write_npy
from evenslice.volumes.write.nrrd import write_nrrd
from evenslice.volumes.write.tiff import unfit_for_tiff, write_tiff
from evenslice.volumes.write.zarr import write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from evenslice.volumes.write.image import Image

__all__ = ["HDF5", "WRITE_FORMATS", "ZARR", "WriteFormat", "find_write_format"]


@dataclass(frozen=True)
class WriteFormat:
    """A file format that can be written.

    Attributes:
        name: its name in messages.
        suffixes: suffixes of file names, in lower case.
        packages: required packages, all of the extra ``volumes``.
        write: writes an image to a path, as the named dataset in formats that hold several.
        wider: data types that the format lacks, and its smallest type that holds all their values.
        unfit: returns why the format cannot hold an image; None if it can.
    """

    name: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[Path, Image, str], None]
    wider: dict[str, str]
    unfit: Callable[[Image], str | None] = lambda _: None

    def stored(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the little-endian data type in which voxels are stored without loss."""
        return np.dtype(self.wider.get(dtype.name, dtype.name)).newbyteorder("<")


_NO_BOOL = {"bool": "uint8"}
_NO_HALF = {"bool": "uint8", "float16": "float32"}

HDF5 = WriteFormat("HDF5", (".h5", ".hdf5", ".hdf"), ("h5py",), write_hdf5, _NO_BOOL)
ZARR = WriteFormat(
    "OME-Zarr", (".zarr",), ("zarr",), lambda path, image, _: write_zarr(path, image), _NO_BOOL
)
WRITE_FORMATS = (
    WriteFormat(
        "TIFF",
        (".tif", ".tiff", ".btf", ".tf8"),
        ("tifffile", "imagecodecs"),
        lambda path, image, _: write_tiff(path, image),
        _NO_HALF,
        unfit_for_tiff,
    ),
    WriteFormat(
        "NIfTI", (".nii", ".nii.gz"), ("nibabel",), lambda path, image, _: write_nifti(path, image), _NO_HALF
    ),
    ZARR,
    HDF5,
    WriteFormat("MetaImage", (".mha",), (), lambda path, image, _: write_mha(path, image), _NO_HALF),
    WriteFormat("NRRD", (".nrrd",), (), lambda path, image, _: write_nrrd(path, image), _NO_HALF),
    WriteFormat("NumPy array", (".npy",), (), lambda path, image, _: write_npy(path, image), {}),
)


def find_write_format(name: str, label: str) -> WriteFormat:
    """Return the format of a file name, by its suffix.

    Args:
        name: the last part of the path.
        label: the path as the user wrote it.

    Raises:
        OutputError: the suffix is unknown.

    Example:
        >>> find_write_format("labels.ome.zarr", "out/labels.ome.zarr").name
        'OME-Zarr'
    """
    for file_format in WRITE_FORMATS:
        if name.lower().endswith(file_format.suffixes):
            return file_format
    suffix = f".{name.rpartition('.')[2]}" if "." in name.lstrip(".") else ""
    known = [suffix for file_format in WRITE_FORMATS for suffix in file_format.suffixes]
    raise OutputError(
        f"{label}: {f'cannot write {suffix!r} files' if suffix else 'has no suffix that names a format'}; "
        f"{did_you_mean(suffix, known)}"
    )
