"""The table of formats that can be written, and where a volume may be written. A new format needs a function and a row here."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import (
    OutputError,
    did_you_mean,
    needs_extra,
    option,
    path_text,
    reporting_write_errors,
)
from evenslice.volumes.read.source import is_address, refuse_secret
from evenslice.volumes.write.hdf5 import beside_dataset, write_hdf5
from evenslice.volumes.write.medical import write_mha, write_nifti, write_nrrd
from evenslice.volumes.write.tiff import unfit_for_tiff, write_tiff
from evenslice.volumes.write.zarr import check_remote, write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from evenslice.volumes.volume import Volume
    from evenslice.volumes.write.image import Image


@dataclass(frozen=True)
class WriteFormat:
    """A file format that can be written.

    Attributes:
        name: its name in messages.
        suffixes: suffixes of file names, in lower case.
        packages: required packages, all of the extra ``volumes``.
        write: writes an image to a path.
        wider: data types that the format lacks, and its smallest type that holds all their values.
        unfit: returns why the format cannot hold an image; None if it can.
    """

    name: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[Path, Image], None]
    wider: dict[str, str]
    unfit: Callable[[Image], str | None] = lambda _: None

    def stored(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the little-endian data type in which voxels are stored without loss."""
        return np.dtype(self.wider.get(dtype.name, dtype.name)).newbyteorder("<")


