"""Contiguous uncompressed voxels in a file, read with system calls.

Not through a memory map: a file that another program shortens would kill a process that has mapped it. Here it is an
error. Windows, which lacks these calls, lets nobody shorten a mapped file.
"""

from __future__ import annotations

import math
import os
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evenslice._core import VolumeError, open_regular
from evenslice.volumes.read.checks import require_bytes
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FileSource", "FileVoxels"]

PIECE_BYTES = 2**24
"""Most bytes that are read at once to pick some from."""

KEPT_BYTES, KEPT_LENGTH = 2**25, 64
"""Size limits of the part that is kept for the reads that follow, in all and along the last axis."""

_CALL_BYTES = 2**13
"""Bytes that are copied in about the time that a call takes."""


class FileVoxels:
    """An array in a file.

    Args:
        path: the file.
        label: the path that the user opened, for messages.
        dtype: stored data type, including byte order.
        offset: where the voxels start, in bytes.
        shape: number of voxels along each axis.
        order: "C" if the last axis varies fastest, "F" if the first one does.

    Raises:
        VolumeError: the file is too short to hold them.

    Example:
        >>> import tempfile; from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "voxels.raw"
        >>> _ = path.write_bytes(bytes(range(24)))
        >>> voxels = FileVoxels(path, "voxels.raw", np.dtype("u1"), 0, (2, 3, 4))
        >>> voxels.read((slice(1, 2), slice(0, 3, 2), slice(1, 3))).tolist()
        [[[13, 14], [21, 22]]]
    """

    def __init__(
        self,
        path: Path,
        label: str,
        dtype: np.dtype[Any],
        offset: int,
        shape: tuple[int, ...],
        order: Literal["C", "F"] = "C",
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._label, self._offset, self._reversed = path, label, offset, order == "F"
        self._mapped: NDArray[Any] | None = None
        self._last: tuple[slice, ...] = ()
        self._kept: tuple[tuple[slice, ...], int, NDArray[Any]] | None = None
        if 0 in shape:
            self._mapped = np.empty(shape, dtype)  # nothing to read; `arrange` refuses it later
            return
        require_bytes(path, label, offset + math.prod(shape) * dtype.itemsize)
        if not hasattr(os, "preadv"):
            self._mapped = np.memmap(path, dtype, "r", offset, shape, order)
            return

    @property
    def fresh(self) -> bool:
        """Whether what ``read`` returns is the caller's, if it can be written to."""
        return self._mapped is None

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the part under ``key``: one slice per axis, not empty, within the axis, with a positive step or none.

        Raises:
            VolumeError: the file has become too short.
        """
        if self._mapped is not None:
            return self._mapped[key]
        with open_regular(self._path) as file:
            if self._reversed:
                return self._read_ahead(file.fileno(), self.shape[::-1], key[::-1]).transpose()
            return self._read_ahead(file.fileno(), self.shape, key)

    def _read_ahead(self, file: int, shape: tuple[int, ...], key: tuple[slice, ...]) -> NDArray[Any]:
        """Read a part of an array in C order; of one that is read across its rows, keep what the next reads will ask for.

        Each index of the last axis alone takes as much reading as many of them.
        """
        *rest, last = key
        others = tuple(rest)
        size = math.prod(len(range(part.start, part.stop, part.step or 1)) for part in others)
        most = min(KEPT_LENGTH, KEPT_BYTES // (size * self.dtype.itemsize))
        if last.stop - last.start > 1 or most < 2 or shape[-1] < 2:
            return self._read(file, shape, key)
        again, self._last = others == self._last, others
        if not again:
            return self._read(file, shape, key)
        changed, start = os.fstat(file).st_mtime_ns, last.start - last.start % most
        ahead = slice(start, min(start + most, shape[-1]))
        wanted = (*others, ahead)
        kept = self._kept  # another thread may replace it meanwhile
        if kept is None or kept[:2] != (wanted, changed):
            kept = (wanted, changed, self._read(file, shape, wanted))
            kept[2].setflags(write=False)  # so that callers copy what they change
            self._kept = kept
        return kept[2][..., last.start - start : last.stop - start]

    def _read(self, file: int, shape: tuple[int, ...], key: tuple[slice, ...]) -> NDArray[Any]:
        """Read a part of an array in C order."""
        ranges = [range(part.start, part.stop, part.step or 1) for part in key]
        out = np.empty([len(steps) for steps in ranges], self.dtype)
        strides = [math.prod(shape[axis + 1 :]) * self.dtype.itemsize for axis in range(len(shape))]
        axis, whole = _cheapest(shape, ranges, strides)
        rows, inner = ranges[axis], shape[axis + 1 :]
        piece = len(rows) if whole else max(1, PIECE_BYTES // (strides[axis] * rows.step))
        # Memory that has been written to is faster to write to.
        buffer = None if whole else np.empty((min(piece, len(rows)) * rows.step, *inner), self.dtype)
        for outer in product(*(list(enumerate(steps)) for steps in ranges[:axis])):
            start = self._offset + sum(
                index * stride for (_, index), stride in zip(outer, strides, strict=False)
            )
            target = out[tuple(position for position, _ in outer)]
            for first in range(0, len(rows), piece):
                part = rows[first : first + piece]
                at = start + part[0] * strides[axis]
                if buffer is None:
                    self._fill(file, target, at)
                    continue
                block = buffer[: part[-1] + 1 - part[0]]
                self._fill(file, block, at)
                target[first : first + len(part)] = block[(slice(None, None, rows.step), *key[axis + 1 :])]
        return out

    def _fill(self, file: int, array: NDArray[Any], position: int) -> None:
        """Fill a contiguous array with the bytes of the file from a position on."""
        rest = array.reshape(-1).view(np.uint8).data
        while rest:
            count = os.preadv(file, [rest], position)
            if not count:
                raise VolumeError(
                    f"{self._label}: {self._path.name} has become shorter since it was opened; copy it again"
                )
            rest, position = rest[count:], position + count


class FileSource(VoxelSource):
    """A volume that is one such array."""

    def __init__(self, voxels: FileVoxels) -> None:
        self._voxels = voxels
        self.shape, self.dtype, self.fresh = voxels.shape, voxels.dtype, voxels.fresh

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read the part."""
        return self._voxels.read(key)


def _cheapest(shape: tuple[int, ...], ranges: list[range], strides: list[int]) -> tuple[int, bool]:
    """Return along which axis to read rows with all that they contain, and whether all of it is asked for.

    Rows of an inner axis are short and take many calls; those of an outer one contain voxels that nobody asked for.
    """
    found: list[tuple[int, int, bool]] = []
    whole = True
    for axis in reversed(range(len(shape))):
        rows = ranges[axis]
        span = rows[-1] + 1 - rows[0]
        exact = whole and (rows.step == 1 or len(rows) == 1)
        if not exact and axis < len(shape) - 1 and strides[axis] * rows.step > PIECE_BYTES:
            break
        copies = 1 if exact else 2
        calls = math.prod(map(len, ranges[:axis]))
        found.append((calls * (_CALL_BYTES + copies * span * strides[axis]), axis, exact))
        whole = whole and len(rows) == shape[axis] and exact
    _, axis, exact = min(found)
    return axis, exact
