"""Codecs that a Zarr array may have: those whose result cannot be larger than its chunks are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LARGEST_INDEX",
    "bytes_of",
    "encoded_limit",
    "file_limit",
    "input_limit",
    "require_bounded_codecs",
]

LARGEST_INDEX = 2**26
"""Size limit in bytes of the index of chunks in a shard."""

_WIDEST = 8
"""Bytes of the widest number."""

_SLACK = 2**20
_ENTRY = 256  # bytes for a chunk of a shard: its place in the index, and what a codec adds to few voxels

_FILTERS = {"astype", "bitround", "delta", "fixedscaleoffset", "packbits", "quantize"}
_OTHERS = (
    {"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"}
    | {"adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3", "shuffle"}
    | {"bytes", "sharding_indexed", "transpose"}
)


def require_bounded_codecs(array: Any, label: str) -> None:
    """Raise VolumeError unless the size of whatever the codecs of an array return is known.

    Args:
        array: an open ``zarr.Array``.
        label: the volume, as the user wrote it.
    """
    for name, options in _codecs(array):
        if name not in _FILTERS | _OTHERS:
            raise VolumeError(
                f"{label}: its chunks are encoded with {name[:40]!r}, which can make any size of few bytes and is not read; "
                "rewrite it with another codec, such as zstd"
            )
        for key in ("dtype", "astype", "encode_dtype", "decode_dtype"):
            if name in _FILTERS and key in options and not _is_number(options[key]):
                raise VolumeError(
                    f"{label}: its filter {name!r} has the data type {str(options[key])[:40]!r}, which is none of voxels; "
                    "rewrite it without the filter"
                )


def _codecs(array: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the name and the options of each codec, those inside shards included."""
    metadata = array.metadata
    if metadata.zarr_format == 2:
        found = [*(metadata.filters or ()), *([metadata.compressor] if metadata.compressor else ())]
        return [(str(codec.codec_id), codec.get_config()) for codec in found]
    listed = []
    waiting = [codec.to_dict() for codec in metadata.codecs]
    while waiting:
        codec = waiting.pop()
        options = codec.get("configuration") or {}
        listed.append((str(codec["name"]).removeprefix("numcodecs."), options))
        waiting += [*options.get("codecs", ()), *options.get("index_codecs", ())]
    return listed


def _is_number(dtype: Any) -> bool:
    try:
        found = np.dtype(dtype)
    except TypeError:
        return False
    return found.kind in "biuf" and found.itemsize <= _WIDEST


def bytes_of(voxels: int, array: Any) -> int:
    """Return the most bytes that a number of voxels takes at any stage of decoding.

    Args:
        voxels: how many.
        array: an open ``zarr.Array``, whose filters may widen them.
    """
    widened = any(name in _FILTERS for name, _ in _codecs(array))
    return voxels * (_WIDEST if widened else int(array.dtype.itemsize))


def file_limit(array: Any) -> int:
    """Return the most bytes that the file of a chunk, or of a shard with its index, can reasonably take.

    Args:
        array: an open ``zarr.Array``.
    """
    voxels = math.prod(array.shards or array.chunks)
    return encoded_limit(bytes_of(voxels, array), voxels // max(math.prod(array.chunks), 1))


def encoded_limit(size: int, chunks: int = 1) -> int:
    """Return the most bytes that chunks of a size in all can reasonably take once they are encoded.

    Example:
        >>> encoded_limit(2**20)
        3145984
    """
    return 2 * size + _SLACK + _ENTRY * chunks  # incompressible data grows a little


def input_limit(codec: Any, voxels: int, most: int) -> int:
    """Return the most bytes that a codec of format 2 may be given for a chunk, so that it returns no more than ``most``.

    Args:
        codec: of numcodecs.
        voxels: how many a chunk has.
        most: what is allowed for the chunk at any stage.
    """
    options = codec.get_config()
    if codec.codec_id == "packbits":
        return voxels // 8 + 2  # of eight voxels in a byte, with one more for what is left over
    stored = options.get("encode_dtype") or options.get("astype") or options.get("dtype")
    return most if codec.codec_id not in _FILTERS or stored is None else voxels * np.dtype(stored).itemsize
