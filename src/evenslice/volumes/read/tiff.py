"""Multi-page TIFF: plain, ImageJ, OME and BigTIFF, compressed or not, in strips or tiles.

tifffile parses the file and finds the positions of the voxels. Contiguous uncompressed voxels are read as they are;
otherwise the strips or tiles that overlap a window are read and decoded one by one.
"""

from __future__ import annotations

import logging
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.geometry import common_unit, normal_unit
from evenslice.volumes.read.checks import (
    reporting_read_errors,
    require_bytes,
    require_piece,
    require_signature,
)
from evenslice.volumes.read.flat_files import FlatArray
from evenslice.volumes.read.location import confined
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    import tifffile
    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit

__all__ = ["TiffSource"]

# Without a handler, logging would print the warnings of tifffile about damaged files next to our own error.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


MOST_PLANES = 2**20
"""Number of planes of an OME-TIFF image; each takes an entry in a list."""


class TiffSource(VoxelSource):
    """The one image of a TIFF file, in the order of its pages.

    Args:
        path: the file.
        label: the file, as the user wrote it.
        picked: the axes along which an index is picked, so that what is left of them may be a single slice.
    """

    format = "TIFF"

    def __init__(self, path: Path, label: str, picked: frozenset[str] = frozenset()) -> None:
        with needs_extra("volumes", "reading a TIFF volume"):
            import tifffile
        require_signature(path, label, "a TIFF file")
        with tifffile.TiffFile(path) as tif:
            _check_chain(tif, label)
            _check_description(tif, label)
            _check_companions(tif, path, label)
            series = _only_series(tif, label)
            self.format = _variant(tif)
            self.shape = tuple(series.shape)
            self.dtype = np.dtype(series.dtype)
            self.names = _names(series.axes)
            self.assumed = self.names != series.axes.lower()
            # ImageJ and OME state the number of slices; tifffile leaves out an axis of one.
            self._single = (tif.is_imagej or tif.is_ome) and _is_plane(self.names, picked)
            if self._single:
                self.names = f"z{self.names}"
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
    """Raise if an OME-TIFF refers to pages in a file of another folder, before tifffile opens it.

    Raises:
        VolumeError: it does, or its OME-XML claims more planes than are ever stored.
    """
    if not tif.is_ome:
        return
    with reporting_read_errors(label, "OME-TIFF"):
        root = ET.fromstring(tif.ome_metadata or "")  # noqa: S314  # tifffile parses the same text
        elements = list(root.iter())
        sizes = [math.prod(int(item.get(f"Size{axis}", 1)) for axis in "ZCT") for item in elements]
        planes = max(*sizes, *(int(item.get("PlaneCount", 0)) for item in elements))
    if planes > MOST_PLANES:
        raise VolumeError(
            f"{label}: its OME-XML claims {planes:,} planes, more than the limit of {MOST_PLANES:,}; write it again"
        )
    for item in elements:
        name = item.get("FileName")
        # The UUID of the file itself means this file, whatever its name was when it was written.
        if item.tag.endswith("UUID") and name and item.text != root.get("UUID"):
            confined(path.parent, name, label)


def _only_series(tif: tifffile.TiffFile, label: str) -> tifffile.TiffPageSeries:
    """Return the image of the file.

    Raises:
        VolumeError: the file holds several images, or voxels that tifffile cannot decode.
    """
    found = tif.series
    if len(found) != 1:
        kinds = {f"{series.shape} of {series.dtype}" for series in found}
        shapes = ", ".join(str(series.shape) for series in found[:4])
        what = (
            f"of different shapes or types ({shapes})"
            if len(kinds) > 1
            else f"of shape {shapes.partition(', (')[0]} that are compressed or stored differently"
        )
        raise VolumeError(f"{label}: holds {len(found)} images {what}; save the volume to a separate file")
    series = found[0]
    if series.keyframe.dtype is None or series.transform is not None:
        raise VolumeError(
            f"{label}: its voxels are encoded in a way that cannot be read; save it as plain TIFF"
        )
    return series


def _variant(tif: tifffile.TiffFile) -> str:
    """Return the name of the TIFF dialect."""
    dialect = "ImageJ TIFF" if tif.is_imagej else "OME-TIFF" if tif.is_ome else "TIFF"
    return f"{dialect} (BigTIFF)" if tif.is_bigtiff else dialect


def _names(axes: str) -> str | None:
    """Translate tifffile's axis letters; a single axis of unknown meaning is z."""
    names = axes.lower()
    unknown = [letter for letter in names if letter in "qi"]
    if len(unknown) == 1 and "z" not in names:
        names = names.replace(unknown[0], "z")
    return names if len(set(names)) == len(names) else None


def _is_plane(names: str | None, picked: frozenset[str]) -> bool:
    """Return whether axes are y and x, and others along which an index is picked."""
    return names is not None and {"y", "x"} <= set(names) <= {"y", "x", *picked} - {"z"}


def _spacing(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, names: str | None
) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Return the voxel size along each named dimension of a series, from OME-XML or the metadata of ImageJ or tifffile."""
    sizes: tuple[float, ...] | None
    if tif.is_ome:
        sizes, unit = _ome_spacing(tif.ome_metadata)
    else:
        shaped = tif.shaped_metadata
        sizes, unit = _stated_spacing(tif.imagej_metadata or (shaped[0] if shaped else {}), series.keyframe)
    if sizes is None or names is None:
        return None, None
    by_name = dict(zip("zyx", sizes, strict=True))
    return tuple(by_name.get(name, math.nan) for name in names), unit


def _ome_spacing(xml: str | None) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Read PhysicalSizeZ, Y and X of the first image; the default unit of OME-XML is the micrometre."""
    from tifffile import xml2dict

    image = xml2dict(xml or "")["OME"]["Image"]
    pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
    keys = [f"PhysicalSize{axis}" for axis in "ZYX"]
    if not all(key in pixels for key in keys):
        return None, None
    units = [normal_unit(pixels.get(f"{key}Unit", "um")) for key in keys]
    return common_unit([float(pixels[key]) for key in keys], units)


def _stated_spacing(
    metadata: dict[str, Any], page: tifffile.TiffPage
) -> tuple[tuple[float, float, float] | None, Unit | None]:
    """Read the distance of slices from the metadata; as in ImageJ, the resolution tags are pixels per the same unit."""
    x, y = page.resolution
    try:
        z = float(metadata["spacing"])
    except (KeyError, TypeError, ValueError):
        return None, None
    return ((z, 1 / y, 1 / x), normal_unit(metadata.get("unit"))) if x > 0 and y > 0 else (None, None)


class _PageReader:
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
