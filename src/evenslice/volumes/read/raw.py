"""Voxels after a text header, as in MetaImage and NRRD: raw, or compressed as one stream."""

from __future__ import annotations

import bz2
import math
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evenslice._core import VolumeError, open_regular
from evenslice.volumes.read.deflate import DeflatedFile, read_in_parts
from evenslice.volumes.read.file_voxels import FileVoxels
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["HEADER_BYTES", "IN_MEMORY", "Encoding", "RawSource", "head_of"]

IN_MEMORY = 2**27
"""Size limit in bytes of compressed voxels that are decompressed once and kept."""

Encoding = Literal["raw", "deflate", "bzip2"]

HEADER_BYTES = 2**16


class RawSource(VoxelSource):
    """A volume that is the voxels in a file from an offset on, with the first axis varying fastest.

    Args:
        path: the file.
        label: the path that the user opened, for messages.
        dtype: stored data type, including byte order.
        shape: number of voxels along each axis, the fastest first.
        offset: where they start, in bytes.
        encoding: how they are stored.
        skip: how many bytes precede them once they are decompressed.

    Raises:
        VolumeError: the file cannot hold what the header claims.
    """

    def __init__(
        self,
        path: Path,
        label: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        offset: int,
        encoding: Encoding,
        skip: int = 0,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._label, self._offset, self._skip = path, label, offset, skip
        self._nbytes = math.prod(shape) * dtype.itemsize
        if offset < 0 or min(shape, default=0) < 0:
            raise VolumeError(
                f"{label}: its header claims the impossible shape {shape} from byte {offset:,} on; the file is damaged"
            )
        self._raw = FileVoxels(path, label, dtype, offset, shape, "F") if encoding == "raw" else None
        self.fresh = self._raw is not None and self._raw.fresh
        self._deflated = (
            DeflatedFile(path, label, offset, skip + self._nbytes)
            if encoding == "deflate" and self._nbytes
            else None
        )
        if encoding == "bzip2" and skip + self._nbytes > IN_MEMORY:
            raise VolumeError(
                f"{label}: is compressed with bzip2, which can only be read whole and up to {IN_MEMORY:,} "
                "bytes; save it with gzip"
            )

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the part under ``key``; a large compressed file is decompressed from the first to the last voxel of the part."""
        if self._raw is not None:
            return self._raw.read(key)
        if self._deflated is None or self._nbytes <= IN_MEMORY:
            return self._in_memory[key]
        return read_in_parts(key, self._strides, self.dtype, partial(self._read_span, self._deflated))

    @cached_property
    def _strides(self) -> list[int]:
        strides: list[int] = np.cumprod([self.dtype.itemsize, *self.shape[:-1]], dtype=np.int64).tolist()
        return strides

    def _read_span(self, file: DeflatedFile, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decompress all that lies between the first and the last voxel of a part."""
        strides = self._strides
        first = sum(part.start * stride for part, stride in zip(key, strides, strict=True))
        last = sum((part.stop - 1) * stride for part, stride in zip(key, strides, strict=True))
        content = file.read(self._skip + first, last + self.dtype.itemsize - first)
        lengths = [len(range(part.start, part.stop, part.step or 1)) for part in key]
        steps = [stride * (part.step or 1) for part, stride in zip(key, strides, strict=True)]
        return np.ndarray(lengths, self.dtype, content, 0, steps)

    @cached_property
    def _in_memory(self) -> NDArray[Any]:
        """All voxels of a compressed file."""
        if self._deflated is not None:
            content = self._deflated.read(self._skip, self._nbytes)
        else:
            end = self._skip + self._nbytes
            with open_regular(self._path) as file:
                file.seek(self._offset)
                content = bz2.BZ2Decompressor().decompress(file.read(end + HEADER_BYTES), end)[self._skip :]
        if len(content) < self._nbytes:
            raise VolumeError(
                f"{self._label}: is truncated, its header claims {self._nbytes:,} bytes and "
                f"{self._path.name} holds {len(content):,}; copy it again"
            )
        return np.frombuffer(content, self.dtype).reshape(self.shape, order="F")


def head_of(path: Path, size: int = HEADER_BYTES) -> bytes:
    """Return the first bytes of a file, which must contain its text header."""
    with open_regular(path) as file:
        return file.read(size)
