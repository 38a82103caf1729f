"""What the readers of all formats share: where a volume is, the stored array that they return, and checks of headers.

Sizes that a header declares are checked once, on opening: against the file by ``require_bytes``, against a limit by
``require_piece``.
"""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, EvensliceError, VolumeError, did_you_mean, option, path_text, reason
from evenslice.volumes.geometry import common_unit, normal_unit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit

LARGEST_PIECE = 2**31
"""Size limit in bytes of what each read decodes as one: a chunk, a strip, an image."""

LARGEST_METADATA = 2**23
"""Size limit in bytes of a file of metadata, or of a header of text."""

LARGEST_OFFSET = 2**62
"""Limit on the distance of the first voxel from the origin, in voxels."""

PROTOCOLS = ("https", "s3", "gs", "http")
"""Protocols of addresses."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_KIND = re.compile(r"(precomputed|n5|zarr)://(.*)", re.DOTALL)
_DATASET = re.compile(r"(.+\.(?:h5|hdf5|hdf|he5|nxs|ims)):(.*)", re.IGNORECASE)

_warnings = threading.Lock()


# Where a volume is


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
    """

    label: str
    location: Path | str
    part: str | None = None
    level: int = 0
    series: int | None = None
    kind: str | None = None
    picked: frozenset[str] = frozenset()

    @property
    def path(self) -> Path:
        """The location, if it is a file or folder."""
        if isinstance(self.location, str):
            raise VolumeError("is an address, where only Zarr, N5 and precomputed can be read; copy it here")
        return self.location


def locate(path: str | os.PathLike[str], level: int = 0, series: int | None = None) -> Place:
    """Return the place of a volume, independent of the working directory.

    Args:
        path: a path, ``file.h5:/path/of/a/dataset``, or an address that starts with https://, s3:// or
            gs://, before which the format may stand, as in precomputed://gs://bucket/image.
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
    label = path_text(path, "a volume")
    if not label:
        raise VolumeError("the path of the volume is empty; name a file or a Zarr folder")
    if _URL.match(label):
        named = _KIND.match(label)
        kind, url = named.groups() if named else (None, label)
        _check_address(url)
        return Place(label, url.rstrip("/"), level=level, series=series, kind=kind)
    inside = _DATASET.fullmatch(label)
    if inside and not os.path.exists(label):  # noqa: PTH110  # Path.exists raises if the name is too long
        return Place(label, Path(inside[1]).absolute(), f"/{inside[2].strip('/')}", level, series)
    return Place(label, Path(label).absolute(), level=level, series=series)


def _check_address(url: str) -> None:
    """Raise VolumeError if an address has an unknown protocol, would reveal a secret, or is incomplete."""
    protocol, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0] or set("?#") & set(rest):
        raise VolumeError(
            f"{protocol}://…: the address contains a password, a query or a fragment; give credentials in the environment"
        )
    if protocol.lower() not in PROTOCOLS:
        raise VolumeError(
            f"{url}: cannot read addresses of this kind; known: {', '.join(f'{known}://' for known in PROTOCOLS)}"
        )
    if ".." in rest.split("/") or not rest.strip("/"):
        raise VolumeError(f"{url}: is not the address of a folder; write it in full, without ..")


def confined(folder: Path, name: str) -> Path:
    """Return the path of a file that a header names, which must be in its folder or below; it may be missing.

    Args:
        folder: the header's folder.
        name: the name in the header.

    Raises:
        VolumeError: the name, or a link, leads out of the folder.
    """
    path = folder / name
    # A header may have been written on another system, or to mislead one.
    rooted = Path(name).is_absolute() or PureWindowsPath(name).drive or "\\" in name
    if not name or "\0" in name or rooted or not path.resolve().is_relative_to(folder.resolve()):
        raise VolumeError(f"its file {name[:80]!r} is outside its folder and is not read")
    return path


# The stored array


VoxelSize = tuple["tuple[float, ...] | dict[str, float] | None", "Unit | None"]
"""Sizes and their unit."""


class VoxelSource(ABC):
    """A stored array of any number of dimensions, read in pieces.

    A subclass opens one file format: its constructor takes a ``Place``, reads and validates the metadata and sets the
    attributes; voxels are read by ``read`` only. It keeps no file open between reads, so that a volume needs no closing
    and may be used from several threads and after a fork, and hundreds of volumes at once.

    Attributes:
        format: the name of the format, for users.
        shape: the stored shape, in stored order.
        dtype: the data type of what ``read`` returns.
        names: one lower-case letter per dimension (z, y, x; t time, c channel, s colour sample), or None if unnamed.
        assumed: whether ``names`` are only those that are usual in such a file, which states none.
        voxel_size: along each stored dimension, NaN for those that are not spatial, or by the names z, y, x if the file
            states it so, whatever the stored order; and its unit. None where they are unknown.
        chunks: shape of the pieces that are decoded as one, or None if there are none.
        affine: (4, 4) map from voxel indices (x, y, z, 1), as ``names`` has them, to patient space (x to the right, y
            to the front, z to the head) in mm, or None if the file states none.
        offset: where the centre of the first voxel lies along each stored dimension, in voxels from the origin of the
            file's own coordinates; or None if it is the origin.
        files: the files that hold the voxels, unless that is the whole path that was opened; else None.
        part: the path of the dataset inside the file, or None for formats with one volume per file.
        fresh: whether what ``read`` returns is the caller's, if it can be written to, so that it need not be copied.
    """

    format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    names: str | None = None
    assumed: bool = False
    voxel_size: VoxelSize = (None, None)
    chunks: tuple[int, ...] | None = None
    affine: NDArray[np.float64] | None = None
    offset: tuple[float, ...] | None = None
    files: tuple[Path, ...] | None = None
    part: str | None = None
    fresh: bool = False

    @abstractmethod
    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the part of the stored array under ``key``.

        Args:
            key: one slice per dimension, not empty, with 0 <= start < stop <= length and step >= 1.

        Returns:
            An array with as many dimensions as the stored one; it may be a view, which the caller copies.
        """


