"""Random access to the strips or tiles of a TIFF image."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, open_regular
from evenslice.volumes.read.checks import require_bytes, require_chunk
from evenslice.volumes.read.codestreams import require_size
from evenslice.volumes.read.places import confined

if TYPE_CHECKING:
    from typing import BinaryIO

    import tifffile
    from numpy.typing import NDArray

__all__ = ["PageReader"]

_SLACK_BYTES = 2**24

_STREAMS = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions that tifffile decodes to the size of a tile at most: none, LZW, deflate, PackBits, LZMA, Zstandard."""


class PageReader:
    """Pages of strips or tiles, read and decoded one by one.

    A page has the dimensions of ``keyframe.shape``: y, x and possibly samples or depth. The decoder of tifffile places
    segments in a normalised page (separate sample, depth, y, x, contiguous sample).
    """

    def __init__(self, series: tifffile.TiffPageSeries, path: Path, label: str) -> None:
        self._label = label
        self._keyframe = series.keyframe
        self._pages, self.files = _complete_pages(series, path, label)
        page_shape = self._keyframe.shape
        self._leading = tuple(series.shape[: len(series.shape) - len(page_shape)])
        if (*self._leading, *page_shape) != tuple(series.shape) or math.prod(self._leading) != len(
            self._pages
        ):
            raise VolumeError(
                f"{label}: has {len(self._pages)} pages {page_shape} for an image {series.shape}; save it "
                "as plain multi-page TIFF"
            )
        self._y, self._x = self._keyframe.axes.index("Y"), self._keyframe.axes.index("X")
        require_chunk(label, "its strips or tiles", self._keyframe.chunks, np.dtype(series.dtype))
        self._most_bytes = (
            2 * math.prod(self._keyframe.chunks) * np.dtype(series.dtype).itemsize + _SLACK_BYTES
        )
        self._images = int(self._keyframe.compression) not in _STREAMS
        self._segments = self._locate_segments()
        self.chunks = self._chunks(page_shape)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the strips and tiles under ``key``."""
        count = len(self._leading)
        pages = np.arange(len(self._pages)).reshape(self._leading)[key[:count]]
        with ExitStack() as stack:
            files: dict[Path, BinaryIO] = {}
            blocks = [self._read_page(int(page), key[count:], files, stack) for page in pages.flat]
        return np.stack(blocks).reshape(*pages.shape, *blocks[0].shape)

    def _read_page(
        self, number: int, key: tuple[slice, ...], files: dict[Path, BinaryIO], stack: ExitStack
    ) -> NDArray[Any]:
        """Decode the part of one page under ``key``."""
        page, keyframe = self._pages[number], self._keyframe
        path = Path(page.parent.filehandle.path)
        if path not in files:
            files[path] = stack.enter_context(open_regular(path))
        y, x = key[self._y], key[self._x]
        samples, depth, _, _, contiguous = keyframe.shaped
        window = np.full(
            (samples, depth, y.stop - y.start, x.stop - x.start, contiguous), keyframe.nodata, keyframe.dtype
        )
        for index in self._under(y, x):
            data = self._segment(page, index, files[path])
            if data is not None:
                _paste(window, data, self._segments[index], y.start, x.start)
        shape = list(keyframe.shape)
        shape[self._y], shape[self._x] = window.shape[2], window.shape[3]
        rest = list(key)
        rest[self._y], rest[self._x] = slice(None, None, y.step), slice(None, None, x.step)
        return window.reshape(shape)[tuple(rest)]

    def _under(self, y: slice, x: slice) -> NDArray[np.intp]:
        """Return the numbers of the segments that overlap rows y and columns x."""
        _, _, top, left, height, width = self._segments.T
        return np.flatnonzero(
            (top < y.stop) & (top + height > y.start) & (left < x.stop) & (left + width > x.start)
        )

    def _segment(self, page: Any, index: int, file: BinaryIO) -> NDArray[Any] | None:
        """Read and decode one strip or tile; None if the file omits it as empty."""
        offset, length = page.dataoffsets[index], page.databytecounts[index]
        if not length:
            return None
        if length > self._most_bytes:
            raise VolumeError(
                f"{self._label}: a strip or tile claims {length:,} bytes, more than its shape allows; the "
                "file is damaged"
            )
        file.seek(offset)
        packed = file.read(length)
        jpegheader = self._keyframe.jpegheader
        if self._images:
            require_size(jpegheader or packed, math.prod(self._keyframe.chunks), self._label)
        data, _, _ = self._keyframe.decode(
            packed, int(index), jpegtables=page.jpegtables, jpegheader=jpegheader
        )
        return data

    def _locate_segments(self) -> NDArray[np.int64]:
        """Return for each strip or tile its separate sample, depth, top, left, height and width."""
        count = math.prod(self._keyframe.chunked)
        short = [i for i, page in enumerate(self._pages) if len(page.dataoffsets) < count]
        if short:
            raise VolumeError(
                f"{self._label}: page {short[0]} lacks strips or tiles, the file is damaged; save it again"
            )
        rows = []
        for index in range(count):
            _, (sample, depth, top, left, _), (_, height, width, _) = self._keyframe.decode(None, index)
            rows.append((sample, depth, top, left, height, width))
        return np.array(rows, np.int64)

    def _chunks(self, page_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the stored shape of what is decoded as one, if pages have only y and x."""
        if len(page_shape) != 2:
            return None
        chunk = self._keyframe.chunks
        return (*(1 for _ in self._leading), min(chunk[0], page_shape[0]), min(chunk[1], page_shape[1]))


def _paste(window: NDArray[Any], data: NDArray[Any], place: NDArray[np.int64], y: int, x: int) -> None:
    """Copy the part of a decoded segment (depth, rows, columns, samples) that lies in a window starting at (y, x)."""
    sample, depth, top, left = (int(value) for value in place[:4])
    target = window[sample, depth : depth + data.shape[0]]
    data = data[: target.shape[0]]
    rows = slice(max(top, y), min(top + data.shape[1], y + target.shape[1]))
    columns = slice(max(left, x), min(left + data.shape[2], x + target.shape[2]))
    target[:, rows.start - y : rows.stop - y, columns.start - x : columns.stop - x] = data[
        :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]


def _complete_pages(
    series: tifffile.TiffPageSeries, path: Path, label: str
) -> tuple[list[Any], tuple[Path, ...]]:
    """Return all pages of a series, and their files.

    Raises:
        VolumeError: pages are missing or in another folder, or their data is beyond the end of their file.
    """
    pages = list(series)
    ends: dict[Path, int] = {}
    for number, page in enumerate(pages):
        if page is None:
            raise VolumeError(
                f"{label}: page {number} of {len(pages)} is missing; copy all files of the image again"
            )
        file = Path(page.parent.filehandle.path)
        end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        ends[file] = max(ends.get(file, 0), end)
    for file, end in ends.items():
        # The path that the user gave may be a link, but a file may not refer to another folder.
        if not file.samefile(path):
            confined(path.parent, os.path.relpath(file, path.parent.resolve()), label)
        require_bytes(file, label, end)
    return pages, tuple(ends)
