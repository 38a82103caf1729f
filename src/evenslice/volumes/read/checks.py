"""Checks of files that may be damaged or hostile, and their errors as one line each."""

from __future__ import annotations

import io
import math
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evenslice._core import EvensliceError, VolumeError, open_regular, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

__all__ = [
    "LARGEST_CHUNK",
    "BoundedFile",
    "describe_content",
    "reporting_read_errors",
    "require_bytes",
    "require_chunk",
    "require_few",
    "require_signature",
    "without_warnings",
]

MOST_FILES = 2**16
"""Number of files with one slice each; every file is opened to see that all are alike."""

LARGEST_CHUNK = 2**31
"""Size limit of a compressed piece in bytes, once decoded; a header that claims more is refused."""

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
        file_format: a value of ``_SIGNATURES``, such as "a TIFF file".

    Raises:
        VolumeError: it has another; the message describes the content.
    """
    with open_regular(path) as file:
        head = file.read(512)
    if describe_content(head) != file_format:
        raise VolumeError(
            f"{label}: is not {file_format}, its content is {describe_content(head)}; name a file whose "
            "suffix matches its content"
        )


class BoundedFile(io.BufferedReader):
    """A file that is never asked for more bytes than it has, because Python allocates what is asked for.

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
        """Return up to ``size`` bytes."""
        rest = max(self._size - self.tell(), 0)
        return super().read(rest if size is None or size < 0 else min(size, rest))


def require_bytes(path: Path, label: str, needed: int) -> None:
    """Raise VolumeError if a file is shorter than its header claims."""
    held = path.stat().st_size
    if held < needed:
        raise VolumeError(
            f"{label}: is truncated, its voxels end at byte {needed:,} and {path.name} has {held:,}; copy it again"
        )


def require_few(label: str, files: Sequence[Path]) -> None:
    """Raise VolumeError if a folder holds more than ``MOST_FILES`` slices, before any of them is opened."""
    if len(files) > MOST_FILES:
        raise VolumeError(
            f"{label}: holds {len(files):,} slices, and a folder of more than {MOST_FILES:,} takes too long "
            "to look through; save them as one file, such as OME-Zarr"
        )


def require_chunk(label: str, what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise VolumeError if a piece that is decoded as one is larger than ``LARGEST_CHUNK``."""
    size = math.prod(shape) * dtype.itemsize
    if size > LARGEST_CHUNK:
        smaller = list(shape)
        while math.prod(smaller) * dtype.itemsize > _GOOD_CHUNK:
            longest = smaller.index(max(smaller))
            smaller[longest] = -(-smaller[longest] // 2)
        raise VolumeError(
            f"{label}: {what} {shape} take {size:,} bytes each, and each read decodes one whole; rewrite it "
            f"in pieces below {LARGEST_CHUNK:,} bytes, such as {tuple(smaller)}"
        )
