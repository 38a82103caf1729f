"""What is asked of every file: that it is of its format, as large as its header claims, and below a limit.

Sizes that a header declares are checked once, on opening: against the file by ``require_bytes``, against the limits here by
``require_piece``.
"""

from __future__ import annotations

import math
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evenslice._core import EvensliceError, VolumeError, open_regular, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

__all__ = [
    "LARGEST_METADATA",
    "LARGEST_PIECE",
    "LARGEST_STREAM",
    "describe_content",
    "reporting_read_errors",
    "require_bytes",
    "require_piece",
    "require_signature",
    "without_warnings",
]

LARGEST_PIECE = 2**31
"""Size limit in bytes of what each read decodes as one: a chunk, a strip, an image."""

LARGEST_STREAM = 2**34
"""Size limit in bytes of what is decompressed whole, once: the voxels of a MetaImage or NRRD file."""

LARGEST_METADATA = 2**23
"""Size limit in bytes of a file of metadata, or of a header of text."""

_GOOD_CHUNK = 2**22

_warnings = threading.Lock()

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


@contextmanager
def reporting_read_errors(label: str, file_format: str) -> Iterator[None]:
    """Turn any exception of a library on a damaged file into a VolumeError that names the file.

    Args:
        label: the file, as the user wrote it.
        file_format: the format that it is read as.

    Raises:
        VolumeError: the block raised any other exception than an ``EvensliceError``.
    """
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        # On damaged files, parsers raise nearly anything: struct.error, KeyError, ZeroDivisionError, MemoryError.
        raise VolumeError(
            f"{label}: cannot be read as {file_format} ({reason(error)}); check that it is complete and undamaged"
        ) from error


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore the warnings of a block that reads a header; what matters is checked by the caller.

    One thread at a time: the filters of warnings belong to all threads, and one would restore those of another.
    """
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def describe_content(head: bytes) -> str:
    """Describe the content of a file, judging by its first bytes.

    Example:
        >>> describe_content(b"GIF89a...")
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
    """Check the signature at the start of a file.

    Args:
        path: the file.
        label: the file, as the user wrote it.
        file_format: a value of ``_SIGNATURES``, such as "a TIFF file", or "a DICOM file".

    Raises:
        VolumeError: it has another; the message describes the content.
    """
    with open_regular(path) as file:
        found = describe_content(file.read(512))
    if found != file_format:
        raise VolumeError(
            f"{label}: is not {file_format}, its content is {found}; name a file whose suffix matches its content"
        )


def require_bytes(path: Path, label: str, needed: int) -> None:
    """Raise VolumeError if a file is shorter than its header claims."""
    held = path.stat().st_size
    if held < needed:
        raise VolumeError(
            f"{label}: is truncated, its voxels end at byte {needed:,} and {path.name} has {held:,}; copy it again"
        )


def require_piece(
    label: str, what: str, shape: tuple[int, ...], dtype: np.dtype[Any], most: int = LARGEST_PIECE
) -> None:
    """Raise VolumeError if a piece that is decoded as one is too large.

    Args:
        label: the file, as the user wrote it.
        what: the pieces, such as "its chunks".
        shape: their shape.
        dtype: data type of their voxels.
        most: size limit in bytes.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > most:
        smaller = list(shape)
        while math.prod(smaller) * dtype.itemsize > _GOOD_CHUNK:
            longest = smaller.index(max(smaller))
            smaller[longest] = -(-smaller[longest] // 2)
        raise VolumeError(
            f"{label}: {what} {shape} take {size:,} bytes each, and are decoded whole; rewrite it "
            f"in pieces below {most:,} bytes, such as {tuple(smaller)}"
        )