class ArraySource(VoxelSource):
    """An array in memory, or one that is read in pieces, as Dask, Zarr and xarray have them.

    Raises:
        ConfigError: it is of a library whose data types are not NumPy's, as are the tensors of PyTorch; or its shape is
            unknown.
    """

    format = "NumPy array"

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        if any(length != length for length in array.shape):  # noqa: PLR0124  # NaN, where Dask does not know it
            raise ConfigError("the shape of the array is not known yet; call its compute_chunk_sizes() first")
        self.shape = tuple(array.shape)
        dimensions = getattr(array, "dims", None)  # of xarray
        if isinstance(dimensions, tuple):
            names = letters(dimensions)
            self.names = names if names and set("zyx") <= set(names) else None
        try:
            self.dtype = np.dtype(array.dtype)
        except TypeError:
            raise ConfigError(
                f"a volume is a path, or an array of numbers that NumPy knows, not a {type(array).__name__} of {array.dtype}"
            ) from None
        # The largest chunk, as Dask, xarray, Zarr and h5py tell it.
        if stored := getattr(array, "chunks", None):
            self.chunks = tuple(max(part) if isinstance(part, tuple) else part for part in stored)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return a view, or a copy of what is not in memory."""
        return np.asarray(self.array[key])


# Checks


@contextmanager
def reporting_read_errors(label: str, file_format: str) -> Iterator[None]:
    """Name the file in an error, and turn any exception of a library on a damaged file into a VolumeError.

    Readers need not do so: all that they raise passes through this.

    Args:
        label: the file, as the user wrote it.
        file_format: the format that it is read as.

    Raises:
        EvensliceError: the block raised it; its message begins with the label.
        VolumeError: the block raised any other exception.
    """
    try:
        yield
    except EvensliceError as error:
        if label.startswith(str(error).partition(": ")[0]):  # it names the file, of which this may be a part
            raise
        message = error.args[0].removeprefix(f"{label.rpartition('/')[2]}: ")  # of a file by itself
        raise type(error)(f"{label}: {message}") from error.__cause__
    except Exception as error:
        # On damaged files, parsers raise nearly anything: struct.error, KeyError, ZeroDivisionError, MemoryError.
        advice = "check the address, or download it" if "://" in label else "check its suffix and its content"
        why = reason(error).partition(" in store ")[0]  # of which Zarr gives the address in memory
        raise VolumeError(f"{label}: cannot be read as {file_format} ({why}); {advice}") from error


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore the warnings of a block that reads a header; what matters is checked by the caller.

    One thread at a time: the filters of warnings belong to all threads, and one would restore those of another.
    """
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def require_bytes(path: Path, needed: int) -> None:
    """Raise VolumeError if a file is shorter than its header claims."""
    held = path.stat().st_size
    if held < needed:
        raise VolumeError(f"is truncated, its voxels end at byte {needed:,} and {path.name} has {held:,}")