def write_npy(path: Path, image: Image) -> None:
    """Write the voxels; the format cannot store their spacing.

    They are appended to the header, not written to a memory map, because a full disk kills a process that does that.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(image.dtype),
        "fortran_order": False,
        "shape": image.shape,
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, _, voxels in image.slabs():
            file.write(voxels.data)


_NO_BOOL = {"bool": "uint8"}
_NO_HALF = {"bool": "uint8", "float16": "float32"}
_TIFF = (".tif", ".tiff", ".btf", ".tf8")

HDF5 = WriteFormat("HDF5", (".h5", ".hdf5", ".hdf"), ("h5py",), write_hdf5, _NO_BOOL)
ZARR = WriteFormat("OME-Zarr", (".zarr",), ("zarr",), write_zarr, _NO_BOOL)
WRITE_FORMATS = (
    WriteFormat("TIFF", _TIFF, ("tifffile", "imagecodecs"), write_tiff, _NO_HALF, unfit_for_tiff),
    WriteFormat("NIfTI", (".nii", ".nii.gz"), ("nibabel",), write_nifti, _NO_HALF),
    ZARR,
    HDF5,
    WriteFormat("MetaImage", (".mha",), (), write_mha, _NO_HALF),
    WriteFormat("NRRD", (".nrrd",), (), write_nrrd, _NO_HALF),
    WriteFormat("NumPy array", (".npy",), (), write_npy, {}),
)

_DATASET = re.compile(rf"(.+(?:{'|'.join(map(re.escape, HDF5.suffixes))})):(.*)", re.IGNORECASE)
_ZARR_FILES = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata", ".DS_Store"}
_OF_IMAGES = {"ome", "version", "multiscales", "image-label", "_ARRAY_DIMENSIONS"}
_CHUNK = re.compile(r"c|[0-9]+(\.[0-9]+)*")


def find_write_format(path: str) -> WriteFormat:
    """Return the format of a file name, by its suffix.

    Raises:
        OutputError: the suffix is unknown.

    Example:
        >>> find_write_format("out/labels.ome.zarr").name
        'OME-Zarr'
    """
    name = path.rstrip("/").rpartition("/")[2]
    for file_format in WRITE_FORMATS:
        if name.lower().endswith(file_format.suffixes):
            return file_format
    suffix = f".{name.rpartition('.')[2]}" if "." in name.lstrip(".") else ""
    known = [suffix for file_format in WRITE_FORMATS for suffix in file_format.suffixes]
    raise OutputError(
        f"{path}: {f'cannot write {suffix!r} files' if suffix else 'has no suffix that names a format'}; "
        f"{did_you_mean(suffix, known)}"
    )


@dataclass(frozen=True)
class Destination:
    """Where to write a volume.

    Attributes:
        path: as the user wrote it.
        format: the format of its suffix.
        location: the absolute path, or the address (URL).
        dataset: the path of the dataset in an HDF5 file, or None if the user named none.
    """

    path: str
    format: WriteFormat
    location: Path | str
    dataset: str | None = None


def parse_destination(path: str | os.PathLike[str]) -> Destination:
    """Parse the path or address of an output.

    Raises:
        OutputError: its suffix is unknown, or it cannot be the name of a file.
        ConfigError: it is not a path.

    Example:
        >>> parse_destination("cells.h5:/nuclei/labels").dataset
        '/nuclei/labels'
    """
    text = path_text(path, "an output")
    if not text.strip("/"):
        raise OutputError(f"{text!r}: is not a file name; name a file, such as labels.ome.zarr")
    if is_address(text):
        refuse_secret(text, OutputError)
        file_format = find_write_format(text)
        if file_format is not ZARR:
            raise OutputError(f"{text}: {file_format.name} is written to files only; choose .ome.zarr")
        return Destination(text, file_format, text.rstrip("/"))
    file, dataset = text, None
    if inside := _DATASET.fullmatch(text):
        file, parts = inside[1], [part for part in inside[2].split("/") if part]
        if not parts or {".", ".."} & set(parts) or not inside[2].isprintable():
            raise OutputError(f"{text}: names no dataset; name one, such as {file}:/labels")
        dataset = "/" + "/".join(parts)
    return Destination(text, find_write_format(file), Path(file).absolute(), dataset)


def output_location(path: str | os.PathLike[str]) -> Path | str:
    """Return the absolute path of the file or folder of an output, or its address.

    Raises:
        OutputError: its suffix is unknown, or it cannot be the name of a file.
        ConfigError: it is not a path.

    Example:
        >>> output_location("s3://bucket/labels.ome.zarr/")
        's3://bucket/labels.ome.zarr'
    """
    return parse_destination(path).location


def checked_destination(
    path: str | os.PathLike[str], inputs: Iterable[Volume], *, force: bool
) -> Destination:
    """Return where to write a volume, after checking that it can be written there without affecting the inputs.

    Raises:
        OutputError: the destination is an input, is inside one, or contains one; it exists and may not be replaced, or
            its folder is not writable; or see ``parse_destination``.
        MissingExtraError: a required package is not installed.
    """
    destination = parse_destination(path)
    for volume in inputs:
        for place, name in _places(volume):
            if relation := _relation(destination.location, place):
                if destination.dataset and relation == "is" and name != destination.path:
                    relation = "would replace the file of"
                told = f"{relation} {name}, which is read"
                raise OutputError(f"{destination.path}: {told}; choose another name")
    _check_free(destination, force=force)
    return destination


def _places(volume: Volume) -> Iterator[tuple[Path | str, str]]:
    """Yield where a volume is, and the other files that a file of it refers to, each with its name for messages."""
    if volume.location is None:
        return
    yield volume.location, volume.path
    if isinstance(volume.location, Path) and not volume.location.is_dir():
        yield from ((file, str(file)) for file in volume.files or ())


def _relation(destination: Path | str, source: Path | str) -> str | None:
    """Describe how a destination overlaps a source; None if it does not."""
    if isinstance(destination, str) or isinstance(source, str):
        there, here = f"{str(destination).rstrip('/')}/", f"{str(source).rstrip('/')}/"
    else:
        there, here = f"{destination.resolve()}{os.sep}", f"{source.resolve()}{os.sep}"
        if destination.exists() and source.exists() and destination.samefile(source):
            return "is"
    if there == here:
        return "is"
    if there.startswith(here):
        return "is inside"
    return "contains" if here.startswith(there) else None


def _check_free(destination: Destination, *, force: bool) -> None:
    with needs_extra("volumes", f"writing {destination.format.name}"):
        for package in destination.format.packages:
            importlib.import_module(package)
    if isinstance(destination.location, str):
        check_remote(destination.location, destination.path, force=force)
        return
    with reporting_write_errors(destination.path):
        if destination.location.exists() or destination.location.is_symlink():
            _check_replaceable(destination, destination.location, force=force)
        parent = next(folder for folder in destination.location.parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"{destination.path}: {parent} is not a writable folder; choose another place")


def _check_replaceable(destination: Destination, path: Path, *, force: bool) -> None:
    """Raise unless the existing file or folder is a single volume, and ``force`` is given."""
    if path.is_dir() and destination.format is not ZARR:
        raise OutputError(f"{destination.path}: is a folder; name a file")
    if path.is_file() and destination.format is ZARR:
        raise OutputError(f"{destination.path}: is a file, but an OME-Zarr volume is a folder")
    if not force:
        told = f"exists; choose another name, or replace it with {option('force')}"
        raise OutputError(f"{destination.path}: {told}")
    other = None
    if destination.format is ZARR:
        other = _beside_image(path, destination.path)
    elif destination.format is HDF5:
        other = beside_dataset(path, destination.dataset)
    if other is not None:
        raise OutputError(f"{destination.path}: also contains {other}, which would be lost")


def _beside_image(folder: Path, path: str) -> str | None:
    """Return what a folder holds beside one array, or one OME-Zarr image; None if that is nothing."""
    import zarr

    try:
        node: Any = zarr.open(str(folder), mode="r")
        levels = [] if isinstance(node, zarr.Array) else _levels(node)
        attributes = [dict(item.attrs) for item in (node, *(node[level] for level in levels))]
        noted = {name for own in attributes for name in {**own, **own.get("ome", {})}} - _OF_IMAGES
    except Exception as error:  # whatever zarr makes of metadata that may hold anything
        raise OutputError(f"{path}: is a folder but not a Zarr volume; choose another name") from error
    if noted:
        return f"the attribute {min(noted)}"
    arrays = [folder] if isinstance(node, zarr.Array) else [folder / level for level in levels]
    for place in dict.fromkeys((folder, *arrays)):
        for item in place.iterdir():
            chunk = place in arrays and _CHUNK.fullmatch(item.name)
            if not (chunk or item in arrays or item.name in _ZARR_FILES):
                return item.relative_to(folder).as_posix()
    return None


def _levels(group: Any) -> list[str]:
    """Return the names of the arrays of an OME-Zarr image; there are none in another group."""
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") or [] if isinstance(ome, dict) else []
    names = [str(dataset["path"]) for image in images for dataset in image["datasets"]]
    return [name for name in names if name in group and not hasattr(group[name], "group_keys")]
