"""Finding chunks in the shards of Neuroglancer's precomputed volumes.

Source: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md. A shard starts with an
index of its minishards, each of which has an index of its chunks; of a shard only these and the chunk are read.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.volumes.read.chunk_files import decompress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.volumes.read.chunk_files import ChunkFiles

__all__ = ["Shards", "chunk_number", "murmur_hash"]

TYPE = "neuroglancer_uint64_sharded_v1"
LARGEST_INDEX = 2**26
"""Size limit in bytes of the index of chunks in a minishard."""

_ENTRY = 16
_KEPT = 2**26  # bytes of indices that are kept
_ENCODINGS = ("raw", "gzip")
_HASHES = ("identity", "murmurhash3_x86_128")
_MASK = 2**32 - 1


class Shards:
    """The chunks of a scale, stored in shards.

    Args:
        sharding: the metadata of the shards.
        files: the files of the volume.
        folder: that of the scale.
        grid: number of chunks along x, y, z.

    Raises:
        TypeError, KeyError, ValueError: the metadata cannot be right.
    """

    def __init__(self, sharding: Any, files: ChunkFiles, folder: str, grid: tuple[int, ...]) -> None:
        if sharding["@type"] != TYPE:
            raise ValueError(f"its type is {str(sharding['@type'])[:40]!r}, not {TYPE}")
        bits = [sharding[name] for name in ("preshift_bits", "minishard_bits", "shard_bits")]
        most = [64, 32, 64]
        if any(
            type(count) is not int or not 0 <= count <= limit for count, limit in zip(bits, most, strict=True)
        ):
            raise ValueError(f"its numbers of bits are {str(bits)[:60]}")
        packed = [sharding.get(name, "raw") for name in ("minishard_index_encoding", "data_encoding")]
        if any(name not in _ENCODINGS for name in packed) or sharding["hash"] not in _HASHES:
            raise ValueError("it has an unknown hash or encoding")
        if sum(bits[1:]) > 64 or sum(_bits(grid)) > 64:
            raise ValueError("there are more chunks than 2^64")
        self._files, self._folder, self._grid = files, folder, grid
        # Bits of a chunk's number that are dropped before it is hashed; of the hash, those that choose the minishard, and
        # those above them that choose the shard.
        self._preshift, self._minishards, self._shards = bits
        self._hashed = sharding["hash"] != "identity"
        self._packed_index, self._packed_data = (name == "gzip" for name in packed)
        self._indices: OrderedDict[tuple[int, int], NDArray[np.uint64]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, cell: tuple[int, ...], most: int) -> bytes | None:
        """Return the encoded chunk at a place (x, y, z) in the grid; None if it is not stored.

        Args:
            cell: the place.
            most: the most bytes that the chunk can have.

        Raises:
            ValueError: an index is damaged.
            VolumeError: the shard cannot be read.
        """
        number = chunk_number(cell, self._grid)
        value = number >> self._preshift if self._preshift < 64 else 0
        value = murmur_hash(value) if self._hashed else value
        minishard = value & (2**self._minishards - 1)
        shard = value >> self._minishards & (2**self._shards - 1)
        name = f"{self._folder}/{shard:0{max(1, -(-self._shards // 4))}x}.shard"
        numbers, starts, sizes = self._index(shard, minishard, name)
        place = int(np.searchsorted(numbers, np.uint64(number)))
        if place == len(numbers) or int(numbers[place]) != number:
            return None
        span = self._span(int(starts[place]), int(starts[place]) + int(sizes[place]))
        content = self._part(name, most, span)
        return decompress(content, "gzip") if content and self._packed_data else content

    def _index(self, shard: int, minishard: int, name: str) -> NDArray[np.uint64]:
        """Return the numbers, starts and sizes of the chunks of a minishard, (3, chunks), in the order of numbers."""
        with self._lock:
            if (shard, minishard) in self._indices:
                self._indices.move_to_end((shard, minishard))
                return self._indices[shard, minishard]
        found = self._read_index(minishard, name)
        with self._lock:
            self._indices[shard, minishard] = found
            while (
                len(self._indices) > 1 and sum(index.nbytes + 200 for index in self._indices.values()) > _KEPT
            ):
                self._indices.popitem(last=False)
        return found

    def _read_index(self, minishard: int, name: str) -> NDArray[np.uint64]:
        nothing = np.zeros((3, 0), np.uint64)
        entry = self._part(name, _ENTRY, slice(_ENTRY * minishard, _ENTRY * (minishard + 1)))
        if entry is None:
            return nothing
        start, stop = struct.unpack("<QQ", entry)
        if start == stop:
            return nothing
        content = self._part(name, LARGEST_INDEX, self._span(start, stop))
        if content is not None and self._packed_index:
            content = decompress(content, "gzip")
        if content is None or len(content) % 24:
            raise ValueError(f"an index in {name} is damaged")
        index = np.frombuffer(content, "<u8").reshape(3, -1).astype(np.uint64)
        index[0] = np.cumsum(index[0])  # stored as differences; a chunk starts where the one before it ends
        index[1] = np.cumsum(index[1]) + np.cumsum(index[2]) - index[2]
        return index[:, np.argsort(index[0], kind="stable")]

    def _span(self, start: int, stop: int) -> slice:
        """Return a part of a shard, whose positions count from the end of its own index."""
        if not 0 <= start <= stop < 2**62:
            raise ValueError(f"an index of a shard points to bytes {start} to {stop}")
        return slice(_ENTRY * 2**self._minishards + start, _ENTRY * 2**self._minishards + stop)

    def _part(self, name: str, most: int, span: slice) -> bytes | None:
        return b"" if span.start == span.stop else self._files.read(name, most, span)


def _bits(grid: tuple[int, ...]) -> list[int]:
    """Return how many bits an index along each axis can have."""
    return [(length - 1).bit_length() for length in grid]


def chunk_number(cell: tuple[int, ...], grid: tuple[int, ...]) -> int:
    """Return the compressed Morton code of a place in a grid: the bits of its indices in turn, those needed.

    Example:
        >>> chunk_number((1, 1, 0), (2, 4, 1)), chunk_number((0, 2, 0), (2, 4, 1))
        (3, 4)
    """
    bits = _bits(grid)
    number = place = 0
    for bit in range(max(bits)):
        for index, length in zip(cell, bits, strict=True):
            if bit < length:
                number |= (index >> bit & 1) << place
                place += 1
    return number


def murmur_hash(value: int) -> int:
    """Return the lower 64 bits of MurmurHash3_x86_128 of a number as eight little-endian bytes, seed 0.

    Example:
        >>> murmur_hash(0)
        5148371408780832321
    """
    low, high = value & _MASK, value >> 32
    # Eight bytes are a tail of two words; the other two lanes start, and stay, at the seed.
    hashes = [_mix(low, 0x239B961B, 15, 0xAB0E9789), _mix(high, 0xAB0E9789, 16, 0x38B34AE5), 0, 0]
    hashes = [item ^ 8 for item in hashes]
    hashes = _spread([_final(item) for item in _spread(hashes)])
    return hashes[0] | hashes[1] << 32


def _mix(word: int, factor: int, turn: int, after: int) -> int:
    word = word * factor & _MASK
    return (word << turn | word >> 32 - turn) * after & _MASK


def _spread(hashes: list[int]) -> list[int]:
    first = sum(hashes) & _MASK
    return [first, *((item + first) & _MASK for item in hashes[1:])]


def _final(item: int) -> int:
    item = (item ^ item >> 16) * 0x85EBCA6B & _MASK
    item = (item ^ item >> 13) * 0xC2B2AE35 & _MASK
    return item ^ item >> 16
