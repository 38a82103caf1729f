"""Multi-page TIFF: plain, ImageJ, OME and BigTIFF, compressed or not, in strips or tiles.

tifffile parses the file and finds the positions of the voxels. Contiguous uncompressed voxels are read as they are;
otherwise the strips or tiles that overlap a window are read and decoded one by one.
"""

from __future__ import annotations

import logging
import math
import os
import re
import struct
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from evenslice._core import VolumeError, open_regular
from evenslice.volumes.read.flat_files import FlatArray
from evenslice.volumes.read.source import (
    VoxelSource,
    confined,
    reporting_read_errors,
    require_bytes,
    require_piece,
    require_signature,
    scaled_spacing,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit
    from evenslice.volumes.read.source import Place

# Without a handler, logging would print the warnings of tifffile about damaged files next to our own error.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


MOST_PLANES = 2**20
"""Number of planes of an OME-TIFF image; each takes an entry in a list."""


class TiffSource(VoxelSource):
    """The one image of a TIFF file, in the order of its pages.

    Of a file of a single plane, the axes along which an index is picked tell whether what is left is a single slice.
    """

    def __init__(self, place: Place) -> None:
        path, label = place.path, place.label
        require_signature(path, label, "a TIFF file")
        with tifffile.TiffFile(path) as tif:
            _check_chain(tif, label)
            _check_description(tif, label)
            _check_companions(tif, path, label)
            series = _only_series(tif, label)
            dialect = "ImageJ TIFF" if tif.is_imagej else "OME-TIFF" if tif.is_ome else "TIFF"
            self.format = f"{dialect} (BigTIFF)" if tif.is_bigtiff else dialect
            self.shape, self.dtype = tuple(series.shape), np.dtype(series.dtype)
            self.names = names = _names(series.axes)
            self.assumed = names != series.axes.lower()
            # ImageJ and OME state the number of slices; tifffile leaves out an axis of one.
            plane = names is not None and {"y", "x"} <= set(names) <= {"y", "x", *place.picked} - {"z"}
            self._single = (tif.is_imagej or tif.is_ome) and plane
            if self._single:
                self.names = f"z{names}"
            self.spacing, self.unit = _spacing(tif, series, self.names)
            if series.dataoffset is not None and not series.is_multifile:
                stored = self.dtype.newbyteorder(tif.byteorder)
                self._reader: FlatArray | _PageReader = FlatArray(
                    path, label, stored, series.dataoffset, self.shape
                )
            else:
                self._reader = _PageReader(series, path, label)
                self.chunks = self._reader.chunks
                self.files = self._reader.files if series.is_multifile else None
        if self._single:
            self.shape, self.chunks = (1, *self.shape), self.chunks and (1, *self.chunks)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read, or decode the strips and tiles under ``key``."""
        return self._reader.read(key[1:])[np.newaxis] if self._single else self._reader.read(key)


def _check_chain(tif: tifffile.TiffFile, label: str) -> None:
    """Raise if the chain of pages does not end with a zero; tifffile treats a broken chain as a short one."""
    with reporting_read_errors(label, "TIFF"):
        last = tif.pages.next_page_offset
        size = tif.tiff.offsetsize
        tif.filehandle.seek(last or 0)
        pointer = tif.filehandle.read(size)
    if len(pointer) < size or any(pointer):
        raise VolumeError(
            f"{label}: is truncated, only {len(tif.pages)} of its pages can be found in "
            f"{tif.filehandle.size:,} bytes; copy it again"
        )


def _check_description(tif: tifffile.TiffFile, label: str) -> None:
    """Raise if the description of the first page is beyond the end of the file.

    tifffile continues without it, but OME and ImageJ state the order of the pages there, which would then be a guess.
    """
    page = tif.pages.first
    if 270 in page.tags:
        return
    file, layout = tif.filehandle, tif.tiff
    file.seek(page.offset)
    (count,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    entries = file.read(count * layout.tagsize)
    codes = [entries[start : start + 2] for start in range(0, len(entries), layout.tagsize)]
    if struct.pack(f"{tif.byteorder}H", 270) in codes:
        raise VolumeError(
            f"{label}: is truncated, the description of its axes is beyond its end; copy it again"
        )


def _check_companions(tif: tifffile.TiffFile, path: Path, label: str) -> None:
    """Check what OME-XML claims before tifffile believes it.

    Raises:
        VolumeError: it refers to pages in a file of another folder, or claims more planes than are ever stored.
    """
    xml = (tif.is_ome and tif.ome_metadata) or ""
    planes = re.findall("(?:Size[ZCT]|PlaneCount)\\s*=\\s*[\"']\\s*([0-9]+)", xml)
    if any(int(claimed) > MOST_PLANES for claimed in planes):
        raise VolumeError(f"{label}: its OME-XML claims more planes than {MOST_PLANES:,}; write it again")
    for name in re.findall("FileName\\s*=\\s*[\"']([^\"']*)", xml):
        confined(path.parent, unescape(name), label)


def _only_series(tif: tifffile.TiffFile, label: str) -> tifffile.TiffPageSeries:
    """Return the image of the file.

    Raises:
        VolumeError: the file holds several images, or voxels that tifffile cannot decode.
    """
    found = tif.series
    if len(found) != 1:
        listing = ", ".join(f"{series.shape} {series.dtype}" for series in found[:4])
        raise VolumeError(
            f"{label}: holds {len(found)} images, which differ in shape, type or compression ({listing}); save the volume to "
            "a separate file"
        )
    series = found[0]
    if series.keyframe.dtype is None or series.transform is not None:
        raise ValueError("its voxels are encoded in another way; save it as plain TIFF")
    return series


def _names(axes: str) -> str | None:
    """Translate tifffile's axis letters; a single axis of unknown meaning is z."""
    names = axes.lower()
    unknown = [letter for letter in names if letter in "qi"]
    if len(unknown) == 1 and "z" not in names:
        names = names.replace(unknown[0], "z")
    return names if len(set(names)) == len(names) else None


def _spacing(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, names: str | None
) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Return the voxel size along each named dimension, from OME-XML or the metadata of ImageJ or tifffile."""
    if tif.is_ome:  # of the first image, in micrometres unless it says otherwise
        image = tifffile.xml2dict(tif.ome_metadata or "")["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        sizes = {axis: pixels.get(f"PhysicalSize{axis.upper()}") for axis in "zyx"}
        units = {axis: pixels.get(f"PhysicalSize{axis.upper()}Unit", "um") for axis in "zyx"}
    else:
        metadata = tif.imagej_metadata or (tif.shaped_metadata or [{}])[0]
        # As in ImageJ, the resolution tags are pixels per the unit of the metadata.
        x, y = series.keyframe.resolution
        sizes = {"z": metadata.get("spacing"), "y": 1 / y if y > 0 else None, "x": 1 / x if x > 0 else None}
        units = dict.fromkeys("zyx", metadata.get("unit"))
    if None in sizes.values():
        return None, None
    axes = names or ""
    return scaled_spacing([sizes.get(axis) for axis in axes], [units.get(axis) for axis in axes], axes)


class _PageReader:
    """Pages of strips or tiles, read and decoded one by one.

    A page has the dimensions of ``keyframe.shape``: y, x and possibly samples or depth. The decoder of tifffile places
    segments in a normalised page (separate sample, depth, y, x, contiguous sample).
    """

    def __init__(self, series: tifffile.TiffPageSeries, path: Path, label: str) -> None:
        self._keyframe = series.keyframe
        self._pages, self.files = _complete_pages(series, path, label)
        page_shape = self._keyframe.shape
        self._leading = tuple(series.shape[: len(series.shape) - len(page_shape)])
        if (*self._leading, *page_shape) != tuple(series.shape) or math.prod(self._leading) != len(
            self._pages
        ):
            raise ValueError(f"it has {len(self._pages)} pages {page_shape} for an image {series.shape}")
        self._y, self._x = self._keyframe.axes.index("Y"), self._keyframe.axes.index("X")
        require_piece(label, "its strips or tiles", self._keyframe.chunks, np.dtype(series.dtype))
        self._segments = self._locate_segments()
        self.chunks = self._chunks(page_shape)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the strips and tiles under ``key``."""
        count = len(self._leading)
        pages = np.arange(len(self._pages)).reshape(self._leading)[key[:count]]
        blocks = [self._read_page(self._pages[number], key[count:]) for number in pages.flat]
        return np.stack(blocks).reshape(*pages.shape, *blocks[0].shape)

    def _read_page(self, page: Any, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the part of one page under ``key``."""
        keyframe = self._keyframe
        y, x = key[self._y], key[self._x]
        samples, depth, _, _, contiguous = keyframe.shaped
        window = np.full(
            (samples, depth, y.stop - y.start, x.stop - x.start, contiguous), keyframe.nodata, keyframe.dtype
        )
        with open_regular(page.parent.filehandle.path) as file:
            for index in self._under(y, x):
                if not page.databytecounts[index]:
                    continue  # omitted as empty
                file.seek(page.dataoffsets[index])
                data, _, _ = keyframe.decode(
                    file.read(page.databytecounts[index]),
                    int(index),
                    jpegtables=page.jpegtables,
                    jpegheader=keyframe.jpegheader,
                )
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

    def _locate_segments(self) -> NDArray[np.int64]:
        """Return for each strip or tile its separate sample, depth, top, left, height and width."""
        count = math.prod(self._keyframe.chunked)
        if any(len(page.dataoffsets) < count for page in self._pages):
            raise ValueError("a page lacks strips or tiles")
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
            raise VolumeError(f"{label}: page {number} is missing; copy all files of the image again")
        file = Path(page.parent.filehandle.path)
        end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        ends[file] = max(ends.get(file, 0), end)
    for file, end in ends.items():
        # The path that the user gave may be a link, but a file may not refer to another folder.
        if not file.samefile(path):
            confined(path.parent, os.path.relpath(file, path.parent.resolve()), label)
        require_bytes(file, label, end)
    return pages, tuple(ends)
