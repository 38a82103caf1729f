"""Multi-page TIFF: plain, ImageJ, OME and BigTIFF, compressed or not, in strips or tiles.

tifffile parses the file; the voxels are then read from the positions it found. What is stored uncompressed in one piece
is memory-mapped; otherwise the strips or tiles that lie under a window are read and decoded one by one.
"""

from __future__ import annotations

import logging
import math
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.errors import VolumeError, needs_extra
from evenslice.volumes.source import LARGEST_CHUNK, Source, reading, require_signature
from evenslice.volumes.units import common_unit, normal_unit

if TYPE_CHECKING:
    from typing import BinaryIO

    import tifffile
    from numpy.typing import NDArray

    from evenslice.volumes.units import Unit

__all__ = ["TiffSource"]

# Without any handler, logging prints what tifffile says about damaged files beside the one line of our own error.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class TiffSource(Source):
    """The one image of a TIFF file, in the order of its pages."""

    format = "TIFF"

    def __init__(self, path: Path, label: str) -> None:
        with needs_extra("volumes", "reading a TIFF volume"):
            import tifffile
        require_signature(path, label, "a TIFF file")
        with tifffile.TiffFile(path) as tif:
            _check_chain(tif, label)
            _check_description(tif, label)
            series = _only_series(tif, label)
            self.format = _variant(tif)
            self.shape = tuple(series.shape)
            self.dtype = np.dtype(series.dtype)
            self.names = _names(series.axes)
            self.spacing, self.unit = _spacing(tif, series)
            if series.dataoffset is not None and not series.is_multifile:
                stored = self.dtype.newbyteorder(tif.byteorder)
                self._reader: _MappedReader | _PageReader = _MappedReader(
                    path, label, stored, series.dataoffset, self.shape
                )
            else:
                self._reader = _PageReader(series, label)
                self.chunks = self._reader.chunks

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Map, or decode the strips and tiles under ``key``."""
        return self._reader.read(key)


class _MappedReader:
    """Uncompressed voxels in one piece."""

    def __init__(
        self, path: Path, label: str, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]
    ) -> None:
        needed = offset + math.prod(shape) * dtype.itemsize
        _require_bytes(path, label, needed)
        self._array = np.memmap(path, dtype, "r", offset, shape)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        return self._array[key]


class _PageReader:
    """Pages of strips or tiles, read and decoded one by one.

    A page has the dimensions of ``keyframe.shape``: y and x, and possibly samples or depth beside them. The decoder of
    tifffile places segments in a normalised page (separate sample, depth, y, x, contiguous sample).
    """

    def __init__(self, series: tifffile.TiffPageSeries, label: str) -> None:
        self._label = label
        self._keyframe = series.keyframe
        self._pages = _complete_pages(series, label)
        page_shape = self._keyframe.shape
        self._leading = tuple(series.shape[: len(series.shape) - len(page_shape)])
        if (*self._leading, *page_shape) != tuple(series.shape) or math.prod(self._leading) != len(
            self._pages
        ):
            raise VolumeError(
                f"{label}: has {len(self._pages)} pages {page_shape} for an image {series.shape}; save it as plain multi-page TIFF"
            )
        self._y, self._x = self._keyframe.axes.index("Y"), self._keyframe.axes.index("X")
        size = math.prod(self._keyframe.chunks) * series.dtype.itemsize
        if size > LARGEST_CHUNK:
            raise VolumeError(
                f"{label}: a strip or tile {self._keyframe.chunks} takes {size:,} bytes; save it in smaller ones"
            )
        self._segments = self._locate_segments()
        self.chunks = self._chunks(page_shape)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        count = len(self._leading)
        pages = np.arange(len(self._pages)).reshape(self._leading)[key[:count]]
        with ExitStack() as stack:
            files: dict[Path, BinaryIO] = {}
            blocks = [self._read_page(int(page), key[count:], files, stack) for page in pages.flat]
        return np.stack(blocks).reshape(*pages.shape, *blocks[0].shape)

    def _read_page(
        self, number: int, key: tuple[slice, ...], files: dict[Path, BinaryIO], stack: ExitStack
    ) -> NDArray[Any]:
        """Decode what lies under ``key`` of one page."""
        page, keyframe = self._pages[number], self._keyframe
        path = Path(page.parent.filehandle.path)
        if path not in files:
            files[path] = stack.enter_context(path.open("rb"))
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
        """Read and decode one strip or tile; None if the file leaves it out as empty."""
        offset, length = page.dataoffsets[index], page.databytecounts[index]
        if not length:
            return None
        file.seek(offset)
        data, _, _ = self._keyframe.decode(
            file.read(length), int(index), jpegtables=page.jpegtables, jpegheader=self._keyframe.jpegheader
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
        """Return the stored shape of what is decoded as one, where pages are y and x alone."""
        if len(page_shape) != 2:
            return None
        chunk = self._keyframe.chunks
        return (*(1 for _ in self._leading), min(chunk[0], page_shape[0]), min(chunk[1], page_shape[1]))


def _paste(window: NDArray[Any], data: NDArray[Any], place: NDArray[np.int64], y: int, x: int) -> None:
    """Copy the part of a decoded segment (depth, rows, columns, samples) that a window starting at (y, x) shows."""
    sample, depth, top, left = (int(value) for value in place[:4])
    target = window[sample, depth : depth + data.shape[0]]
    data = data[: target.shape[0]]
    rows = slice(max(top, y), min(top + data.shape[1], y + target.shape[1]))
    columns = slice(max(left, x), min(left + data.shape[2], x + target.shape[2]))
    target[:, rows.start - y : rows.stop - y, columns.start - x : columns.stop - x] = data[
        :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]


def _check_chain(tif: tifffile.TiffFile, label: str) -> None:
    """Raise if the chain of pages does not end with a zero; tifffile takes a broken one for a short one."""
    with reading(label, "TIFF"):
        last = tif.pages.next_page_offset
        size = tif.tiff.offsetsize
        tif.filehandle.seek(last or 0)
        pointer = tif.filehandle.read(size)
    if len(pointer) < size or any(pointer):
        raise VolumeError(
            f"{label}: is truncated, only {len(tif.pages)} of its pages can be found in {tif.filehandle.size:,} bytes; copy it again"
        )


def _check_description(tif: tifffile.TiffFile, label: str) -> None:
    """Raise if the first page points to a description that is not there.

    tifffile goes on without it; then the order of the pages, which OME and ImageJ state there, would be a guess.
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
            f"{label}: is truncated, the description of its axes lies beyond its end; copy it again"
        )


