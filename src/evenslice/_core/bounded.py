"""Opening files that may be anything: only regular files, and never more bytes than were agreed."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

__all__ = ["open_regular", "read_bounded"]

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; never waits, as opening a pipe would.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.

    Example:
        >>> open_regular(os.devnull)
        Traceback (most recent call last):
        ...
        OSError: is a device, not a regular file
    """
    return open(path, "rb", opener=_open_descriptor)  # Path.open takes no opener


def read_bounded(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the content of a regular file that has at most ``most`` bytes.

    Args:
        path: the file.
        most: its largest size in bytes.

    Raises:
        OSError: it is larger, or not a regular file, or cannot be read.

    Example:
        >>> import tempfile; from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> _ = path.write_bytes(b"abc")
        >>> read_bounded(path, 3)
        b'abc'
        >>> read_bounded(path, 2)
        Traceback (most recent call last):
        ...
        OSError: has 3 bytes where at most 2 are read
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(f"has {size:,} bytes where at most {most:,} are read")
        return file.read(size)


def _open_descriptor(path: str, flags: int) -> int:
    # Opening alone can act on a device (a tape rewinds); the second check is for a file that was exchanged meanwhile.
    _require_regular(os.stat(path).st_mode)  # noqa: PTH116  # the opener of `open` gets a string
    # Windows has no such flag, and no such pipes.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _require_regular(os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for check, name in _KINDS if check(mode)), "special")
        raise OSError(f"is {kind}, not a regular file")
