"""Chunks of HDF5 datasets that expand to more than their shape allows.

The filters of HDF5 decompress without a limit, and one after the other: a filter that is listed twice expands a few
kilobytes to gigabytes. On an empty chunk they abort the process. What they would do is therefore found out first.
"""

from __future__ import annotations

import math
import os
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from evenslice._core import VolumeError
from evenslice.volumes.read.deflate import MOST_COMPRESSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ChunkChecks", "check_filters"]

TRUSTED_BYTES = 2**28
"""Size in bytes that a compressed chunk may expand to without a check."""

_DEFLATE, _SHUFFLE, _CHECKSUM, _SZIP, _NBIT, _SCALE_OFFSET, _LZF = 1, 2, 3, 4, 5, 6, 32000
_COUNTED = (_NBIT, _SCALE_OFFSET)
"""Filters that pack numbers into fewer bits, and store how many."""

_CHECKSUM_BYTES = 4
_LZF_EXPANSION = 88  # three bytes repeat at most 264
_SLACK_BYTES = 2**16
_MOST_IMPOSSIBLE = 1000
_MOST_REMEMBERED = 2**17  # each takes about 200 bytes


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


class ChunkChecks:
    """Which chunks of a dataset may be decoded: each is checked once, as long as its file does not change.

    Safe to use from several threads.

    Args:
        label: the file, as the user wrote it.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._known: tuple[tuple[int, ...], _Survey, set[tuple[int, ...]]] | None = None

    def require(self, dataset: Any, key: tuple[slice, ...]) -> None:
        """Raise VolumeError if a chunk under ``key`` has an impossible size or expands to more than its shape allows."""
        state = os.fstat(dataset.file.id.get_vfd_handle())
        stamp = (state.st_ino, state.st_size, state.st_mtime_ns)
        known = self._known  # another thread may replace it meanwhile
        if known is None or known[0] != stamp:
            known = self._known = (stamp, _survey(dataset, self._label), set())
        _, survey, passed = known
        if not survey.impossible and not survey.doubtful:
            return
        size = _size(dataset)
        for index in _corners(key, dataset.chunks):
            if index in survey.impossible:
                raise VolumeError(
                    f"{self._label}: a chunk claims {survey.impossible[index]:,} bytes for {size:,}; the file is damaged"
                )
            if not survey.doubtful or index in passed:
                continue
            if _exceeds(dataset, index, size):
                raise VolumeError(
                    f"{self._label}: a chunk decompresses to more than its {size:,} bytes; the file is damaged"
                )
            if len(passed) < _MOST_REMEMBERED:
                passed.add(index)


class _Survey(NamedTuple):
    """What the sizes of the stored chunks of a dataset say.

    Attributes:
        impossible: the first index of each chunk of an impossible size, and that size.
        doubtful: whether there are chunks that could expand to more than is trusted.
    """

    impossible: dict[tuple[int, ...], int]
    doubtful: bool


def _survey(dataset: Any, label: str) -> _Survey:
    """Look at the sizes of all stored chunks; to ask for those of a single one takes as long.

    Raises:
        VolumeError: more are impossible than one damaged spot explains.
    """
    size, filters = _size(dataset), _filters(dataset.id.get_create_plist())
    impossible: dict[tuple[int, ...], int] = {}
    possible: dict[int, tuple[int, int]] = {}
    largest = 0

    def look(stored: Any) -> bool | None:
        nonlocal largest
        if stored.byte_offset is not None:
            largest = max(largest, stored.size)
            if stored.filter_mask not in possible:
                possible[stored.filter_mask] = _possible_sizes(_used(filters, stored.filter_mask), size)
            least, most = possible[stored.filter_mask]
            if not least <= stored.size <= most:
                impossible[stored.chunk_offset] = stored.size
        return None if len(impossible) <= _MOST_IMPOSSIBLE else True

    if dataset.id.chunk_iter(look):
        raise VolumeError(
            f"{label}: more than {_MOST_IMPOSSIBLE:,} chunks claim other sizes than {size:,} bytes allow; the file is damaged"
        )
    return _Survey(impossible, largest > 0 and _in_doubt(filters, largest, size))


def _possible_sizes(filters: Sequence[int], size: int) -> tuple[int, int]:
    """Return how many bytes a chunk of ``size`` bytes may take after the filters that it has passed.

    HDF5 reads a chunk without regard to how few bytes come out: the rest would be what lies in memory there.

    Example:
        >>> _possible_sizes([_SHUFFLE], 4096), _possible_sizes([_DEFLATE], 4096)
        ((4096, 4096), (4, 268443648))
    """
    packers = [code for code in filters if code not in (_SHUFFLE, _CHECKSUM)]
    if not packers:
        exact = size + _CHECKSUM_BYTES * filters.count(_CHECKSUM)
        return exact, exact
    least = 1
    if packers in ([_DEFLATE], [_LZF]):
        least = max(-(-size // (MOST_COMPRESSION if packers == [_DEFLATE] else _LZF_EXPANSION)), 1)
    return least, 2 * size + TRUSTED_BYTES


def _size(dataset: Any) -> int:
    """Return the number of bytes of a chunk that is not compressed."""
    size: int = math.prod(dataset.chunks) * dataset.id.get_type().get_size()
    return size


def _in_doubt(filters: Sequence[int], stored: int, size: int) -> bool:
    """Return whether a chunk of ``stored`` bytes could expand to more than is trusted."""
    return (
        (_DEFLATE in filters and stored * MOST_COMPRESSION > max(4 * size, TRUSTED_BYTES))
        or (_LZF in filters and stored * _LZF_EXPANSION > size + 4 * TRUSTED_BYTES)
        or _SZIP in filters
    )


def _exceeds(dataset: Any, index: tuple[int, ...], size: int) -> bool:
    """Return whether a chunk has more than ``size`` bytes and a little."""
    try:
        mask, packed = dataset.id.read_direct_chunk(index)
    except (OSError, RuntimeError, MemoryError):
        if dataset.id.get_chunk_info_by_coord(index).byte_offset is None:  # never written
            return False
        raise
    filters = _used(_filters(dataset.id.get_create_plist()), mask)
    if not _in_doubt(filters, len(packed), size):
        return False
    if _DEFLATE in filters:
        return _inflates(packed, size)
    return _expands(packed, size) if _LZF in filters else int.from_bytes(packed[:4], "little") > size


def _filters(properties: Any) -> list[int]:
    """Return the codes of the filters that chunks passed when they were written."""
    return [properties.get_filter(position)[0] for position in range(properties.get_nfilters())]


def _used(filters: Sequence[int], mask: int) -> list[int]:
    """Return the filters that a chunk has passed: writers leave out those that did not make it smaller."""
    return [code for place, code in enumerate(filters) if not mask >> place & 1]


def _corners(key: tuple[slice, ...], chunks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the first index of every chunk under ``key``."""
    if not key:
        yield ()
        return
    part, length = key[0], chunks[0]
    for start in range(part.start // length * length, part.stop, length):
        for rest in _corners(key[1:], chunks[1:]):
            yield start, *rest


def _inflates(packed: bytes, size: int) -> bool:
    """Return whether a deflated chunk has more than ``size`` bytes and a little."""
    most = size + _SLACK_BYTES
    return len(zlib.decompressobj().decompress(packed, most + 1)) > most


def _expands(packed: bytes, size: int) -> bool:
    """Return whether a chunk of LZF has more than ``size`` bytes and a little."""
    import imagecodecs

    try:
        imagecodecs.lzf_decode(packed, out=size + _SLACK_BYTES)
    except imagecodecs.LzfError:
        return True
    return False
