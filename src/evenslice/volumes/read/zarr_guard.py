"""Bounds on the memory that an untrusted Zarr array can take.

Zarr decompresses a chunk to whatever size its bytes expand to. Here, it is never decompressed to more than its shape
allows. (Codecs of Python objects, one of which unpickles, belong to data types that Zarr itself no longer reads.)
"""

from __future__ import annotations

import bz2
import lzma
import math
import struct
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["guarded", "inflate"]

_SLACK_BYTES = 2**16
_WIDEST = 8
"""Factor by which filters may widen numbers: from one byte to eight."""

_MOST_MEMBERS = 1024  # of a gzip file; each costs a copy of what follows

LARGEST_INDEX = 2**26
"""Size limit in bytes of the index of chunks in a shard."""


def guarded(array: Any, store: Any) -> Any:
    """Return a Zarr array with the same voxels that raises if a chunk decompresses to more than its shape allows.

    Args:
        array: an open ``zarr.Array``.
        store: the store to read its chunks from.
    """
    import zarr

    metadata = array.metadata
    size = math.prod(array.chunks) * array.dtype.itemsize
    changes = (
        _bounded_v2(metadata, size)
        if metadata.zarr_format == 2
        else {"codecs": tuple(_bounded_v3(metadata.codecs, size))}
    )
    inner = array.async_array
    place = type(inner.store_path)(store, inner.store_path.path)
    return zarr.Array(type(inner)(replace(metadata, **changes), place))


def _bounded_v2(metadata: Any, size: int) -> Mapping[str, Any]:
    from numcodecs.abc import Codec

    class Bounded(Codec):  # type: ignore[misc]  # numcodecs has no types
        """A codec of format 2 that decompresses at most the bytes of a chunk."""

        codec_id = "bounded"  # required by Zarr; nothing is ever written with it

        def __init__(self, inner: Any, most: int) -> None:
            self.inner, self.most = inner, most

        def encode(self, buf: Any) -> Any:
            return self.inner.encode(buf)

        def decode(self, buf: Any, out: Any = None) -> Any:
            unpacked = _unpack(self.inner.codec_id, buf, self.most)
            return self.inner.decode(buf, out) if unpacked is None else unpacked

        def get_config(self) -> dict[str, Any]:
            return dict(self.inner.get_config())

    most = size * (_WIDEST if metadata.filters else 1) + _SLACK_BYTES
    filters = None if metadata.filters is None else tuple(Bounded(item, most) for item in metadata.filters)
    return {
        "compressor": None if metadata.compressor is None else Bounded(metadata.compressor, most),
        "filters": filters,
    }


def _bounded_v3(codecs: tuple[Any, ...], size: int) -> list[Any]:
    from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec
    from zarr.codecs import ShardingCodec

    class Bounded(BytesBytesCodec):
        """A codec of format 3 that decompresses at most the bytes of a chunk."""

        def __init__(self, inner: Any, most: int) -> None:
            self.inner, self.most = inner, most
            self.is_fixed_size = inner.is_fixed_size
            self.name = str(inner.to_dict()["name"]).removeprefix("numcodecs.")

        def evolve_from_array_spec(self, array_spec: Any) -> Any:
            return Bounded(self.inner.evolve_from_array_spec(array_spec), self.most)

        async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
            unpacked = _unpack(self.name, chunk_data.as_numpy_array(), self.most)
            if unpacked is None:
                return await self.inner._decode_single(chunk_data, chunk_spec)  # noqa: SLF001
            return chunk_spec.prototype.buffer.from_bytes(unpacked)

        def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
            return int(self.inner.compute_encoded_size(input_byte_length, chunk_spec))

        def to_dict(self) -> Any:
            return self.inner.to_dict()

    widened = any(isinstance(codec, ArrayArrayCodec) for codec in codecs)
    most = size * (_WIDEST if widened else 1) + _SLACK_BYTES
    result: list[Any] = []
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            inner = _bounded_v3(codec.codecs, size)
            index = _bounded_v3(codec.index_codecs, LARGEST_INDEX)
            result.append(replace(codec, codecs=tuple(inner), index_codecs=tuple(index)))
        elif isinstance(codec, BytesBytesCodec):
            result.append(Bounded(codec, most))
        else:
            result.append(codec)
    return result


def _unpack(name: str, buffer: Any, most: int) -> bytes | None:
    """Decompress a chunk if the codec's own decoder has no limit; else check the size that it claims.

    Returns:
        The decompressed bytes, or None if the codec's own decoder may be used.

    Raises:
        ValueError: it decompresses to more than ``most`` bytes.
    """
    if name not in ("gzip", "zlib", "bz2", "lzma", "blosc", "lz4", "zstd"):
        return None  # a checksum or a filter, which changes the size at most by the factor of its data types
    packed = memoryview(buffer).cast("B")
    claimed = 0
    unpacked = None
    if name in ("gzip", "zlib"):
        unpacked = inflate(bytes(packed), most + 1)
    elif name == "bz2":
        unpacked = bz2.BZ2Decompressor().decompress(packed, most + 1)
    elif name == "lzma":
        unpacked = lzma.LZMADecompressor(memlimit=2**28 + most).decompress(packed, most + 1)
    elif name == "blosc" and len(packed) >= 16:
        claimed = struct.unpack_from("<I", packed, 4)[0]
    elif name == "lz4" and len(packed) >= 4:
        claimed = struct.unpack_from("<I", packed)[0]
    elif name == "zstd":
        claimed = _zstd_size(bytes(packed))
    found = claimed if unpacked is None else len(unpacked)
    if found > most:
        raise ValueError(f"a chunk decompresses to more than the {most:,} bytes that its shape allows")
    return unpacked


def inflate(packed: bytes, most: int) -> bytes:
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
        packed = decompressor.unused_data
        if not missing or not packed.startswith(b"\x1f\x8b"):
            break
    return b"".join(pieces)


def _zstd_size(packed: bytes) -> int:
    """Return the most bytes that Zstandard frames can decompress to, from their headers.

    Source: RFC 8878, section 3.1.1: a frame states its size, or consists of blocks of at most 128 KiB.
    """
    total, position = 0, 0
    while position + 5 <= len(packed) and packed[position : position + 4] == b"\x28\xb5\x2f\xfd":
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
