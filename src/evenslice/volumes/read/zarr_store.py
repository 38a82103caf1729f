"""Zarr stores in a folder, of which only regular files inside it are read, and no more of each than was agreed."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING, Any

from evenslice._core import VolumeError, open_regular, reason

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["METADATA_BYTES", "local_store", "read_file", "require_size", "require_unchanged"]

METADATA_BYTES = 2**23
"""Size limit in bytes of a file of metadata."""

_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}


def local_store(root: Path, label: str, most: int, since: float) -> Any:
    """Return a read-only store that opens regular files inside its folder only, through links inside it too.

    Args:
        root: the folder; it may be a link itself, because the user named it.
        label: the folder, as the user wrote it.
        most: largest number of bytes that are read of a file at once; of metadata ``METADATA_BYTES``.
        since: the time after which no chunk may disappear.
    """
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import LocalStore

    class Confined(LocalStore):
        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            return await asyncio.to_thread(self._buffer, key, prototype, byte_range)

        def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
            return self._buffer(key, prototype, byte_range)

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
            wanted = (self.get(key, prototype, byte_range) for key, byte_range in key_ranges)
            return list(await asyncio.gather(*wanted))

        def _buffer(self, key: str, prototype: Any, byte_range: Any) -> Any:
            try:
                content = read_file(self.root, key, byte_range, label, most)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                require_unchanged(self.root, key, label, since)
                return None
            return (prototype or default_buffer_prototype()).buffer.from_bytes(content)

    return Confined(root, read_only=True)


def require_size(key: str, size: int, label: str, most: int) -> None:
    """Raise VolumeError if more than ``most`` bytes (of metadata ``METADATA_BYTES``) are to be read of a file at once."""
    limit = min(most, METADATA_BYTES) if key.rpartition("/")[2] in _METADATA else most
    if size > limit:
        raise VolumeError(
            f"{label}: its file {key[:80]!r} has {size:,} bytes where at most {limit:,} can be right; the "
            "volume is damaged"
        )


def read_file(root: Path, key: str, byte_range: Any, label: str, most: int) -> bytes:
    """Read a file of a store, or a part of it."""
    _require_inside(root, key, label)
    try:
        with open_regular(root / key) as file:
            size = os.fstat(file.fileno()).st_size
            start, stop = _span(byte_range, size)
            require_size(key, stop - start, label, most)
            if stop > size:
                raise VolumeError(
                    f"{label}: its file {key[:80]!r} is truncated, it has {size:,} bytes of {stop:,}; copy it again"
                )
            file.seek(start)
            return file.read(max(0, stop - start))
    except IsADirectoryError:
        raise
    except OSError as error:
        if error.errno is not None:  # missing, or not to be read
            raise
        raise VolumeError(
            f"{label}: its file {key[:80]!r} {reason(error)}; replace it by the file it stands for"
        ) from error


def _require_inside(root: Path, key: str, label: str) -> None:
    """Raise VolumeError if a link leads out of the folder."""
    place = os.fspath(root)
    for name in key.split("/"):
        place = f"{place}/{name}"
        if not stat.S_ISLNK(os.lstat(place).st_mode):
            continue
        if not (root / key).resolve().is_relative_to(root.resolve()):
            raise VolumeError(
                f"{label}: its file {key[:80]!r} is a link to outside its folder and is not read; copy the file there"
            )
        return


def _span(byte_range: Any, size: int) -> tuple[int, int]:
    """Return the first byte and the one past the last that one of Zarr's requests means in a file of ``size`` bytes."""
    if byte_range is None:
        return 0, size
    if hasattr(byte_range, "suffix"):
        return max(0, size - byte_range.suffix), size
    if hasattr(byte_range, "offset"):
        return byte_range.offset, size
    return byte_range.start, byte_range.end


def require_unchanged(root: Path, key: str, label: str, since: float) -> None:
    """Raise VolumeError if a missing chunk, which stands for the fill value, may have been there at a given time.

    A folder notes when a file was added to it or removed, and when it was renamed.
    """
    if key.rpartition("/")[2] in _METADATA:
        return
    place = root / key
    while place != root:
        place = place.parent
        try:
            found = place.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if max(found.st_mtime, found.st_ctime) <= since:
            return
        break
    raise VolumeError(
        f"{label}: its chunk {key[:80]!r} is missing and its folder has changed since it was opened; put it "
        "back, or start again"
    )
