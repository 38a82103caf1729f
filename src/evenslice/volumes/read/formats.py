"""The table of file formats. A new one is a module with a ``Source`` and a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, VolumeError, nearest
from evenslice.volumes.read.dicom import DicomSource, dicom_files
from evenslice.volumes.read.dicom_headers import is_dicom
from evenslice.volumes.read.hdf5 import Hdf5Source
from evenslice.volumes.read.metaimage import MetaImageSource
from evenslice.volumes.read.mrc import MrcSource
from evenslice.volumes.read.nifti import NiftiSource
from evenslice.volumes.read.npy import NpySource
from evenslice.volumes.read.nrrd import NrrdSource
from evenslice.volumes.read.slice_folder import SliceFolderSource, slice_files
from evenslice.volumes.read.source import Source, reading
from evenslice.volumes.read.tiff import TiffSource
from evenslice.volumes.read.zarr import ZarrSource, is_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evenslice.volumes.read.places import Place

__all__ = ["FOLDERS", "FORMATS", "Format", "find_format", "open_source"]


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: how messages call it.
        suffixes: endings of file names, in lower case.
        open: makes the source of a place.
        levels: whether it stores several resolution levels to choose from.
        parts: whether a file holds several data sets to choose from, as ``file:/path``.
    """

    name: str
    suffixes: tuple[str, ...]
    open: Callable[[Place], Source]
    levels: bool = False
    parts: bool = False


ZARR = Format(
    "Zarr", (".zarr",), ZarrSource, levels=True
)  # any folder with Zarr metadata, whatever its suffix
DICOM = Format(
    "DICOM",
    (".dcm", ".dicom", ".ima"),
    lambda place: DicomSource([place.path], place.label, place.series),
)
FORMATS = (
    Format("TIFF", (".tif", ".tiff", ".btf", ".tf8"), lambda place: TiffSource(place.path, place.label)),
    Format("NIfTI", (".nii", ".nii.gz"), lambda place: NiftiSource(place.path, place.label)),
    DICOM,
    Format("MetaImage", (".mha", ".mhd"), lambda place: MetaImageSource(place.path, place.label)),
    Format("NRRD", (".nrrd", ".nhdr"), lambda place: NrrdSource(place.path, place.label)),
    Format(
        "HDF5",
        (".h5", ".hdf5", ".hdf", ".he5", ".nxs", ".ims"),
        lambda place: Hdf5Source(place.path, place.label, place.part),
        parts=True,
    ),
    Format("MRC", (".mrc", ".mrcs", ".map", ".rec"), lambda place: MrcSource(place.path, place.label)),
    Format("NumPy array", (".npy",), lambda place: NpySource(place.path, place.label)),
    ZARR,
)
FOLDERS = (
    Format("DICOM", (), lambda place: DicomSource(dicom_files(place.path), place.label, place.series)),
    Format(
        "folder of slices",
        (),
        lambda place: SliceFolderSource(slice_files(place.path, place.label), place.label),
    ),
)
"""Folders of files that are one slice each; what a folder holds tells which."""


def find_format(place: Place) -> Format:
    """Return the format of what lies at a place: an address is Zarr, a folder what it holds, a file what its suffix says.

    Raises:
        VolumeError: there is nothing, or nothing of a known format.
    """
    if isinstance(place.location, str):
        return ZARR
    path, label = place.path, place.label
    if path.is_dir():
        return _find_folder_format(path, label)
    if not path.exists():
        raise VolumeError(f"{label}: no such file or folder; check the path")
    name = path.name.lower()
    for file_format in FORMATS:
        if name.endswith(file_format.suffixes):
            if file_format is ZARR:
                raise VolumeError(f"{label}: is a file, and a Zarr volume is a folder; name the folder")
            return file_format
    if is_dicom(path):
        return DICOM  # scanners and archives name files as they like
    suffix = path.suffix.lower()
    known = [suffix for file_format in FORMATS for suffix in file_format.suffixes]
    raise VolumeError(
        f"{label}: {f'the suffix {suffix!r} is none' if suffix else 'has no suffix'} that evenslice reads; {nearest(suffix, known)}"
    )


def _find_folder_format(path: Path, label: str) -> Format:
    if is_zarr(path):
        return ZARR
    if dicom_files(path):
        return FOLDERS[0]
    if slice_files(path, label):
        return FOLDERS[1]
    folders = sorted(item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    inside = f"; it holds the folders {', '.join(folders[:6])}" if folders else ""
    raise VolumeError(
        f"{label}: is a folder without Zarr metadata, DICOM files, or TIFF, PNG or JPEG slices; name a volume file, or a folder that holds one{inside}"
    )


def open_source(place: Place) -> Source:
    """Open what lies at a place.

    Raises:
        VolumeError: it cannot be opened.
        ConfigError: it has no such level, or no parts.
    """
    label = place.label
    with reading(label, "a volume"):
        file_format = find_format(place)
    if place.level and not file_format.levels:
        raise ConfigError(
            f"{label}: a {file_format.name} file has one resolution level, not a level {place.level}; leave it out"
        )
    if place.part is not None and not file_format.parts:
        raise ConfigError(
            f"{label}: a {file_format.name} volume has no data sets inside; leave {place.part} out"
        )
    with reading(label, file_format.name):
        return file_format.open(place)
