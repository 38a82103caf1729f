"""Decompressing pieces of volumes from strangers, never to more than their shape allows."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from typing import Any

from evenslice._core import needs_extra

__all__ = ["decompress", "inflate", "unpack", "zstd_size"]

_MOST_MEMBERS = 1024  # of a gzip file; each costs a copy of what follows
_ZSTD_FRAME, _ZSTD_SKIPPABLE = 0xFD2FB528, 0x184D2A50  # the last hexadecimal digit of the second may be any


def unpack(name: str, buffer: Any, most: int) -> bytes | None:
    """Decompress a chunk if the codec's own decoder has no limit; else check the size that it claims.

    Returns:
        The decompressed bytes, or None if the codec's own decoder may be used.

    Raises:
        ValueError: it decompresses to more than ``most`` bytes, or is truncated.
    """
    if name not in ("gzip", "zlib", "bz2", "lzma", "blosc", "lz4", "zstd"):
        return None  # a checksum or a filter, which changes the size at most by the factor of its data types
    packed = memoryview(buffer).cast("B")
    claimed = 0
    unpacked = None
    if name in ("gzip", "zlib"):
        unpacked = inflate(packed, most + 1)
    elif name == "bz2":
        unpacked = bz2.BZ2Decompressor().decompress(packed, most + 1)
    elif name == "lzma":
        unpacked = lzma.LZMADecompressor(memlimit=2**28 + most).decompress(packed, most + 1)
    elif name == "blosc":
        # The decoder trusts the header and reads beyond the end of a chunk that is shorter than it says.
        if len(packed) < 16 or struct.unpack_from("<I", packed, 12)[0] != len(packed):
            raise ValueError("a chunk is truncated")
        claimed = struct.unpack_from("<I", packed, 4)[0]
    elif name == "lz4" and len(packed) >= 4:
        claimed = struct.unpack_from("<I", packed)[0]
    elif name == "zstd":
        claimed = zstd_size(packed)
    found = claimed if unpacked is None else len(unpacked)
    if found > most:
        raise ValueError(f"a chunk decompresses to more than the {most:,} bytes that its shape allows")
    return unpacked


def decompress(packed: bytes, codec: str, most: int) -> bytes:
    """Decompress a chunk, to at most ``most`` bytes.

    Args:
        packed: the chunk.
        codec: what numcodecs calls the compression.
        most: largest number of bytes that can be right.

    Raises:
        ValueError: it is damaged or decompresses to more.

    Example:
        >>> decompress(bz2.compress(b"aaa"), "bz2", 3)
        b'aaa'
    """
    unpacked = unpack(codec, packed, most)
    if unpacked is not None:
        return unpacked
    with needs_extra("volumes", f"reading chunks compressed with {codec}"):
        import numcodecs
    return bytes(numcodecs.get_codec({"id": codec}).decode(packed))


def inflate(packed: bytes | memoryview, most: int) -> bytes:
    """Decompress gzip of one or several members, or zlib, up to ``most`` bytes.

    Raises:
        ValueError: it ends too early.

    Example:
        >>> inflate(zlib.compress(b"aaaaaaaaa"), 3)
        b'aaa'
    """
    pieces, missing = [], most
    for _ in range(_MOST_MEMBERS):
        decompressor = zlib.decompressobj(wbits=47)
        pieces.append(decompressor.decompress(packed, missing))
        missing -= len(pieces[-1])
        if not decompressor.eof and missing:
            raise ValueError("a chunk is truncated")
        rest = decompressor.unused_data
        if not missing or not rest.startswith(b"\x1f\x8b"):
            break
        packed = rest
    return b"".join(pieces)


def zstd_size(packed: bytes | memoryview) -> int:
    """Return the most bytes that Zstandard frames can decompress to, from their headers.

    Source: RFC 8878, section 3.1: a frame states its size, or consists of blocks of at most 128 KiB; a skippable frame
    holds none.

    Raises:
        ValueError: there is anything else than frames.
    """
    total, position = 0, 0
    while position < len(packed):
        magic = int.from_bytes(packed[position : position + 4], "little")
        if magic & ~0xF == _ZSTD_SKIPPABLE:
            position += 8 + int.from_bytes(packed[position + 4 : position + 8], "little")
            continue
        if magic != _ZSTD_FRAME or position + 5 > len(packed):
            raise ValueError(f"a chunk holds no Zstandard frame at byte {position:,}")
        descriptor = packed[position + 4]
        single = descriptor >> 5 & 1
        position += 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
        width = (single, 2, 4, 8)[descriptor >> 6]
        stated = int.from_bytes(packed[position : position + width], "little") + (256 if width == 2 else 0)
        position += width
        blocks, last = 0, 0
        while not last and position + 3 <= len(packed):
            header = int.from_bytes(packed[position : position + 3], "little")
            last, kind, size = header & 1, header >> 1 & 3, header >> 3
            position += 3 + (1 if kind == 1 else size)
            blocks += 1
        position += 4 if descriptor >> 2 & 1 else 0
        # The format allows no block above 128 KiB; the decoder refuses it.
        total += stated if width else blocks * 2**17
    return total
