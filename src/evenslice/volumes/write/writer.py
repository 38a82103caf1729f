"""Writing volumes: labels, probabilities or intensities, in the format of the suffix.

    write_volume(labels, "labels.ome.zarr", like=volume)
    write_volume([background, cells], "probabilities.nii.gz", like=volume)      channels

A volume is read and written slab by slab, so it may be larger than memory. A file or folder is written beside its final
name and renamed at the end. ``WRITE_FORMATS`` is the table of formats, to which a new one adds a function and a row:

| suffix | one volume | channels | stored metadata |
| --- | --- | --- | --- |
| .tif .tiff .btf .tf8 | pages z (ImageJ; OME where needed) | pages z, then channel | spacing, unit |
| .nii .nii.gz | (x, y, z) | (x, y, z, channel), read as axis t | spacing, unit, affine |
| .ome.zarr .zarr | (z, y, x) with resolution levels | (channel, z, y, x) | spacing, unit |
| .h5 .hdf5 .hdf | file.h5:/dataset (z, y, x) | (channel, z, y, x) | spacing where its unit is known |
| .mha .nrrd | (x, y, z) | components of each voxel | spacing in mm, affine |
| .npy | (z, y, x) | (channel, z, y, x) | nothing |

Values are stored without loss: where a format lacks them, booleans as 0 and 1, and half precision as single.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    OutputError,
    local_path,
    needs_extra,
    option,
    read_bounded,
    reporting_write_errors,
    staged_file,
)
from evenslice.volumes.read.source import locate
from evenslice.volumes.volume import Volume
from evenslice.volumes.write import files
from evenslice.volumes.write.files import Image, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True)
class WriteFormat:
    """A file format that can be written.

    Attributes:
        name: its name in messages.
        suffixes: suffixes of file names, in lower case.
        packages: required packages, all of the extra ``volumes``.
        write: writes an image to a path.
        wider: data types that the format lacks, and its smallest type that holds all their values.
    """

    name: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[Path, Image], None]
    wider: dict[str, str]

    def stored(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the little-endian data type in which voxels are stored without loss."""
        return np.dtype(self.wider.get(dtype.name, dtype.name)).newbyteorder("<")


_NO_BOOL = {"bool": "uint8"}
_NO_HALF = {"bool": "uint8", "float16": "float32"}
_TIFF = (".tif", ".tiff", ".btf", ".tf8")

HDF5 = WriteFormat("HDF5", (".h5", ".hdf5", ".hdf"), ("h5py",), files.write_hdf5, _NO_BOOL)
ZARR = WriteFormat("OME-Zarr", (".zarr",), ("zarr",), files.write_zarr, _NO_BOOL)
WRITE_FORMATS = (
    WriteFormat("TIFF", _TIFF, ("tifffile", "imagecodecs"), files.write_tiff, _NO_HALF),
    WriteFormat("NIfTI", (".nii", ".nii.gz"), ("nibabel",), files.write_nifti, _NO_HALF),
    ZARR,
    HDF5,
    WriteFormat("MetaImage", (".mha",), (), files.write_mha, _NO_HALF),
    WriteFormat("NRRD", (".nrrd",), (), files.write_nrrd, _NO_HALF),
    WriteFormat("NumPy array", (".npy",), (), files.write_npy, {}),
)

_LARGEST_METADATA = 2**20  # bytes of a file

_OF_VOXELS = {"element_size_um", "DIMENSION_LABELS", "axistags"}
"""Attributes of a dataset in an HDF5 file that say how its voxels lie."""

_OF_IMAGES = {"ome", "version", "multiscales", "image-label", "_ARRAY_DIMENSIONS"}
"""Attributes that make an OME-Zarr image."""

_OF_ZARR = re.compile(r"zarr\.json|c(/\d+)?|\d+(/(zarr\.json|c))?|\.DS_Store")
"""What is in the folder of one, down to the second level."""