def require_piece(what: str, shape: Sequence[int], dtype: np.dtype[Any], most: int = LARGEST_PIECE) -> None:
    """Raise VolumeError if a piece that is decoded as one is too large.

    Args:
        what: the pieces, such as "its chunks".
        shape: their shape.
        dtype: data type of their voxels.
        most: size limit in bytes.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > most:
        raise VolumeError(f"{what} {tuple(shape)} take {size:,} bytes each, above {most:,}")


# Values of metadata, which may hold anything


def require_inside(what: str, path: Any) -> str:
    r"""Return a value of metadata if it is the path of a folder below that of the volume.

    What has a meaning in addresses, such as a percent sign, could lead elsewhere there.

    Raises:
        VolumeError: it is none, or leads elsewhere.

    Example:
        >>> require_inside("level", "%2e%2e/0")
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: the path '%2e%2e/0' of its level is none inside of it and is not read
    """
    inside = isinstance(path, str) and all(
        part not in ("", ".", "..") and not set("\\\0?#%:") & set(part) for part in path.split("/")
    )
    if not inside:
        raise VolumeError(f"the path {str(path)[:60]!r} of its {what} is none inside of it and is not read")
    return str(path)


def pick_level(levels: Sequence[Any], level: int) -> Any:
    """Return a resolution level of several.

    Raises:
        ConfigError: there is none of this number.
    """
    if not 0 <= level < len(levels):
        raise ConfigError(f"has no {option('level', level)}; its coarsest level is {len(levels) - 1}")
    return levels[level]


def letters(names: Sequence[Any]) -> str | None:
    """Join names of one letter each, all different, in lower case; return None for other names.

    Example:
        >>> letters(["Z", "y", "x"]), letters(["row", "column"])
        ('zyx', None)
    """
    joined = "".join(map(str, names)).lower()
    return joined if joined.isalpha() and len(joined) == len(names) == len(set(joined)) else None


def require_known(what: str, value: Any, known: Collection[str]) -> str:
    """Return a value of metadata as text if it is one that can be read.

    Raises:
        VolumeError: it is none of those that are known.
    """
    if str(value) not in known:
        named = str(value)[:40]
        raise VolumeError(f"its {what} {named!r} cannot be read; {did_you_mean(named, known)}")
    return str(value)


def scaled_spacing(sizes: Sequence[Any], units: Sequence[Any], names: Sequence[str] | None) -> VoxelSize:
    """Return the sizes of voxels along each dimension, in one unit for z, y and x.

    Args:
        sizes: along each dimension.
        units: of each, in any spelling.
        names: of each dimension, z, y and x among them; None for three that are z, y and x.

    Returns:
        The sizes, NaN for dimensions that are not spatial, and their unit; (None, None) if they are no numbers or their
        units do not fit together.

    Example:
        >>> scaled_spacing([0.04, 4, 4], ["um", "nm", "nm"], "zyx")
        ((40.0, 4.0, 4.0), 'nm')
    """
    named = list(names or "zyx")
    spatial = [named.index(name) for name in "zyx" if name in named]
    try:
        found = [float(sizes[dimension]) for dimension in spatial]
        common, unit = common_unit(found, [normal_unit(units[dimension]) for dimension in spatial])
    except (TypeError, ValueError, LookupError, OverflowError):
        return None, None
    if common is None:
        return None, None
    spacing = dict(zip(spatial, common, strict=True))
    return tuple(spacing.get(dimension, math.nan) for dimension in range(len(sizes))), unit


def in_voxels(places: Sequence[Any], sizes: Sequence[Any]) -> tuple[float, ...] | None:
    """Return where the first voxel lies along each dimension, in voxels; None if it is no place that voxels can have.

    Example:
        >>> in_voxels([400, 16, 0], [40, 8, 0]), in_voxels([None], [1])
        ((10.0, 2.0, 0.0), None)
    """
    try:
        found = tuple(float(at) and float(at) / float(size) for at, size in zip(places, sizes, strict=True))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None
    return found if all(abs(at) <= LARGEST_OFFSET for at in found) else None