def _only_series(tif: tifffile.TiffFile, label: str) -> tifffile.TiffPageSeries:
    """Return the image of the file.

    Raises:
        VolumeError: the file holds several images, or voxels of a kind that tifffile does not decode.
    """
    found = tif.series
    if len(found) != 1:
        shapes = ", ".join(str(series.shape) for series in found[:4])
        raise VolumeError(
            f"{label}: holds {len(found)} images of different kinds ({shapes}); save the volume to a file of its own"
        )
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
    """Translate tifffile's axis letters: the one axis of pages whose meaning nobody stated is z."""
    names = axes.lower()
    unknown = [letter for letter in names if letter in "qi"]
    if len(unknown) == 1 and "z" not in names:
        names = names.replace(unknown[0], "z")
    return names if len(set(names)) == len(names) else None


def _complete_pages(series: tifffile.TiffPageSeries, label: str) -> list[Any]:
    """Return all pages of a series.

    Raises:
        VolumeError: pages are missing, or their data lie beyond the end of their file.
    """
    pages = list(series)
    ends: dict[Path, int] = {}
    for number, page in enumerate(pages):
        if page is None:
            raise VolumeError(
                f"{label}: page {number} of {len(pages)} is missing; copy all files of the image again"
            )
        path = Path(page.parent.filehandle.path)
        end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        ends[path] = max(ends.get(path, 0), end)
    for path, end in ends.items():
        _require_bytes(path, label, end)
    return pages


def _require_bytes(path: Path, label: str, needed: int) -> None:
    """Raise if a file is shorter than what its pages point to."""
    held = path.stat().st_size
    if held < needed:
        raise VolumeError(
            f"{label}: is truncated, its pages reach to byte {needed:,} and the file has {held:,}; copy it again"
        )


def _spacing(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Return the voxel size along each dimension of a series, from OME-XML or from ImageJ's or tifffile's notes."""
    sizes: tuple[float, ...] | None
    if tif.is_ome:
        sizes, unit = _ome_spacing(tif.ome_metadata)
    else:
        shaped = tif.shaped_metadata
        sizes, unit = _noted_spacing(tif.imagej_metadata or (shaped[0] if shaped else {}), series.keyframe)
    names = _names(series.axes)
    if sizes is None or names is None:
        return None, None
    by_name = dict(zip("zyx", sizes, strict=True))
    return tuple(by_name.get(name, math.nan) for name in names), unit


def _ome_spacing(xml: str | None) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Read PhysicalSizeZ, Y and X of the first image; micrometres unless it states a unit, as OME-XML has it."""
    from tifffile import xml2dict

    image = xml2dict(xml or "")["OME"]["Image"]
    pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
    keys = [f"PhysicalSize{axis}" for axis in "ZYX"]
    if not all(key in pixels for key in keys):
        return None, None
    units = [normal_unit(pixels.get(f"{key}Unit", "um")) for key in keys]
    return common_unit([float(pixels[key]) for key in keys], units)


def _noted_spacing(
    notes: dict[str, Any], page: tifffile.TiffPage
) -> tuple[tuple[float, float, float] | None, Unit | None]:
    """Read the distance of slices from the notes; the resolution tags give pixels per the same unit, as in ImageJ."""
    x, y = page.resolution
    try:
        z = float(notes["spacing"])
    except (KeyError, TypeError, ValueError):
        return None, None
    return ((z, 1 / y, 1 / x), normal_unit(notes.get("unit"))) if x > 0 and y > 0 else (None, None)
