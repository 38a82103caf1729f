"""Volumes stored in many pieces: reading a piece by its name, in a folder or at an address, and putting pieces together.

Nothing here knows a format. A format says which piece a part of the volume lies in and how a piece is decoded.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, available_cores, map_ahead, reason
from evenslice.volumes.read.remote import RemoteFiles, reporting_network_errors
from evenslice.volumes.read.zarr_store import METADATA_BYTES, read_file, require_size, require_unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.places import Place

    Index = tuple[int, ...]

__all__ = ["IN_FLIGHT", "Pieces", "Span", "assemble", "few_pieces", "read_json_object", "reads_at_once"]

THREADS = 8
"""Most pieces that are fetched at once: a server answers several requests in the time of one."""

_DECODING = min(4, available_cores())
_WORTH = 2**20  # bytes of a piece in a file for which a thread pays

IN_FLIGHT = 2**28
"""Bytes that the pieces decoded at once may take, unless one takes more."""

_LEAST = 2**25  # bytes that a server may send for less, as if it had not understood which part was asked for

_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Span:
    """A part of a file: from byte ``start`` up to byte ``end``."""

    start: int
    end: int


@dataclass
class Pieces:
    """The files of a volume, by names relative to its folder or address; safe to use from several threads.

    Attributes:
        place: the folder or address.
    """

    place: Place
    _reached: dict[tuple[int, int], RemoteFiles] = field(default_factory=dict)

    @property
    def remote(self) -> bool:
        """Whether they are at an address."""
        return isinstance(self.place.location, str)

    def read(self, name: str, most: int, span: Span | None = None, *, optional: bool = False) -> bytes | None:
        """Return the content of a file, or a part of it; None if it is missing.

        Args:
            name: its name relative to the folder or address, checked by the caller to have no ``..``.
            most: largest number of bytes that can be right.
            span: the part; by default all of it.
            optional: whether nothing is wrong if it was there before, as it is not with a chunk.

        Raises:
            VolumeError: it has disappeared since the volume was opened, is larger, no regular file, outside the folder or
                truncated, or the network is at fault.
        """
        if isinstance(self.place.location, str):
            return self._fetch(self.place.location, name, most, span)
        return self._read(self.place.location, name, most, span, optional=optional)

    def read_optional(self, name: str, most: int) -> bytes | None:
        """Return the content of a file that need not exist, as ``read``; what is forbidden counts as missing.

        Some servers answer "forbidden" for whatever they do not have.
        """
        try:
            return self.read(name, most, optional=True)
        except VolumeError as error:
            if isinstance(error.__cause__, PermissionError):
                return None
            raise

    def _read(self, folder: Path, name: str, most: int, span: Span | None, *, optional: bool) -> bytes | None:
        try:
            return read_file(folder, name, span, self.place.label, most)
        except _MISSING:
            if not optional:
                require_unchanged(folder, name, self.place.label, self.place.since)
            return None
        except OSError as error:
            raise VolumeError(
                f"{self.place.label}: its file {name[:80]!r} {reason(error)}; make it readable, or copy it again"
            ) from error

    def _fetch(self, address: str, name: str, most: int, span: Span | None) -> bytes | None:
        label = self.place.label
        if span is not None:
            require_size(name, span.end - span.start, label, most)
        try:
            with reporting_network_errors(label):
                content = self._reach(address, most).read(
                    name, None if span is None else (span.start, span.end)
                )
        except VolumeError as error:
            if isinstance(error.__cause__, _MISSING):
                return None
            raise
        require_size(name, len(content), label, most)
        if span is not None and len(content) != span.end - span.start:
            raise VolumeError(
                f"{label}: the server sent {len(content):,} of {span.end - span.start:,} bytes of {name[:80]!r}; "
                "it may be truncated"
            )
        return content

    def _reach(self, address: str, most: int) -> RemoteFiles:
        """Return what reads files there; connections do not survive a fork."""
        most = max(most, _LEAST)
        key = (os.getpid(), most)
        if key not in self._reached:
            self._reached[key] = RemoteFiles(address, most)
        return self._reached[key]


def read_json_object(pieces: Pieces, name: str) -> dict[str, Any] | None:
    """Return the JSON object in a file of metadata, None if it is missing.

    Raises:
        VolumeError: it is too large, not JSON, or no object.
    """
    content = pieces.read_optional(name, METADATA_BYTES)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise VolumeError(
            f"{pieces.place.label}: its file {name!r} is not JSON ({reason(error)}); copy it again"
        ) from error
    if not isinstance(found, dict):
        raise VolumeError(
            f"{pieces.place.label}: its file {name!r} holds {type(found).__name__}, not an object; copy it again"
        )
    return found


@dataclass(frozen=True)
class _Part:
    """Where a piece goes: its index, what is taken of it, and where that belongs in the result."""

    index: Index
    taken: tuple[slice, ...]
    place: tuple[slice, ...]


def assemble(
    key: tuple[slice, ...],
    pieces: tuple[int, ...],
    dtype: np.dtype[Any],
    decode: Callable[[Index], NDArray[Any] | None],
    *,
    remote: bool,
    weight: int = 1,
) -> NDArray[Any]:
    """Read a part of an array stored in pieces on a regular grid, several pieces at a time.

    Args:
        key: the part, one slice per dimension with 0 <= start < stop and step >= 1.
        pieces: the shape of a piece.
        dtype: data type of the array.
        decode: returns the piece with an index in the grid, which may be smaller than the others; None for zeros.
        remote: whether pieces come from a server, where waiting for several at once saves time.
        weight: how many times its size a piece may take while it is decoded.

    Example:
        >>> stored = np.arange(12).reshape(3, 4)
        >>> def decode(index):
        ...     return stored[2 * index[0] : 2 * index[0] + 2, 2 * index[1] : 2 * index[1] + 2]
        >>> assemble((slice(1, 3), slice(0, 4, 3)), (2, 2), np.dtype(int), decode, remote=False).tolist()
        [[4, 7], [8, 11]]
    """
    result = np.zeros([len(_wanted(part)) for part in key], dtype)

    def put(part: _Part) -> None:
        piece = decode(part.index)
        if piece is not None:
            found = piece[part.taken]
            place = tuple(
                slice(at.start, at.start + length) for at, length in zip(part.place, found.shape, strict=True)
            )
            result[place] = found

    parts = _parts(key, pieces)
    size = max(math.prod(pieces) * dtype.itemsize, 1)
    most = THREADS if remote else _DECODING if size >= _WORTH else 1
    threads = _within_memory(most, weight * size)
    alone = all(
        _wanted(part)[0] // length == _wanted(part)[-1] // length
        for part, length in zip(key, pieces, strict=True)
    )
    for _ in map_ahead(put, parts, threads=threads, ahead=0 if threads == 1 or alone else 2 * threads):
        pass
    return result


def few_pieces(
    key: tuple[slice, ...], pieces: tuple[int, ...], most: int
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Cut a part of an array into parts that lie in few pieces each; yield them and where they belong in the result.

    Args:
        key: the part, one slice per dimension with 0 <= start < stop and step >= 1.
        pieces: the shape of a piece.
        most: in how many pieces a part may lie.

    Example:
        >>> [place for _, place in few_pieces((slice(0, 7, 2), slice(0, 2)), (2, 2), 3)]
        [(slice(0, 2, None), slice(0, 2, None)), (slice(2, 4, None), slice(0, 2, None))]
    """
    rows = [_wanted(part) for part in key]
    counts = [
        len(wanted) if wanted.step >= size else wanted[-1] // size - wanted[0] // size + 1
        for wanted, size in zip(rows, pieces, strict=True)
    ]
    if math.prod(counts) <= most:
        yield key, tuple(slice(0, len(wanted)) for wanted in rows)
        return
    axis = counts.index(max(counts))
    wanted, size = rows[axis], pieces[axis]
    border = wanted[len(wanted) // 2] // size * size
    half = -((wanted.start - border) // wanted.step) if border > wanted.start else len(wanted) // 2
    for start, stop in ((0, half), (half, len(wanted))):
        inner = slice(wanted[start], wanted[stop - 1] + 1, wanted.step)
        for part, place in few_pieces((*key[:axis], inner, *key[axis + 1 :]), pieces, most):
            at = slice(start + place[axis].start, start + place[axis].stop)
            yield part, (*place[:axis], at, *place[axis + 1 :])


def reads_at_once(size: int, *, remote: bool) -> int:
    """Return how many parts of a volume are best read at once: several from a server, as far as memory allows.

    Args:
        size: bytes of the pieces that a part lies in.
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


def _indices(part: slice, size: int) -> Iterable[int]:
    """Return the indices along an axis of the pieces that hold what is wanted; computed, not listed."""
    wanted = _wanted(part)
    if wanted.step >= size:
        return (position // size for position in wanted)
    return range(wanted[0] // size, wanted[-1] // size + 1)


def _parts(key: tuple[slice, ...], pieces: tuple[int, ...]) -> Iterator[_Part]:
    """Yield the pieces that a part of an array lies in; computed, not listed."""
    if not key:
        yield _Part((), (), ())
        return
    wanted = _wanted(key[0])
    for index in _indices(key[0], pieces[0]):
        origin = index * pieces[0]
        first = max(0, -((wanted.start - origin) // wanted.step))  # of the wanted ones in this piece
        stop = min(len(wanted), -((wanted.start - origin - pieces[0]) // wanted.step))
        taken = slice(wanted[first] - origin, wanted[stop - 1] - origin + 1, wanted.step)
        for rest in _parts(key[1:], pieces[1:]):
            yield _Part((index, *rest.index), (taken, *rest.taken), (slice(first, stop), *rest.place))
