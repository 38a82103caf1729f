"""The table of formats that can be read. A new one needs a module with a ``VoxelSource`` and a row here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, VolumeError, did_you_mean, option
from evenslice.volumes.read.checks import reporting_read_errors
from evenslice.volumes.read.chunk_files import ChunkFiles, read_json_object
from evenslice.volumes.read.dicom import DicomSource, dicom_files
from evenslice.volumes.read.dicom_series import is_dicom
from evenslice.volumes.read.flat_files import MrcSource, NpySource
from evenslice.volumes.read.hdf5 import Hdf5Source
from evenslice.volumes.read.itk_formats import MetaImageSource, NrrdSource
from evenslice.volumes.read.n5 import ATTRIBUTES, N5Source, is_n5
from evenslice.volumes.read.nifti import NiftiSource
from evenslice.volumes.read.precomputed import INFO, PrecomputedSource, is_precomputed
from evenslice.volumes.read.slice_folder import SliceFolderSource, slice_files
from evenslice.volumes.read.tiff import TiffSource
from evenslice.volumes.read.zarr import ZarrSource, is_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evenslice.volumes.read.location import Place
    from evenslice.volumes.read.source import VoxelSource

__all__ = ["READ_FORMATS", "ReadFormat", "find_read_format", "open_source"]


@dataclass(frozen=True)
class ReadFormat:
    """A file format that can be read.

    Attributes:
        name: its name in messages.
        suffixes: suffixes of file names, in lower case.
        open: opens the stored array at a place.
        levels: whether it stores several resolution levels to choose from.
        parts: whether a file holds several datasets to choose from, as ``file:/path``.
    """

    name: str
    suffixes: tuple[str, ...]
    open: Callable[[Place], VoxelSource]
    levels: bool = False
    parts: bool = False


# Any folder with Zarr metadata, whatever its suffix.
ZARR = ReadFormat("Zarr", (".zarr",), ZarrSource, levels=True)
N5 = ReadFormat("N5", (".n5",), N5Source, levels=True)
PRECOMPUTED = ReadFormat("Neuroglancer precomputed", (), PrecomputedSource, levels=True)
IN_CHUNKS = {"zarr": ZARR, "n5": N5, "precomputed": PRECOMPUTED}
"""Formats that are read at addresses too, by the names that may stand before these."""

_NAMED = re.compile(r"\.(zarr|n5|precomputed)(?:/|$)", re.IGNORECASE)

DICOM = ReadFormat(
    "DICOM",
    (".dcm", ".dicom", ".ima"),
    lambda place: DicomSource([place.path], place.label, place.series),
)
READ_FORMATS = (
    ReadFormat(
        "TIFF",
        (".tif", ".tiff", ".btf", ".tf8"),
        lambda place: TiffSource(place.path, place.label, place.picked),
    ),
    ReadFormat("NIfTI", (".nii", ".nii.gz"), lambda place: NiftiSource(place.path, place.label)),
    DICOM,
    ReadFormat("MetaImage", (".mha", ".mhd"), lambda place: MetaImageSource(place.path, place.label)),
    ReadFormat("NRRD", (".nrrd", ".nhdr"), lambda place: NrrdSource(place.path, place.label)),
    ReadFormat(
        "HDF5",
        (".h5", ".hdf5", ".hdf", ".he5", ".nxs", ".ims"),
        lambda place: Hdf5Source(place.path, place.label, place.part),
        parts=True,
    ),
    ReadFormat("MRC", (".mrc", ".mrcs", ".map", ".rec"), lambda place: MrcSource(place.path, place.label)),
    ReadFormat("NumPy array", (".npy",), lambda place: NpySource(place.path, place.label)),
    ZARR,
    N5,
)
FOLDERS = (
    ReadFormat("DICOM", (), lambda place: DicomSource(dicom_files(place.path), place.label, place.series)),
    ReadFormat(
        "folder of slices",
        (),
        lambda place: SliceFolderSource(slice_files(place.path, place.label), place.label),
    ),
)
"""Folders with one slice per file; the content of the folder tells the format."""


def find_read_format(place: Place) -> ReadFormat:
    """Return the format of a place: by content for an address and a folder, by suffix for a file.

    Raises:
        VolumeError: nothing is there, or its format is unknown.
    """
    if isinstance(place.location, str):
        return IN_CHUNKS[place.kind or _remote_kind(place)]
    path, label = place.path, place.label
    if path.is_dir():
        return _find_folder_format(path, label)
    if not path.exists():
        raise VolumeError(f"{label}: no such file or folder; check the path")
    if not path.is_file():
        raise VolumeError(f"{label}: is a pipe, a socket or a device; save its content as a file")
    name = path.name.lower()
    for file_format in READ_FORMATS:
        if name.endswith(file_format.suffixes):
            if file_format in (ZARR, N5):
                raise VolumeError(
                    f"{label}: is a file, and a {file_format.name} volume is a folder; name the folder"
                )
            return file_format
    if is_dicom(path):
        return DICOM  # which scanners and archives name in any way
    suffix = path.suffix.lower()
    known = [suffix for file_format in READ_FORMATS for suffix in file_format.suffixes]
    raise VolumeError(
        f"{label}: {f'cannot read {suffix!r} files' if suffix else 'has no suffix that names a format'}; "
        f"{did_you_mean(suffix, known)}"
    )


def _remote_kind(place: Place) -> str:
    """Return "zarr", "n5" or "precomputed": by the names in the address, else by the metadata that is there.

    Raises:
        VolumeError: the server cannot be reached.
    """
    named = _NAMED.findall(str(place.location))
    if named:
        return str(named[-1]).lower()
    files = ChunkFiles(place)
    for name, mark, kind in (
        (INFO, "scales", "precomputed"),
        (ATTRIBUTES, "dimensions", "n5"),
        (f"s0/{ATTRIBUTES}", "dimensions", "n5"),
    ):
        try:
            if mark in (read_json_object(files, name) or {}):
                return kind
        except VolumeError as error:
            # Anything but JSON, such as a page that says that nothing is there, is no metadata.
            if error.__cause__ is not None and not isinstance(error.__cause__, ValueError):
                raise
    return "zarr"


def _find_folder_format(path: Path, label: str) -> ReadFormat:
    if is_zarr(path):
        return ZARR
    if is_precomputed(path):
        return PRECOMPUTED
    if is_n5(path) or path.suffix.lower() == ".n5":
        return N5
    if dicom_files(path):
        return FOLDERS[0]
    if slice_files(path, label):
        return FOLDERS[1]
    if (path / INFO).is_file():
        return PRECOMPUTED  # and a damaged one
    folders = sorted(item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    inside = f"; it holds the folders {', '.join(folders[:6])}" if folders else ""
    raise VolumeError(
        f"{label}: is a folder without Zarr, N5 or precomputed metadata, DICOM files, or TIFF, PNG or JPEG slices; name a "
        f"volume file, or a folder that holds one{inside}"
    )


def open_source(place: Place) -> VoxelSource:
    """Open the stored array at a place.

    Raises:
        VolumeError: it cannot be opened.
        ConfigError: it has no such level, or no datasets to choose from.
    """
    label = place.label
    with reporting_read_errors(label, "a volume"):
        file_format = find_read_format(place)
    if place.level and not file_format.levels:
        raise ConfigError(
            f"{label}: a {file_format.name} file has only one resolution level; omit {option('level', place.level)}"
        )
    if place.part is not None and not file_format.parts:
        raise ConfigError(
            f"{label}: a {file_format.name} volume has no datasets inside; leave {place.part} out"
        )
    with reporting_read_errors(label, file_format.name):
        return file_format.open(place)
