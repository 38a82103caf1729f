"""Where to write a volume, and whether that is allowed."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import OutputError, needs_extra, option, path_text, reporting_write_errors
from evenslice.volumes.read.location import is_address, refuse_secret
from evenslice.volumes.write.formats import HDF5, ZARR, WriteFormat, find_write_format
from evenslice.volumes.write.hdf5 import beside_volume
from evenslice.volumes.write.remote import check_remote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from evenslice.volumes.volume import Volume

__all__ = ["Destination", "check_free", "check_inputs", "output_location", "parse_destination"]

_DATASET = re.compile(rf"(.+(?:{'|'.join(map(re.escape, HDF5.suffixes))})):(.*)", re.IGNORECASE)
_ZARR_FILES = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata", ".DS_Store"}
_CHUNK = re.compile(r"c|[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class Destination:
    """Where to write a volume.

    Attributes:
        label: as the user wrote it, for messages.
        format: the format of its suffix.
        location: the absolute path, or the address (URL).
        dataset: the path of the dataset in an HDF5 file, or None if the user named none.
    """

    label: str
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
    label = path_text(path, "an output")
    if not label.strip("/"):
        raise OutputError(f"{label!r}: is not a file name; name a file, such as labels.ome.zarr")
    if is_address(label):
        return _parse_address(label)
    inside = _DATASET.fullmatch(label)
    dataset = None
    if inside:
        label, parts = inside[1], [part for part in inside[2].split("/") if part]
        if not parts or {".", ".."} & set(parts):
            raise OutputError(f"{path}: names no dataset; name one, such as {label}:/labels")
        dataset = "/" + "/".join(parts)
        try:
            dataset.encode()
        except UnicodeEncodeError:
            raise OutputError(f"{path}: the name of its dataset is not UTF-8; choose another") from None
    name = Path(label).name
    return Destination(
        os.fspath(path), find_write_format(name, os.fspath(path)), Path(label).absolute(), dataset
    )


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


def _parse_address(label: str) -> Destination:
    refuse_secret(label, OutputError)
    location = label.rstrip("/")
    file_format = find_write_format(location.rpartition("/")[2], label)
    if file_format is not ZARR:
        raise OutputError(
            f"{label}: {file_format.name} can only be written to files; use the suffix .ome.zarr for an address"
        )
    return Destination(label, file_format, location)


def check_inputs(destination: Destination, volumes: Iterable[Volume]) -> None:
    """Check that writing would not affect the inputs.

    Raises:
        OutputError: the destination is an input, is inside one, or contains one.
    """
    for volume in volumes:
        for place, name in _places(volume):
            if relation := _relation(destination.location, place):
                if destination.dataset and relation == "is" and name != destination.label:
                    relation = "would replace the file of"
                raise OutputError(
                    f"{destination.label}: {relation} {name}, which is read; choose another name"
                )


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


def check_free(destination: Destination, *, force: bool) -> None:
    """Check that the destination can be written.

    Raises:
        OutputError: it exists and may not be replaced, or its folder is not writable.
        MissingExtraError: a required package is not installed.
    """
    with needs_extra("volumes", f"writing {destination.format.name}"):
        for package in destination.format.packages:
            importlib.import_module(package)
    if isinstance(destination.location, str):
        check_remote(destination.location, destination.label, force=force)
        return
    with reporting_write_errors(destination.label):
        if destination.location.exists() or destination.location.is_symlink():
            _check_replaceable(destination, destination.location, force=force)
        parent = next(folder for folder in destination.location.parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"{destination.label}: {parent} is not a writable folder; choose another place")


def _check_replaceable(destination: Destination, path: Path, *, force: bool) -> None:
    """Raise unless the existing file or folder is a single volume, and ``force`` is given."""
    if path.is_dir() and destination.format is not ZARR:
        raise OutputError(f"{destination.label}: is a folder; name a file")
    if path.is_file() and destination.format is ZARR:
        raise OutputError(
            f"{destination.label}: is a file, but an OME-Zarr volume is a folder; choose another name"
        )
    if not force:
        raise OutputError(
            f"{destination.label}: exists; choose another name, or replace it with {option('force')}"
        )
    if destination.format is ZARR:
        _check_zarr(destination.label, path)
    elif destination.format is HDF5:
        other = beside_volume(path, destination.dataset)
        if other is not None:
            raise OutputError(
                f"{destination.label}: the file also contains {other}, which would be lost; choose another file"
            )


def _check_zarr(label: str, path: Path) -> None:
    """Raise unless a folder is one array, or one OME-Zarr image, and holds nothing else."""
    import zarr

    try:
        node = zarr.open(str(path), mode="r")
        levels = [] if isinstance(node, zarr.Array) else _levels(node)
        inside = [] if isinstance(node, zarr.Array) else [node[level] for level in levels]
        noted = list(_foreign_attributes(node, inside))
    except Exception as error:  # whatever zarr makes of metadata that may hold anything
        raise OutputError(f"{label}: is a folder but not a Zarr volume; choose another name") from error
    arrays = [path] if isinstance(node, zarr.Array) else [path / level for level in levels]
    found = (item.relative_to(path).as_posix() for item in _strangers(path, set(levels), arrays))
    if lost := [*found, *noted]:
        raise OutputError(f"{label}: also contains {lost[0]}, which would be lost; choose another name")


def _levels(group: Any) -> list[str]:
    """Return the names of the arrays of an OME-Zarr image; there are none in another group."""
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") or [] if isinstance(ome, dict) else []
    names = [str(dataset["path"]) for image in images for dataset in image["datasets"]]
    return [name for name in names if name in group and not hasattr(group[name], "group_keys")]


def _foreign_attributes(node: Any, levels: Iterable[Any]) -> Iterator[str]:
    """Yield the attributes of an array, or of an image and its levels, that do not say how voxels lie."""
    for array in (node, *levels):
        attributes = dict(array.attrs)
        ome = attributes.get("ome")
        if isinstance(ome, dict):  # of an image since version 0.5, of whose labels we write an empty entry
            known = {"version", "multiscales"} | ({"image-label"} if not ome.get("image-label") else set())
            attributes |= {f"ome/{name}": value for name, value in ome.items() if name not in known}
            del attributes["ome"]
        at = f" of {array.path}" if array.path else ""
        yield from (
            f"the attribute {name}{at}"
            for name in attributes
            if name not in {"multiscales", "_ARRAY_DIMENSIONS"}
        )


def _strangers(root: Path, levels: set[str], arrays: list[Path]) -> Iterator[Path]:
    """Yield what is neither metadata, nor a level, nor a chunk."""
    for folder in dict.fromkeys((root, *arrays)):
        for item in folder.iterdir():
            known = item.name in _ZARR_FILES or (folder == root and item.name in levels)
            if not known and not (folder in arrays and _CHUNK.fullmatch(item.name)):
                yield item
