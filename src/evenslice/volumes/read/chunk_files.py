"""Volumes stored in many chunks: reading a file by its name, in a folder or at an address, and putting chunks together.

Nothing here knows a format. A format says which chunk a part of the volume lies in and how a chunk is decoded.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, available_cores, map_ahead, needs_extra, open_regular, reason
from evenslice.volumes.read.checks import LARGEST_METADATA
from evenslice.volumes.read.remote import RemoteFiles, reporting_network_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.location import Place

    Index = tuple[int, ...]

__all__ = ["ChunkFiles", "assemble", "decompress", "encoded_limit", "read_json_object", "reads_at_once"]

THREADS = 8
"""Most chunks that are fetched at once: a server answers several requests in the time of one."""

_DECODING = min(4, available_cores())
_WORTH = 2**20  # bytes of a chunk in a file for which a thread pays

IN_FLIGHT = 2**28
"""Bytes that the chunks decoded at once may take, unless one takes more."""

_SLACK = 2**20
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass
class ChunkFiles:
    """The files of a volume, by names relative to its folder or address; safe to use from several threads.

    Attributes:
        place: the folder or address.
    """

    place: Place
    _reached: dict[int, RemoteFiles] = field(default_factory=dict)

    @property
    def remote(self) -> bool:
        """Whether they are at an address."""
        return isinstance(self.place.location, str)

    def read(self, name: str, most: int, span: slice | None = None) -> bytes | None:
        """Return the content of a file, or a part of it; None if it is missing.

        Args:
            name: its name relative to the folder or address, checked by the caller to have no ``..``.
            most: largest number of bytes that can be right.
            span: the part, with a stop or to the end, or the last bytes as ``slice(-count, None)``; by default all of it.

        Raises:
            VolumeError: it has disappeared since the volume was opened, is larger, no regular file, outside the folder or
                truncated, or the network is at fault.
        """
        try:
            found = self._fetch(name, most, span) if self.remote else self._read(name, most, span)
        except _MISSING:
            self._require_unchanged(name)
            return None
        self._require_size(name, len(found), most)
        return found

    def read_metadata(self, name: str) -> bytes | None:
        """Return the content of a file of metadata, of at most ``LARGEST_METADATA`` bytes; None if it is missing.

        What is forbidden counts as missing: some servers answer so for whatever they do not have.
        """
        try:
            found = (self._fetch if self.remote else self._read)(name, LARGEST_METADATA, None)
        except _MISSING:
            return None
        except VolumeError as error:
            if isinstance(error.__cause__, PermissionError):
                return None
            raise
        self._require_size(name, len(found), LARGEST_METADATA)
        return found

    def _read(self, name: str, most: int, span: slice | None) -> bytes:
        label = self.place.label
        try:
            _require_inside(self.place.path, name, label)
            with open_regular(self.place.path / name) as file:
                size = os.fstat(file.fileno()).st_size
                start, stop = _bounds(span or slice(0, None), size)
                self._require_size(name, stop - start, most)
                if stop > size:
                    raise VolumeError(
                        f"{label}: its file {name[:80]!r} is truncated, it has {size:,} bytes of {stop:,}; copy it again"
                    )
                file.seek(start)
                return file.read(stop - start)
        except _MISSING:
            raise
        except OSError as error:
            raise VolumeError(
                f"{label}: its file {name[:80]!r} {reason(error)}; make it a readable file, or copy it again"
            ) from error

    def _fetch(self, name: str, most: int, span: slice | None) -> bytes:
        if os.getpid() not in self._reached:  # connections do not survive a fork
            self._reached[os.getpid()] = RemoteFiles(str(self.place.location))
        try:
            with reporting_network_errors(self.place.label):
                content = self._reached[os.getpid()].read(name, most, span)
        except VolumeError as error:
            if isinstance(error.__cause__, _MISSING):
                raise error.__cause__ from None
            raise
        if span is not None and span.stop is not None and len(content) != span.stop - span.start:
            raise VolumeError(
                f"{self.place.label}: the server sent {len(content):,} of {span.stop - span.start:,} bytes of "
                f"{name[:80]!r}; it may be truncated"
            )
        return content

    def _require_size(self, name: str, size: int, most: int) -> None:
        if size > most:
            raise VolumeError(
                f"{self.place.label}: its file {name[:80]!r} has {size:,} bytes where at most {most:,} can be right; the "
                "volume is damaged"
            )

    def _require_unchanged(self, name: str) -> None:
        """Raise VolumeError if a missing chunk, which stands for the fill value, may have been there on opening.

        A folder notes when a file was added to it or removed, and when it was renamed.
        """
        if self.remote:
            return
        path = self.place.path / name
        while path != self.place.path:
            path = path.parent
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if max(found.st_mtime, found.st_ctime) <= self.place.since:
                return
            break
        raise VolumeError(
            f"{self.place.label}: its chunk {name[:80]!r} is missing and its folder has changed since it was opened; put it "
            "back, or start again"
        )


def _bounds(span: slice, size: int) -> tuple[int, int]:
    """Return the first byte of a part of a file and the one past the last, which may be beyond the end of the file."""
    start = max(size + span.start, 0) if span.start < 0 else span.start
    return start, max(start, size) if span.stop is None else span.stop


def _require_inside(root: Path, name: str, label: str) -> None:
    """Raise VolumeError if a link leads out of the folder."""
    path = os.fspath(root)
    for part in name.split("/"):
        path = f"{path}/{part}"
        if stat.S_ISLNK(os.lstat(path).st_mode):
            if (root / name).resolve().is_relative_to(root.resolve()):
                return
            raise VolumeError(
                f"{label}: its file {name[:80]!r} is a link to outside its folder and is not read; copy the file there"
            )


def read_json_object(files: ChunkFiles, name: str) -> dict[str, Any] | None:
    """Return the JSON object in a file of metadata, None if it is missing.

    Raises:
        VolumeError: it is too large, not JSON, or no object.
    """
    content = files.read_metadata(name)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise VolumeError(
            f"{files.place.label}: its file {name!r} is not JSON ({reason(error)}); copy it again"
        ) from error
    if not isinstance(found, dict):
        raise VolumeError(
            f"{files.place.label}: its file {name!r} holds {type(found).__name__}, not an object; copy it again"
        )
    return found


def encoded_limit(size: int) -> int:
    """Return the most bytes that a chunk of so many can reasonably take once it is encoded: such data grow a little.

    Example:
        >>> encoded_limit(2**20)
        3145728
    """
    return 2 * size + _SLACK


def decompress(packed: bytes, codec: str) -> bytes:
    """Decompress a chunk.

    Args:
        packed: the chunk.
        codec: what numcodecs calls the compression, or "brotli".

    Raises:
        ValueError: it ends early.

    Example:
        >>> import bz2
        >>> decompress(bz2.compress(b"aaa"), "bz2")
        b'aaa'
    """
    with needs_extra("volumes", f"reading chunks compressed with {codec}"):
        import imagecodecs
        import numcodecs
    if codec == "brotli":
        return bytes(imagecodecs.brotli_decode(packed))
    if codec == "blosc":
        require_whole_blosc(packed)
    return bytes(numcodecs.get_codec({"id": codec}).decode(packed))


def require_whole_blosc(packed: bytes) -> None:
    """Raise ValueError if a chunk that Blosc compressed ends early: the decoder reads what lies behind it in memory."""
    if len(packed) < 16 or struct.unpack_from("<I", packed, 12)[0] != len(packed):
        raise ValueError("a chunk is truncated")


@dataclass(frozen=True)
class _Part:
    """Where a chunk goes: its index, what is taken of it, and where that belongs in the result."""

    index: Index
    taken: tuple[slice, ...]
    place: tuple[slice, ...]


def assemble(
    key: tuple[slice, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    decode: Callable[[Index], NDArray[Any] | None],
    *,
    remote: bool,
) -> NDArray[Any]:
    """Read a part of an array stored in chunks on a regular grid, several chunks at a time.

    Args:
        key: the part, one slice per dimension with 0 <= start < stop and step >= 1.
        chunks: the shape of a chunk.
        dtype: data type of the array.
        decode: returns the chunk with an index in the grid, which may be smaller than the others; None for zeros.
        remote: whether chunks come from a server, where waiting for several at once saves time.

    Example:
        >>> stored = np.arange(12).reshape(3, 4)
        >>> def decode(index):
        ...     return stored[2 * index[0] : 2 * index[0] + 2, 2 * index[1] : 2 * index[1] + 2]
        >>> assemble((slice(1, 3), slice(0, 4, 3)), (2, 2), np.dtype(int), decode, remote=False).tolist()
        [[4, 7], [8, 11]]
    """
    result = np.zeros([len(_wanted(part)) for part in key], dtype)

    def put(part: _Part) -> None:
        chunk = decode(part.index)
        if chunk is not None:
            found = chunk[part.taken]
            place = tuple(
                slice(at.start, at.start + length) for at, length in zip(part.place, found.shape, strict=True)
            )
            result[place] = found

    size = max(math.prod(chunks) * dtype.itemsize, 1)
    most = THREADS if remote else _DECODING if size >= _WORTH else 1
    threads = _within_memory(most, 2 * size)
    alone = all(
        _wanted(part)[0] // length == _wanted(part)[-1] // length
        for part, length in zip(key, chunks, strict=True)
    )
    ahead = 0 if threads == 1 or alone else 2 * threads
    for _ in map_ahead(put, _parts(key, chunks), threads=threads, ahead=ahead):
        pass
    return result


def reads_at_once(size: int, *, remote: bool) -> int:
    """Return how many parts of a volume are best read at once: several from a server, as far as memory allows.

    Args:
        size: bytes of the chunks that a part lies in.
        remote: whether they come from a server.

    Example:
        >>> [reads_at_once(2**20, remote=True), reads_at_once(2**27, remote=True), reads_at_once(1, remote=False)]
        [8, 2, 1]
    """
    return _within_memory(THREADS, size) if remote else 1


def _within_memory(most: int, size: int) -> int:
    return max(1, min(most, IN_FLIGHT // max(size, 1)))


def _wanted(part: slice) -> range:
    return range(part.start, part.stop, part.step or 1)


def _parts(key: tuple[slice, ...], chunks: tuple[int, ...]) -> Iterator[_Part]:
    """Yield the chunks that a part of an array lies in; computed, not listed."""
    if not key:
        yield _Part((), (), ())
        return
    wanted, size = _wanted(key[0]), chunks[0]
    indices = (
        (position // size for position in wanted)
        if wanted.step >= size
        else range(wanted[0] // size, wanted[-1] // size + 1)
    )
    for index in indices:
        origin = index * size
        first = max(0, -((wanted.start - origin) // wanted.step))  # of the wanted ones in this chunk
        stop = min(len(wanted), -((wanted.start - origin - size) // wanted.step))
        taken = slice(wanted[first] - origin, wanted[stop - 1] - origin + 1, wanted.step)
        for rest in _parts(key[1:], chunks[1:]):
            yield _Part((index, *rest.index), (taken, *rest.taken), (slice(first, stop), *rest.place))
