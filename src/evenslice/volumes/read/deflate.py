"""Random access to a deflate stream (gzip or zlib).

Such a stream can only be decompressed from its start. While it is read, a copy of the decompressor is kept every few
MiB, and a later read starts from the nearest copy. The package indexed_gzip does this for gzip files only; MetaImage
stores zlib, and NRRD puts its header before the gzip stream.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

__all__ = ["MOST_COMPRESSION", "DeflatedFile", "read_in_parts"]

MOST_COMPRESSION = 1032
"""Deflate expands one byte to at most 1,032 (Adler and Gailly, zlib technical details)."""

PART_BYTES = 2**24
"""Most bytes of an array that are decompressed at once to pick some from."""

_GZIP = b"\x1f\x8b"  # what each member begins with
_PIECE_BYTES = 2**18
_STEP_BYTES = 2**22
_MOST_COPIES = 1024  # each takes about 50 kB


@dataclass(frozen=True)
class _Entry:
    """A point to continue from: the first ``used`` bytes of the file yield ``done`` bytes."""

    used: int
    done: int
    decompressor: zlib._Decompress


class DeflatedFile:
    """The uncompressed bytes of a stream in a file.

    It keeps no file open and may be used from several threads.

    Args:
        path: the file.
        label: the path that the user opened, for messages.
        offset: where the compressed stream starts.
        length: number of uncompressed bytes that the header claims.

    Raises:
        VolumeError: the file cannot hold that many.

    Example:
        >>> import tempfile; from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> _ = path.write_bytes(b"head" + zlib.compress(b"0123456789"))
        >>> DeflatedFile(path, "a", 4, 10).read(3, 5)
        b'34567'
    """

    def __init__(self, path: Path, label: str, offset: int, length: int) -> None:
        held = path.stat().st_size - offset
        if length > held * MOST_COMPRESSION:
            raise VolumeError(
                f"{label}: is truncated, its header claims {length:,} bytes and {path.name} holds at most "
                f"{max(held, 0) * MOST_COMPRESSION:,}; copy it again"
            )
        self._path, self._label = path, label
        self._step = max(_STEP_BYTES, length // _MOST_COPIES)
        # Entry n is at or before byte n * step.
        self._entries = {0: _Entry(offset, 0, _decompressor())}

    def read(self, start: int, count: int) -> bytes:
        """Return ``count`` uncompressed bytes starting at byte ``start``.

        Raises:
            VolumeError: the stream ends earlier or is damaged.
        """
        entries = self._entries
        nearest = start // self._step
        while nearest not in entries:
            nearest -= 1
        with open_regular(self._path) as file:
            pieces = _Pieces(file, entries[nearest])
            while pieces.done < start:
                skipped = pieces.take(min(self._step - pieces.done % self._step, start - pieces.done))
                if not skipped:
                    break
                if pieces.done % self._step == 0:
                    entries.setdefault(pieces.done // self._step, pieces.entry())
            content = bytearray()
            while len(content) < count and (piece := pieces.take(count - len(content))):
                content += piece
        if len(content) < count:
            raise VolumeError(
                f"{self._label}: is truncated, {self._path.name} ends after {pieces.done:,} uncompressed "
                "bytes; copy it again"
            )
        return bytes(content)


class _Pieces:
    """A stream that is decompressed piece by piece."""

    def __init__(self, file: BinaryIO, entry: _Entry) -> None:
        self._file, self._decompressor = file, entry.decompressor.copy()
        self._used, self.done = entry.used, entry.done
        file.seek(entry.used)
        self._waiting = b""
        self._ended = False

    def take(self, most: int) -> bytes:
        """Return up to ``most`` bytes, or none at the end of the stream."""
        piece = b""
        while not piece and not self._ended:
            self._waiting = self._waiting or self._file.read(_PIECE_BYTES)
            given = len(self._waiting)
            piece = self._decompressor.decompress(self._waiting, min(most, _PIECE_BYTES))
            self._waiting = self._decompressor.unconsumed_tail or self._decompressor.unused_data
            self._used += given - len(self._waiting)
            if self._decompressor.eof:
                # A gzip file may consist of several members.
                if len(self._waiting) < len(_GZIP):
                    self._waiting += self._file.read(_PIECE_BYTES)
                self._ended = not self._waiting.startswith(_GZIP)
                self._decompressor = _decompressor()
            elif not given and not piece:
                self._ended = True  # the file ends within the stream
        self.done += len(piece)
        return piece

    def entry(self) -> _Entry:
        """Return the current point, to continue from later."""
        return _Entry(self._used, self.done, self._decompressor.copy())


def _decompressor() -> zlib._Decompress:
    return zlib.decompressobj(wbits=47)  # zlib or gzip, detected from the first bytes


def read_in_parts(
    key: tuple[slice, ...],
    strides: Sequence[int],
    dtype: np.dtype[Any],
    read: Callable[[tuple[slice, ...]], NDArray[Any]],
    *,
    whole: int = 0,
) -> NDArray[Any]:
    """Return a part of a compressed array whose first axis varies fastest, with little more in memory than that part.

    What lies between the first and the last voxel of a part has to be decompressed. So a part that spans far more than it
    holds, such as a slice along the first axis, is read in parts that span less.

    Args:
        key: one slice per axis, not empty.
        strides: distance of neighbours along each axis, in bytes, ascending.
        dtype: of the array.
        read: returns the part under a key, at a cost in memory of what it spans.
        whole: number of the first axes that ``read`` reads whole, whatever it is asked for.

    Example:
        >>> array = np.asfortranarray(np.arange(24).reshape(2, 3, 4))
        >>> read_in_parts((slice(1, 2), slice(0, 3), slice(0, 4, 3)), array.strides, array.dtype, array.__getitem__).shape
        (1, 3, 2)
    """
    ranges = [range(part.start, part.stop, part.step or 1) for part in key]
    axis = max((n for n, rows in enumerate(ranges) if len(rows) > 1), default=0)
    rows, stride = ranges[axis], strides[axis]
    span, lengths = (rows[-1] + 1 - rows[0]) * stride, [len(steps) for steps in ranges]
    if len(rows) == 1 or axis < whole or span <= max(PART_BYTES, 2 * math.prod(lengths) * dtype.itemsize):
        return read(key)
    out = np.empty(lengths, dtype, order="F")
    count = max(1, PART_BYTES // (stride * rows.step))
    for start in range(0, len(rows), count):
        part = rows[start : start + count]
        inner = (*key[:axis], slice(part[0], part[-1] + 1, rows.step), *key[axis + 1 :])
        place = (*[slice(None)] * axis, slice(start, start + len(part)))
        out[place] = read_in_parts(inner, strides, dtype, read, whole=whole)
    return out
