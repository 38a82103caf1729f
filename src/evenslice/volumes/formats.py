"""The table of file formats. A new one is a module with a ``Source`` and a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice.errors import ConfigError, VolumeError, nearest
from evenslice.volumes.nifti import NiftiSource
from evenslice.volumes.npy import NpySource
from evenslice.volumes.source import Source, reading
from evenslice.volumes.tiff import TiffSource
from evenslice.volumes.zarr import ZarrSource, is_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["FORMATS", "Format", "find_format", "open_source"]


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: how messages call it.
        suffixes: endings of file names, in lower case.
        open: makes the source of a path, given its label and resolution level.
        levels: whether it stores several resolution levels to choose from.
    """

    name: str
    suffixes: tuple[str, ...]
    open: Callable[[Path, str, int], Source]
    levels: bool = False


ZARR = Format(
    "Zarr", (".zarr",), ZarrSource, levels=True
)  # any folder with Zarr metadata, whatever its suffix
FORMATS = (
    Format("TIFF", (".tif", ".tiff", ".btf", ".tf8"), lambda path, label, _: TiffSource(path, label)),
    Format("NIfTI", (".nii", ".nii.gz"), lambda path, label, _: NiftiSource(path, label)),
    Format("NumPy array", (".npy",), lambda path, label, _: NpySource(path, label)),
    ZARR,
)


def find_format(path: Path, label: str) -> Format:
    """Return the format of what lies at a path: a folder is Zarr, a file is what its suffix says.

    Raises:
        VolumeError: there is nothing, or nothing of a known format.
    """
    if path.is_dir():
        if is_zarr(path):
            return ZARR
        raise VolumeError(f"{label}: is a folder without Zarr metadata; name a volume file or a Zarr folder")
    if not path.exists():
        raise VolumeError(f"{label}: no such file or folder; check the path")
    name = path.name.lower()
    for file_format in FORMATS:
        if name.endswith(file_format.suffixes):
            if file_format is ZARR:
                raise VolumeError(f"{label}: is a file, and a Zarr volume is a folder; name the folder")
            return file_format
    suffix = path.suffix.lower()
    known = [suffix for file_format in FORMATS for suffix in file_format.suffixes]
    raise VolumeError(
        f"{label}: {f'the suffix {suffix!r} is none' if suffix else 'has no suffix'} that evenslice reads; {nearest(suffix, known)}"
    )


def open_source(path: Path, label: str, level: int) -> Source:
    """Open what lies at a path.

    Args:
        path: where it lies.
        label: the path as the user wrote it, for messages.
        level: the resolution level, 0 the finest.

    Raises:
        VolumeError: it cannot be opened.
        ConfigError: it has no such level.
    """
    with reading(label, "a volume"):
        file_format = find_format(path, label)
    if level and not file_format.levels:
        raise ConfigError(
            f"{label}: a {file_format.name} file has one resolution level, not a level {level}; leave it out"
        )
    with reading(label, file_format.name):
        return file_format.open(path, label, level)
