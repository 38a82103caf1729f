"""Where a volume is: a file, a folder, a dataset inside a file, or an address (URL)."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, VolumeError, path_text

if TYPE_CHECKING:
    from evenslice._core import EvensliceError

__all__ = [
    "Place",
    "confined",
    "files_under",
    "holds_many",
    "is_address",
    "locate",
    "refuse_secret",
]

PROTOCOLS = ("https", "s3", "gs", "az", "http")
"""Protocols of addresses; fsspec knows more, including some that chain to other files."""

KINDS = ("precomputed", "n5", "zarr")
"""Formats that may be named in front of an address, as Neuroglancer does: precomputed://gs://bucket/image."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_CRUSHED = re.compile(r"(?:https?|s3|gs|az):/[^/]")
_KIND = re.compile(rf"({'|'.join(KINDS)})://(.*)", re.DOTALL)
_DATASET = re.compile(r"(.+\.(?:h5|hdf5|hdf|he5|nxs|ims)):(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """The path or address of a volume, and what to open there.

    Attributes:
        label: as the user wrote it, for messages.
        location: the absolute path of a file or folder, or the address (URL) of a folder.
        part: the path of a dataset inside the file, as in ``file.h5:/path``, or None.
        level: the resolution level, 0 the finest.
        series: which series of a DICOM folder, or None if the user named none.
        kind: the format that the user named in front of the address, or None.
        picked: the axes, as the file names them, along which the user picked an index.
        since: when it was named, in seconds since 1970; no chunk of a folder may disappear later.
    """

    label: str
    location: Path | str
    part: str | None = None
    level: int = 0
    series: int | None = None
    kind: str | None = None
    picked: frozenset[str] = frozenset()
    since: float = field(default_factory=time.time, compare=False)

    @property
    def path(self) -> Path:
        """The location, if it is a file or folder."""
        if isinstance(self.location, str):
            raise VolumeError(
                f"{self.label}: is an address, where only Zarr, N5 and precomputed can be read; copy it here"
            )
        return self.location


def is_address(path: str | os.PathLike[str]) -> bool:
    """Return whether a name is an address (URL), not a path.

    Example:
        >>> is_address("s3://bucket/cells.ome.zarr"), is_address("cells.ome.zarr")
        (True, False)
    """
    return _URL.match(os.fspath(path)) is not None


def locate(path: str | os.PathLike[str], level: int = 0, series: int | None = None) -> Place:
    """Return the place of a volume, independent of the working directory.

    Args:
        path: a path, ``file.h5:/path/of/a/dataset``, or an address that starts with https://, s3://, gs:// or
            az://, before which the format may stand, as in precomputed://gs://bucket/image.
        level: the resolution level, 0 the finest.
        series: which series of a DICOM folder.

    Raises:
        ConfigError: it is not a path.
        VolumeError: it is empty, or an address with another protocol or a password.

    Example:
        >>> place = locate("cells.h5:/volume")
        >>> place.path.name, place.part
        ('cells.h5', '/volume')
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a volume is a path or a NumPy array, not {type(path).__name__}")
    label = path_text(path, "the path of a volume")
    if not label:
        raise VolumeError("the path of the volume is empty; name a file or a Zarr folder")
    if _CRUSHED.match(label):
        raise ConfigError(f"{label}: the address has lost a slash, as in a pathlib.Path; give it as a string")
    if is_address(label):
        named = _KIND.match(label)
        kind, url = named.groups() if named else (None, label)
        _check_address(url, url.partition("://")[0], kind)
        return Place(label, url.rstrip("/"), level=level, series=series, kind=kind)
    inside = _DATASET.fullmatch(label)
    if inside and not os.path.exists(label):  # noqa: PTH110  # Path.exists raises if the name is too long
        return Place(label, Path(inside[1]).absolute(), f"/{inside[2].strip('/')}", level, series)
    return Place(label, Path(label).absolute(), level=level, series=series)


def _check_address(url: str, protocol: str, kind: str | None) -> None:
    """Raise if an address has an unknown protocol, would reveal a secret, or is incomplete."""
    if kind is not None and not is_address(url):
        raise ConfigError(
            f"{kind}://{url}: {kind}:// stands before an address, as in {kind}://gs://bucket/path; leave it out before a path"
        )
    refuse_secret(url, VolumeError)
    rest = url.partition("://")[2]
    # By :: fsspec, which reads s3://, joins addresses.
    if protocol.lower() not in PROTOCOLS or (protocol.lower() == "s3" and "::" in rest):
        raise VolumeError(
            f"{url}: cannot read addresses of this kind; start it with "
            f"{', '.join(f'{known}://' for known in PROTOCOLS)}, or name a file"
        )
    if ".." in rest.split("/") or not rest.strip("/"):
        raise VolumeError(f"{url}: is not the address of a folder; write it in full, without ..")


def refuse_secret(url: str, error: type[EvensliceError]) -> None:
    """Raise an error of the type given if an address contains what may be a secret: results name addresses."""
    protocol, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0] or set("?#") & set(rest):
        raise error(
            f"{protocol}://…: the address contains a password, a query or a fragment, which results would show; "
            "give credentials in the environment"
        )


def confined(folder: Path, name: str, label: str) -> Path:
    """Return the path of a file that a header names, which must be in its folder or below; it may be missing.

    Args:
        folder: the header's folder.
        name: the name in the header.
        label: the header, as the user wrote it.

    Raises:
        VolumeError: the name leads out of the folder.
    """
    path = folder / name
    # A header may have been written on another system, or to mislead one.
    rooted = Path(name).is_absolute() or PureWindowsPath(name).drive or "\\" in name
    if not name or "\0" in name or rooted or not path.resolve().is_relative_to(folder.resolve()):
        raise VolumeError(
            f"{label}: its data file {name[:80]!r} is outside its folder and is not read; put it beside the header"
        )
    return path


def files_under(path: Path, label: str) -> list[Path]:
    """Return the file itself, or all files below a folder in the order of their relative names.

    Args:
        path: the file or folder.
        label: the file or folder, as the user wrote it.

    Raises:
        VolumeError: a link leads out of the folder.
    """
    if not path.is_dir():
        return [path]
    files = [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        if file.is_symlink():
            confined(path, file.relative_to(path).as_posix(), label)
    return sorted(files, key=lambda file: file.relative_to(path).as_posix())


def holds_many(path: Path, most: int) -> bool:
    """Return whether more than a number of files and folders are below a folder, without listing far more than these.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in "abc":
        ...     (folder / name).touch()
        >>> holds_many(folder, 2), holds_many(folder, 3), holds_many(folder / "a", 0)
        (True, False, False)
    """
    seen = 0
    for _, folders, files in os.walk(path):
        seen += len(folders) + len(files)
        if seen > most:
            return True
    return False
