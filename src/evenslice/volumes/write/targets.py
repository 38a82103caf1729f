"""Where a volume is to be written, and whether it may be."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, OutputError, needs_extra, option, writing
from evenslice.volumes.write.formats import HDF5, ZARR, Format, find_format
from evenslice.volumes.write.hdf5 import datasets_in
from evenslice.volumes.write.remote import check_remote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evenslice.volumes.volume import Volume

__all__ = ["Target", "check_free", "check_inputs", "find_target", "is_remote"]

_DATASET = re.compile(rf"(.+(?:{'|'.join(map(re.escape, HDF5.suffixes))})):(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """What the user named.

    Attributes:
        label: as the user wrote it, for messages.
        format: what its suffix says.
        location: the absolute path, or the address (URL) of what is not on this machine.
        dataset: the path of the dataset in an HDF5 file, or None if the user named none.
    """

    label: str
    format: Format
    location: Path | str
    dataset: str | None = None


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether an output is an address such as ``s3://bucket/labels.ome.zarr``, not a path.

    Example:
        >>> is_remote("s3://bucket/labels.ome.zarr"), is_remote("labels.ome.zarr")
        (True, False)
    """
    return "://" in os.fspath(path)


def find_target(path: str | os.PathLike[str]) -> Target:
    """Read an output's path.

    Raises:
        OutputError: its suffix is none that is written, or it cannot be the name of a file.
        ConfigError: it is no path.

    Example:
        >>> find_target("cells.h5:/nuclei/labels").dataset
        '/nuclei/labels'
    """
    try:
        label = os.fspath(path)
    except TypeError:
        raise ConfigError(f"an output is a path, not {type(path).__name__}") from None
    if not label.strip("/"):
        raise OutputError(f"{label!r}: is no name for a file; name one, as labels.ome.zarr")
    if is_remote(label):
        return _find_remote(label)
    inside = _DATASET.fullmatch(label)
    dataset = None
    if inside:
        label, parts = inside[1], [part for part in inside[2].split("/") if part]
        if not parts or {".", ".."} & set(parts):
            raise OutputError(f"{path}: names no dataset; name one, as {label}:/labels")
        dataset = "/" + "/".join(parts)
    name = Path(label).name
    return Target(os.fspath(path), find_format(name, os.fspath(path)), Path(label).absolute(), dataset)


def _find_remote(label: str) -> Target:
    protocol, _, rest = label.partition("://")
    if "@" in rest.partition("/")[0] or set("?#") & set(rest):
        raise OutputError(
            f"{protocol}://…: the address holds a password, a query or a fragment, which results would show; "
            "give credentials in the environment"
        )
    location = label.rstrip("/")
    file_format = find_format(location.rpartition("/")[2], label)
    if file_format is not ZARR:
        raise OutputError(
            f"{label}: {file_format.name} is written to files only; give an address the suffix .ome.zarr"
        )
    return Target(label, file_format, location)


def check_inputs(target: Target, volumes: Iterable[Volume]) -> None:
    """Check that writing would not touch what is read.

    Raises:
        OutputError: the target is a volume that is read, lies inside one, or one lies inside it.
    """
    for volume in volumes:
        if volume.location is None:
            continue
        relation = _relation(target.location, volume.location)
        if relation:
            raise OutputError(f"{target.label}: {relation} {volume.path}, which is read; choose another name")


def _relation(target: Path | str, source: Path | str) -> str | None:
    """Word how a target touches a source; None if it does not."""
    if isinstance(target, str) or isinstance(source, str):
        there, here = f"{str(target).rstrip('/')}/", f"{str(source).rstrip('/')}/"
    else:
        there, here = f"{target.resolve()}{os.sep}", f"{source.resolve()}{os.sep}"
        if target.exists() and source.exists() and target.samefile(source):
            return "is"
    if there == here:
        return "is"
    if there.startswith(here):
        return "lies inside"
    return "holds" if here.startswith(there) else None


def check_free(target: Target, *, force: bool) -> None:
    """Check that the target can be written.

    Raises:
        OutputError: something stands there and may not be replaced, or it is no place to write to.
        MissingExtraError: a package that it takes is not installed.
    """
    with needs_extra("volumes", f"writing {target.format.name}"):
        for package in target.format.packages:
            importlib.import_module(package)
    if isinstance(target.location, str):
        check_remote(target.location, target.label)
        return
    with writing(target.label):
        if target.location.exists() or target.location.is_symlink():
            _check_replaceable(target, target.location, force=force)
        parent = next(folder for folder in target.location.parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"{target.label}: {parent} is no folder where you may write; choose another place"
            )


def _check_replaceable(target: Target, path: Path, *, force: bool) -> None:
    """Raise unless what stands under the name is one volume, which the user wants replaced."""
    if path.is_dir() and target.format is not ZARR:
        raise OutputError(f"{target.label}: is a folder; name a file")
    if path.is_file() and target.format is ZARR:
        raise OutputError(
            f"{target.label}: is a file, and an OME-Zarr volume is a folder; choose another name"
        )
    if not force:
        raise OutputError(
            f"{target.label}: exists; choose another name, or replace it with {option('force')}"
        )
    if target.format is ZARR:
        _check_zarr(target.label, path)
    elif target.format is HDF5:
        held = datasets_in(path)
        others = [name for name in held if name != (target.dataset or held[0])]
        if others:
            raise OutputError(
                f"{target.label}: the file holds {others[0]} too, which replacing it would lose; choose another file"
            )


def _check_zarr(label: str, path: Path) -> None:
    """Raise unless a folder holds an array, or a group of arrays such as one OME-Zarr image."""
    import zarr

    try:
        node = zarr.open(str(path), mode="r")
        groups = [] if isinstance(node, zarr.Array) else list(node.group_keys())
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(f"{label}: is a folder that is no Zarr volume; choose another name") from None
    if groups:
        raise OutputError(
            f"{label}: holds {groups[0]} too, which replacing it would lose; choose another name"
        )
