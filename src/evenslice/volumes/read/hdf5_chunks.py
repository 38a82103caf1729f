"""Chunks of HDF5 datasets that expand to more than their shape allows.

The filters of HDF5 decompress without a limit, and one after the other: a filter that is listed twice expands a few
kilobytes to gigabytes. On an empty chunk they abort the process. What they would do is therefore found out first.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

from evenslice._core import VolumeError
from evenslice.volumes.read.deflate import MOST_COMPRESSION

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_chunks", "check_filters"]

TRUSTED_BYTES = 2**28
"""Size in bytes that a compressed chunk may expand to without a check."""

_DEFLATE, _SHUFFLE, _CHECKSUM, _SZIP, _NBIT, _SCALE_OFFSET, _LZF = 1, 2, 3, 4, 5, 6, 32000
_COUNTED = (_NBIT, _SCALE_OFFSET)
"""Filters that pack numbers into fewer bits, and store how many."""

_LZF_EXPANSION = 88  # three bytes repeat at most 264
_SLACK_BYTES = 2**16


def check_filters(dataset: Any, label: str) -> None:
    """Raise VolumeError if a dataset lists filters that no writer would combine, or that expand beyond its chunks."""
    if not dataset.chunks:
        return
    properties = dataset.id.get_create_plist()
    filters = _filters(properties)
    packers = [code for code in filters if code not in (_SHUFFLE, _CHECKSUM, *_COUNTED)]
    if len(packers) > 1 or any(filters.count(code) > 1 for code in _COUNTED):
        raise VolumeError(
            f"{label}: its chunks are compressed {len(filters)} times over (filters {filters}), which is "
            "not undone; write it with one compression"
        )
    for position, code in enumerate(filters):
        if code in _COUNTED:
            _, _, values, _ = properties.get_filter(position)
            # Number and size of the elements: H5Zscaleoffset.c and H5Znbit.c.
            if tuple(values[2:5:2]) != (math.prod(dataset.chunks), dataset.dtype.itemsize):
                raise VolumeError(
                    f"{label}: a filter claims other chunks than its {dataset.chunks}; the file is damaged"
                )


def check_chunks(dataset: Any, key: tuple[slice, ...], label: str) -> None:
    """Raise VolumeError if a chunk under ``key`` is empty or expands to more than its shape allows."""
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    filters = _filters(dataset.id.get_create_plist())
    trusted = max(4 * size, TRUSTED_BYTES)
    for index in _corners(key, dataset.chunks):
        stored = dataset.id.get_chunk_info_by_coord(index)
        if stored.byte_offset is None:  # never written
            continue
        if not 0 < stored.size <= 2 * size + TRUSTED_BYTES:
            raise VolumeError(
                f"{label}: a chunk claims {stored.size:,} bytes for {size:,}; the file is damaged"
            )
        if (
            (
                _DEFLATE in filters
                and stored.size * MOST_COMPRESSION > trusted
                and _inflates(dataset, index, size)
            )
            or (
                _LZF in filters
                and stored.size * _LZF_EXPANSION > size + 4 * TRUSTED_BYTES
                and _expands(dataset, index, size)
            )
            or (_SZIP in filters and _claims(dataset, index) > size)
        ):
            raise VolumeError(
                f"{label}: a chunk decompresses to more than its {size:,} bytes; the file is damaged"
            )


def _filters(properties: Any) -> list[int]:
    """Return the codes of the filters that chunks passed when they were written."""
    return [properties.get_filter(position)[0] for position in range(properties.get_nfilters())]


def _corners(key: tuple[slice, ...], chunks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the first index of every chunk under ``key``."""
    if not key:
        yield ()
        return
    part, length = key[0], chunks[0]
    for start in range(part.start // length * length, part.stop, length):
        for rest in _corners(key[1:], chunks[1:]):
            yield start, *rest


def _inflates(dataset: Any, index: tuple[int, ...], size: int) -> bool:
    """Return whether a deflated chunk has more than ``size`` bytes and a little."""
    _, packed = dataset.id.read_direct_chunk(index)
    most = size + _SLACK_BYTES
    return len(zlib.decompressobj().decompress(packed, most + 1)) > most


def _expands(dataset: Any, index: tuple[int, ...], size: int) -> bool:
    """Return whether a chunk of LZF has more than ``size`` bytes and a little."""
    import imagecodecs

    _, packed = dataset.id.read_direct_chunk(index)
    try:
        imagecodecs.lzf_decode(packed, out=size + _SLACK_BYTES)
    except imagecodecs.LzfError:
        return True
    return False


def _claims(dataset: Any, index: tuple[int, ...]) -> int:
    """Return the size that a chunk of szip states in its first four bytes."""
    _, packed = dataset.id.read_direct_chunk(index)
    return int.from_bytes(packed[:4], "little")