def write_volume(
    volume: Volume | Sequence[Volume],
    path: str | os.PathLike[str],
    *,
    like: Volume | None = None,
    labels: bool | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a volume, or several of one shape and data type as the channels of one image, such as class probabilities.

    Args:
        volume: the volume, or the channels.
        path: the output; its suffix determines the format. ``file.h5:/path`` names the dataset in an HDF5 file, by
            default ``/labels`` or ``/volume``.
        like: the volume from which to take spacing, unit and affine; by default ``volume``, or the first channel.
        labels: whether voxels are class numbers, which are never averaged; by default true for integers and booleans
            that are no channels.
        force: replace an existing volume; a file or folder that contains anything else is never replaced.
        progress: called with the number of voxels written so far and in total, including resolution levels.

    Raises:
        VolumeError: the volume cannot be read.
        OutputError: the suffix is unknown, the output exists and may not be replaced, it overlaps an input, or it
            cannot be written; then nothing is left there.
        ConfigError: ``like`` has another shape, channels differ in shape or data type, or there is none.
        MissingExtraError: a package that writes the format is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), spacing=(50, 4, 4), unit="nm")
        >>> folder = tempfile.mkdtemp()
        >>> write_volume(volume, f"{folder}/labels.ome.zarr")
        >>> again = open_volume(f"{folder}/labels.ome.zarr")
        >>> again.spacing, again.unit, again[1, 2].tolist()
        ((50.0, 4.0, 4.0), 'nm', [20, 21, 22, 23])
        >>> write_volume([volume, again], f"{folder}/channels.ome.zarr")
        >>> open_volume(f"{folder}/channels.ome.zarr", select={"c": 1})[0, 0].tolist()
        [0, 1, 2, 3]
    """
    channels = (volume,) if isinstance(volume, Volume) else tuple(volume)
    if not channels or not all(isinstance(channel, Volume) for channel in channels):
        raise ConfigError(f"{path}: write an opened volume, or a list of them as channels")
    first, model = channels[0], like or channels[0]
    if model.shape != first.shape:
        raise ConfigError(f"{path}: its shape is {first.shape} and that of {model.path} {model.shape}")
    kinds = {f"{channel.dtype} of shape {channel.shape}" for channel in channels}
    if len(kinds) > 1:
        raise ConfigError(f"{path}: channels have to be alike, and are {' and '.join(sorted(kinds))}")
    destination = Destination.of(path)
    destination.check(*channels, model, force=force)
    stacked = not isinstance(volume, Volume)
    if labels is None:
        labels = first.dtype.kind in "biu" and not stacked
    image = Image(
        channels=channels,
        stacked=stacked,
        labels=labels,
        dtype=destination.format.stored(first.dtype),
        like=model,
        tally=Tally(len(channels) * model.size, progress),
        dataset=destination.dataset or ("/labels" if labels else "/volume"),
    )
    with (
        reporting_write_errors(destination.path),
        staged_file(destination.location, force=force, folder=destination.format is ZARR) as beside,
    ):
        destination.format.write(beside, image)


@dataclass(frozen=True)
class Destination:
    """Where to write a volume.

    Attributes:
        path: as the user wrote it.
        format: the format of its suffix.
        location: the absolute path.
        dataset: the path of the dataset in an HDF5 file, or None if the user named none.

    Example:
        >>> Destination.of("cells.h5:/labels").dataset
        '/labels'
        >>> Destination.of("labels.tof")
        Traceback (most recent call last):
        ...
        evenslice.OutputError: labels.tof: has no suffix of a format; use one of .tif, .tiff, ...
    """

    path: str
    format: WriteFormat
    location: Path
    dataset: str | None = None

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Destination:
        """Return the destination that a path names.

        Raises:
            OutputError: its suffix is unknown, or it cannot be the name of a file.
            ConfigError: it is not a path.
        """
        text = str(local_path(path))
        place = locate(text)
        inside = (place.part or "/labels").removeprefix("/")
        if {"", ".", ".."} & set(inside.split("/")) or not inside.isprintable():
            raise OutputError(f"{text}: names no dataset; name one, such as {place.path.name}:/labels")
        return cls(text, _find_format(text, place.path.name), place.path, place.part)

    def check(self, *inputs: Volume, force: bool = False) -> None:
        """Check before long work that a volume can be written here, without affecting the inputs.

        Raises as ``write_volume`` would, but for what only shows later, such as a full disk.

        Args:
            inputs: the volumes that are read for it.
            force: whether an existing volume will be replaced.

        Raises:
            OutputError: the destination is an input, is inside one, or contains one; it exists and may not be replaced, or
                its folder is not writable.
            MissingExtraError: a required package is not installed.
        """
        for volume in inputs:
            for place, name in _own_files(volume):
                if _overlap(self.location, place):
                    raise OutputError(
                        f"{self.path}: is or overlaps {name}, which is read; choose another name"
                    )
        with needs_extra("volumes", f"writing {self.format.name}"):
            for package in self.format.packages:
                importlib.import_module(package)
        with reporting_write_errors(self.path):
            if self.location.exists() or self.location.is_symlink():
                _check_replaceable(self, force=force)
            parent = next(folder for folder in self.location.parents if folder.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise OutputError(f"{self.path}: {parent} is not a writable folder; choose another place")


def _find_format(path: str, name: str) -> WriteFormat:
    """Return the format of a file name, by its suffix.

    Raises:
        OutputError: the suffix is unknown.
    """
    known = {suffix: file_format for file_format in WRITE_FORMATS for suffix in file_format.suffixes}
    for suffix, file_format in known.items():
        if name.lower().endswith(suffix):
            return file_format
    raise OutputError(f"{path}: has no suffix of a format; use one of {', '.join(known)}")


def _own_files(volume: Volume) -> Iterator[tuple[Path, str]]:
    """Yield where a volume is, and the other files that a file of it refers to, each with its name for messages."""
    if not isinstance(volume.location, Path):
        return
    yield volume.location, volume.path
    if not volume.location.is_dir():
        yield from ((file, str(file)) for file in volume.files or ())


def _overlap(one: Path, other: Path) -> bool:
    """Return whether two paths are the same, or one is inside the other."""
    if one.exists() and other.exists() and one.samefile(other):
        return True
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def _check_replaceable(destination: Destination, *, force: bool) -> None:
    """Raise unless the existing file or folder is a single volume, and ``force`` is given."""
    path, place, other = destination.path, destination.location, None
    if place.is_dir() and destination.format is not ZARR:
        raise OutputError(f"{path}: is a folder; name a file")
    if place.is_file() and destination.format is ZARR:
        raise OutputError(f"{path}: is a file, but an OME-Zarr volume is a folder")
    if not force:
        raise OutputError(f"{path}: exists; choose another name, or replace it with {option('force')}")
    if destination.format is ZARR:
        other = _beside_image(place, path)
    elif destination.format is HDF5:
        other = _beside_dataset(place, destination.dataset)
    if other is not None:
        raise OutputError(f"{path}: also contains {other}, which would be lost")


def _beside_image(folder: Path, path: str) -> str | None:
    """Return what a folder holds beside one array, or one OME-Zarr image; None if that is nothing."""
    try:
        metadata = [folder / "zarr.json", *folder.glob("*/zarr.json")]
        documents = [json.loads(read_bounded(file, _LARGEST_METADATA)) for file in metadata]
        owns = [document["zarr_format"] and document.get("attributes", {}) for document in documents]
        noted = {name for own in owns for name in (*own, *own.get("ome", {}))} - _OF_IMAGES
    except UNREADABLE as error:
        raise OutputError(f"{path}: is a folder but not a Zarr volume; choose another name") from error
    if noted:
        return f"the attribute {min(noted)}"
    items = (item.relative_to(folder).as_posix() for item in (*folder.glob("*"), *folder.glob("*/*")))
    return next((item for item in items if not _OF_ZARR.fullmatch(item)), None)


def _beside_dataset(path: Path, dataset: str | None) -> str | None:
    """Return what a file holds beside one dataset, or the first one; None if that is nothing."""
    import h5py

    links: dict[str, Any] = {"/": h5py.HardLink()}
    try:
        with h5py.File(path, "r") as file:
            file.visititems_links(lambda name, link: links.update({f"/{name}": link}))
            real = [name for name, link in links.items() if isinstance(link, h5py.HardLink)]
            dataset = dataset or next((name for name in real if isinstance(file[name], h5py.Dataset)), "/")
            kept = {dataset, *map(str, PurePosixPath(dataset).parents)}
            others = [name for name in links if name not in kept]
            others += [f"attributes of {name}" for name in real if set(file[name].attrs) - _OF_VOXELS]
    except Exception as error:  # of damaged files h5py raises RuntimeError and SystemError, too
        raise OutputError(f"{path}: is not an HDF5 file and is not replaced; choose another name") from error
    return next(iter(others), None)
