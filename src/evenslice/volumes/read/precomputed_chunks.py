"""Chunks of Neuroglancer's precomputed volumes: raw numbers, images, and compressed segmentations.

Source: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed (raw, jpeg, png) and
src/sliceview/compressed_segmentation/README.md there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["ENCODINGS", "TYPES", "Encoding"]

TYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32")
ENCODINGS = {
    "raw": TYPES,
    "jpeg": ("uint8",),
    "png": ("uint8", "uint16"),
    "compressed_segmentation": ("uint32", "uint64"),
}
"""The encodings that are read, and the data types that each can hold."""

_BITS = (0, 1, 2, 4, 8, 16, 32)
_VOXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Encoding:
    """How the chunks of a volume are encoded.

    Attributes:
        name: one of ``ENCODINGS``.
        channels: number of channels.
        dtype: data type of the voxels.
        block: size along x, y, z of the blocks of a compressed segmentation.
    """

    name: str
    channels: int
    dtype: np.dtype[Any]
    block: tuple[int, ...]

    def decode(self, content: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
        """Decode a chunk.

        Args:
            content: its encoded bytes.
            shape: its size along x, y, z.

        Returns:
            (channels, z, y, x).

        Raises:
            ValueError: it is damaged or does not have this shape.
        """
        full = (self.channels, *shape[::-1])
        if self.name == "raw":
            needed = math.prod(full) * self.dtype.itemsize
            if len(content) != needed:
                raise ValueError(
                    f"a chunk has {len(content):,} bytes where its shape {full} needs {needed:,}"
                )
            return np.frombuffer(content, self.dtype.newbyteorder("<")).reshape(full)
        if self.name == "compressed_segmentation":
            return decode_segmentation(content, full, self.dtype, self.block)
        return self._image(content, full)

    def is_gzip(self, content: bytes, shape: tuple[int, ...]) -> bool:
        """Return whether a chunk was sent as it is stored, compressed by gzip.

        A web server says so, or decompresses it; S3 sends it as it is, and s3fs does not pass on what is said about it.
        No chunk begins with these two bytes but raw voxels, whose number is known.
        """
        whole = self.name == "raw" and len(content) == self.channels * math.prod(shape) * self.dtype.itemsize
        return content.startswith(b"\x1f\x8b") and not whole

    def _image(self, content: bytes, full: tuple[int, ...]) -> NDArray[Any]:
        """Decode an image whose pixels, row by row, are the voxels, and its colours the channels."""
        import imagecodecs

        pixels = (imagecodecs.jpeg8_decode if self.name == "jpeg" else imagecodecs.png_decode)(content)
        if pixels.size != math.prod(full) or pixels.dtype != self.dtype:
            raise ValueError(
                f"a chunk is an image of {pixels.size:,} values of {pixels.dtype} where its shape {full} needs "
                f"{math.prod(full):,} of {self.dtype}"
            )
        found: NDArray[Any] = np.moveaxis(pixels.reshape(*full[1:], self.channels), -1, 0)
        return found


def decode_segmentation(
    content: bytes, full: tuple[int, ...], dtype: np.dtype[Any], block: tuple[int, ...]
) -> NDArray[Any]:
    """Decode a compressed segmentation.

    Args:
        content: little-endian 32-bit words: the position of each channel, then the channels.
        full: (channels, z, y, x).
        dtype: uint32 or uint64.
        block: size along x, y, z of the blocks, each of which has a table of its labels and few bits for each voxel.

    Raises:
        ValueError: a position is outside the content, or the width of numbers is none that the format has.
    """
    if len(content) % 4:
        raise ValueError("a compressed segmentation does not consist of 32-bit words")
    words = np.frombuffer(content, "<u4")
    result = np.empty(full, dtype)
    for channel, start in enumerate(_take(words, np.arange(full[0])).tolist()):
        _decode_channel(words[start:], result[channel], block[::-1])
    return result


def _decode_channel(words: NDArray[Any], result: NDArray[Any], block: tuple[int, ...]) -> None:
    """Decode one channel (z, y, x) into ``result``; blocks are counted, and filled, x first."""
    grid = tuple(-(-length // size) for length, size in zip(result.shape, block, strict=True))
    headers = _take(words, np.arange(2 * math.prod(grid))).reshape(*grid, 2)
    # Beyond a chunk, blocks are not decoded; z is the slowest axis in them.
    depth = min(block[0], result.shape[0])
    voxels = depth * math.prod(block[1:])
    rows = max(1, _VOXELS_AT_ONCE // (voxels * grid[2]))  # of blocks, to hold less at once
    for layer, row in product(range(grid[0]), range(0, grid[1], rows)):
        found = headers[layer, row : row + rows]
        part = result[layer * block[0] :, row * block[1] :][: block[0], : rows * block[1]]
        blocks = _decode_blocks(words, found.reshape(-1, 2), voxels, result.dtype)
        blocks = blocks.reshape(*found.shape[:2], depth, *block[1:]).transpose(2, 0, 3, 1, 4)
        whole = blocks.reshape(depth, len(found) * block[1], grid[2] * block[2])
        part[...] = whole[: len(part), : part.shape[1], : part.shape[2]]


def _decode_blocks(
    words: NDArray[Any], headers: NDArray[Any], voxels: int, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Decode blocks of equal size: (blocks, 2) headers to (blocks, voxels)."""
    tables, bits = headers[:, 0] & 0xFFFFFF, headers[:, 0] >> 24
    if not np.isin(bits, _BITS).all():
        raise ValueError(
            "a block of a compressed segmentation has numbers of a width that the format does not have"
        )
    wide = dtype.itemsize // 4
    result = np.empty((len(headers), voxels), dtype)
    for width in np.unique(bits).tolist():
        for chosen in _groups(np.flatnonzero(bits == width), max(1, _VOXELS_AT_ONCE // voxels)):
            entries = _entries(words, headers[chosen, 1], width, voxels)
            places = tables[chosen].astype(np.int64)[:, None] + wide * entries
            labels = _take(words, places).astype(dtype)
            if wide == 2:
                labels |= _take(words, places + 1).astype(dtype) << np.uint64(32)
            result[chosen] = labels
    return result


def _groups(items: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _entries(words: NDArray[Any], starts: NDArray[Any], width: int, voxels: int) -> NDArray[np.int64]:
    """Return for each voxel of some blocks which entry of the block's table it has: (blocks, voxels)."""
    if width == 0:
        return np.zeros((len(starts), voxels), np.int64)
    each = 32 // width
    needed = -(-voxels // each)
    packed = _take(words, starts.astype(np.int64)[:, None] + np.arange(needed))
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(width)
    entries = (packed[..., None] >> shifts) & np.uint32(2**width - 1)
    found: NDArray[np.int64] = entries.reshape(len(starts), -1)[:, :voxels].astype(np.int64)
    return found


def _take(words: NDArray[Any], places: NDArray[Any]) -> NDArray[Any]:
    """Return the words at some places, all of which must exist."""
    if places.size and int(places.max()) >= len(words):
        raise ValueError("a compressed segmentation is truncated, or points behind its end")
    found: NDArray[Any] = words[places]
    return found
