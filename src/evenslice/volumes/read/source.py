"""What a file format provides: the stored array as it lies in the file, and its errors as one line each."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evenslice._core import EvensliceError, VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.units import Unit

__all__ = [
    "LARGEST_CHUNK",
    "ArraySource",
    "BoundedFile",
    "Source",
    "content",
    "map_file",
    "one_line",
    "reading",
    "require_bytes",
    "require_chunk",
    "require_signature",
]

LARGEST_CHUNK = 2**31
"""Bytes of the largest compressed piece that is decoded; a header that claims more is not believed."""

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"II+\0": "a TIFF file",
    b"MM\0+": "a TIFF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x1f\x8b": "gzip-compressed data",
    b"BZh": "bzip2-compressed data",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF document",
}


class Source(ABC):
    """A stored array of any number of dimensions, read in pieces.

    A subclass opens one file format: its constructor reads the metadata, validates it and sets the attributes; no voxel
    is read before ``read``. It keeps no file open between reads (a memory map is fine), so that a volume needs no
    closing and may be used from several threads and after a fork.

    Attributes:
        format: the name of the format, as a user should read it.
        shape: the stored shape, in stored order.
        dtype: the data type of what ``read`` returns.
        names: one lower-case letter a dimension (z, y, x; t time, c channel, s colour sample), or None if unnamed.
        spacing: voxel size along each stored dimension, NaN for those that are not spatial; or None if unknown.
        unit: the unit of ``spacing``, or None if unknown.
        voxel_size: voxel size along z, y, x where the file states it so, whatever the order in which the array is
            stored; it goes before ``spacing``.
        chunks: shape of the pieces that are stored (and have to be decoded) as one, or None if there are none.
        affine: (4, 4) map from voxel indices (x, y, z, 1), as ``names`` has them, to patient space (x to the right, y to
            the front, z to the head) in mm, or None.
        files: the files that the voxels come from where those are not the whole path that was opened, or None.
        part: the path of the data set inside the file, or None where a file holds one volume.
        picked: the names among the user's picks that the format itself has obeyed.
    """

    format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    names: str | None = None
    spacing: tuple[float, ...] | None = None
    unit: Unit | None = None
    voxel_size: tuple[float, float, float] | None = None
    chunks: tuple[int, ...] | None = None
    affine: NDArray[np.float64] | None = None
    files: tuple[Path, ...] | None = None
    part: str | None = None
    picked: tuple[str, ...] = ()

    @abstractmethod
    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the part of the stored array under ``key``.

        Args:
            key: one slice a dimension, not empty, with 0 <= start < stop <= length and step >= 1.

        Returns:
            An array with as many dimensions as the stored one; the caller copies it before anybody can change it.
        """


class ArraySource(Source):
    """An array in memory, or mapped into it."""

    format = "NumPy array"

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return a view."""
        return self.array[key]


@contextmanager
def reading(label: str, file_format: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into a VolumeError that names the file.

    Args:
        label: the file, as the user wrote it.
        file_format: the format that it was read as.

    Raises:
        VolumeError: the block raised anything but an error of evenslice.
    """
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        # The parsers of damaged files raise nearly anything: struct.error, KeyError, ZeroDivisionError, MemoryError.
        raise VolumeError(
            f"{label}: cannot be read as {file_format} ({one_line(error)}); check that it is complete and undamaged"
        ) from error


def one_line(error: Exception) -> str:
    """Return an exception's message as one printable line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in text)[:200]


def content(head: bytes) -> str:
    """Return what a file holds, judged by its first bytes.

    Example:
        >>> content(b"GIF89a...")
        'a GIF image'
    """
    if not head:
        return "nothing (the file is empty)"
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
    if head[128:132] == b"DICM":
        return "a DICOM file"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return "of an unknown format"
    return "text" if text.isprintable() or text.split() else "of an unknown format"


def require_signature(path: Path, label: str, file_format: str) -> None:
    """Check that a file starts as one of a format does.

    Args:
        path: the file.
        label: the file, as the user wrote it.
        file_format: a value of the table of signatures, such as "a TIFF file".

    Raises:
        VolumeError: it starts otherwise; the message says what the content looks like.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if content(head) != file_format:
        raise VolumeError(
            f"{label}: is not {file_format}, its content is {content(head)}; name a file that is what its suffix says"
        )


class BoundedFile(io.BufferedReader):
    """A file of which never more is asked than it has: Python makes room for what is asked, whatever is there.

    Args:
        path: the file.

    Example:
        >>> import tempfile; from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> _ = path.write_bytes(b"abc")
        >>> with BoundedFile(path) as file:
        ...     file.read(2**40)
        b'abc'
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to so many bytes."""
        rest = max(self._size - self.tell(), 0)
        return super().read(rest if size is None or size < 0 else min(size, rest))


def require_bytes(path: Path, label: str, needed: int) -> None:
    """Raise if a file is shorter than what its header claims.

    Raises:
        VolumeError: it is.
    """
    held = path.stat().st_size
    if held < needed:
        raise VolumeError(
            f"{label}: is truncated, its voxels reach to byte {needed:,} and {path.name} has {held:,}; copy it again"
        )


def require_chunk(label: str, what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise if a piece that has to be decoded as one is larger than ``LARGEST_CHUNK``.

    Raises:
        VolumeError: it is.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > LARGEST_CHUNK:
        raise VolumeError(
            f"{label}: {what} {shape} take {size:,} bytes each; store it in pieces below {LARGEST_CHUNK:,} bytes"
        )


def map_file(
    path: Path,
    label: str,
    dtype: np.dtype[Any],
    offset: int,
    shape: tuple[int, ...],
    order: Literal["C", "F"] = "C",
) -> NDArray[Any]:
    """Map uncompressed voxels that lie in one piece.

    Raises:
        VolumeError: the file is too short to hold them.
    """
    if 0 in shape:
        return np.empty(
            shape, dtype
        )  # there is nothing to map; why it is no volume is said where the axes are
    require_bytes(path, label, offset + math.prod(shape) * dtype.itemsize)
    return np.memmap(path, dtype, "r", offset, shape, order)
