"""Where a volume lies: a file, a folder, a data set inside a file, or an address on the web."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from evenslice._core import ConfigError, VolumeError

__all__ = ["Place", "confined", "data_file", "files_under", "is_address", "locate"]

PROTOCOLS = ("https", "s3", "http")
"""What an address may start with; fsspec knows more, among them some that chain to other files."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_CRUSHED = re.compile(r"(?:https?|s3):/[^/]")
_DATASET = re.compile(r"(.+\.(?:h5|hdf5|hdf|he5|nxs|ims)):(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """What the user named, and what of it is to be opened.

    Attributes:
        label: as the user wrote it, for messages.
        location: the absolute path of a file or folder, or the address (URL) of a Zarr folder.
        part: the path of a data set inside the file, as in ``file.h5:/path``, or None.
        level: the resolution level, 0 the finest.
        series: which series of a DICOM folder, or None if the user named none.
    """

    label: str
    location: Path | str
    part: str | None = None
    level: int = 0
    series: int | None = None

    @property
    def path(self) -> Path:
        """The location, where it is a file or folder."""
        if isinstance(self.location, str):
            raise VolumeError(f"{self.label}: is an address, and only Zarr is read from there; copy it here")
        return self.location


def is_address(path: str) -> bool:
    """Return whether a name is an address on the web, not that of a file.

    Example:
        >>> is_address("s3://bucket/cells.ome.zarr"), is_address("cells.ome.zarr")
        (True, False)
    """
    return _URL.match(path) is not None


def locate(path: str | os.PathLike[str], level: int = 0, series: int | None = None) -> Place:
    """Return where a volume lies whatever the working directory becomes.

    Args:
        path: a path, ``file.h5:/path/of/a/dataset``, or an address that starts with https:// or s3://.
        level: the resolution level, 0 the finest.
        series: which series of a DICOM folder.

    Raises:
        ConfigError: it is no path.
        VolumeError: it is empty, or an address of another kind or with a password in it.

    Example:
        >>> place = locate("cells.h5:/volume")
        >>> place.path.name, place.part
        ('cells.h5', '/volume')
    """
    try:
        label = os.fspath(path)
    except TypeError:
        raise ConfigError(f"a volume is a path or a NumPy array, not {type(path).__name__}") from None
    if not label:
        raise VolumeError("the path of the volume is empty; name a file or a Zarr folder")
    if _CRUSHED.match(label):
        raise ConfigError(f"{label}: an address lost a slash, as it does in a pathlib.Path; give it as text")
    if is_address(label):
        _check_address(label, label.partition("://")[0])
        return Place(label, label.rstrip("/"), level=level, series=series)
    inside = _DATASET.fullmatch(label)
    if inside and not Path(label).exists():
        return Place(label, Path(inside[1]).absolute(), f"/{inside[2].strip('/')}", level, series)
    return Place(label, Path(label).absolute(), level=level, series=series)


def _check_address(url: str, protocol: str) -> None:
    """Raise if an address is of a kind that is not read, or would put a secret into every result that names it."""
    rest = url.partition("://")[2]
    if "@" in rest.partition("/")[0] or set("?#") & set(rest):
        raise VolumeError(
            f"{protocol}://…: the address holds a password, a query or a fragment, which results would show; give credentials in the environment"
        )
    if protocol.lower() not in PROTOCOLS or "::" in url:
        raise VolumeError(
            f"{url}: addresses of this kind are not read; start it with {', '.join(f'{known}://' for known in PROTOCOLS)}, or name a file"
        )
    if ".." in rest.split("/") or not rest.strip("/"):
        raise VolumeError(f"{url}: is not the address of a Zarr folder; write it in full, without ..")


def confined(folder: Path, name: str, label: str) -> Path:
    """Return the path of a file that a header names beside itself; it may be missing.

    Args:
        folder: the header's folder.
        name: what the header says.
        label: the header, as the user wrote it.

    Raises:
        VolumeError: the name leads out of the folder.
    """
    path = folder / name
    # A header may have been written on another system, or to mislead one.
    rooted = Path(name).is_absolute() or PureWindowsPath(name).drive or "\\" in name
    if not name or "\0" in name or rooted or not path.resolve().is_relative_to(folder.resolve()):
        raise VolumeError(
            f"{label}: its data file {name[:80]!r} lies outside its folder, where nothing is read; put it beside the header"
        )
    return path


def data_file(folder: Path, name: str, label: str) -> Path:
    """Return the path of a file that a header names beside itself.

    Raises:
        VolumeError: the name leads out of the folder, or there is no such file.
    """
    path = confined(folder, name, label)
    if not path.is_file():
        raise VolumeError(f"{label}: its data file {name[:80]!r} is missing; copy it too")
    return path


def files_under(path: Path) -> list[Path]:
    """Return the file, or the files in a folder in the order of their relative names."""
    if not path.is_dir():
        return [path]
    return sorted(
        (file for file in path.rglob("*") if file.is_file()),
        key=lambda file: file.relative_to(path).as_posix(),
    )
