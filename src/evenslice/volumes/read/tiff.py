"""Multi-page TIFF: plain, ImageJ, OME and BigTIFF, compressed or not, in strips or tiles.

tifffile parses the file. Contiguous uncompressed voxels are read as they are; otherwise Zarr puts together the strips or
tiles that tifffile decodes.
"""

from __future__ import annotations

import logging
import math
import re
import struct
from html import unescape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile
import zarr

from evenslice._core import VolumeError
from evenslice.volumes.read.arrays import ArrayInChunks
from evenslice.volumes.read.source import confined, require_bytes, require_piece, scaled_spacing

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from evenslice.volumes.read.source import Place, VoxelSize

# Without a handler, logging would print the warnings of tifffile about damaged files next to our own error.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


MOST_PLANES = 2**20
"""Number of planes of an OME-TIFF image; each takes an entry in a list."""


class TiffSource(ArrayInChunks):
    """The one image of a TIFF file, in the order of its pages.

    Of a file of a single plane, the axes along which an index is picked tell whether what is left is a single slice.
    """

    def __init__(self, place: Place) -> None:
        path = place.path
        with tifffile.TiffFile(path) as tif:
            _check_chain(tif)
            _check_description(tif)
            _check_companions(tif, path)
            series = _only_series(tif)
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
            self.voxel_size = _spacing(tif, series, self.names)
            self._flat: tuple[Any, ...] | None = None
            if series.dataoffset is not None and not series.is_multifile:
                stored = self.dtype.newbyteorder(tif.byteorder)
                require_bytes(path, series.dataoffset + math.prod(self.shape) * stored.itemsize)
                self._flat = path, stored, "r", series.dataoffset, self.shape
            else:
                files = _check_pages(series)
                self.files = files if series.is_multifile else None
                # Pages that are stored in several ways are decoded whole.
                mode = None if series is tif.series[0] else "page"
                self._store = series.aszarr(multiscales=False, chunkmode=mode)
                self.array = zarr.open_array(self._store, mode="r")
                self.chunks = self.array.chunks
                require_piece("its strips or tiles", self.array.chunks, self.dtype)
        if self._single:
            self.shape, self.chunks = (1, *self.shape), self.chunks and (1, *self.chunks)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read, or decode the strips and tiles under ``key``; the file is closed again."""
        key = key[1:] if self._single else key
        if self._flat is not None:
            found = np.asarray(np.memmap(*self._flat))[key]
        else:
            try:
                found = super().read(key)
            finally:
                self._store.close()
        return found[np.newaxis] if self._single else found


def _check_chain(tif: tifffile.TiffFile) -> None:
    """Raise if the chain of pages does not end with a zero; tifffile treats a broken chain as a short one."""
    last, size = tif.pages.next_page_offset, tif.tiff.offsetsize
    tif.filehandle.seek(last or 0)
    pointer = tif.filehandle.read(size)
    if len(pointer) < size or any(pointer):
        raise VolumeError(f"is truncated, only {len(tif.pages)} of its pages can be found; copy it again")


def _check_description(tif: tifffile.TiffFile) -> None:
    """Raise if the description of the first page is beyond the end of the file.

    tifffile continues without it, but OME and ImageJ state the order of the pages there, which would then be a guess.
    """
    page = tif.pages.first
    if 270 in page.tags:
        return
    file, layout = tif.filehandle, tif.tiff
    file.seek(page.offset)
    (count,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    entries = np.frombuffer(file.read(count * layout.tagsize), f"{tif.byteorder}u2")
    if 270 in entries[:: layout.tagsize // 2]:
        raise VolumeError("is truncated, the description of its axes is beyond its end; copy it again")


def _check_companions(tif: tifffile.TiffFile, path: Path) -> None:
    """Check what OME-XML claims before tifffile believes it.

    Raises:
        VolumeError: it refers to pages in a file of another folder, or claims more planes than are ever stored.
    """
    xml = (tif.is_ome and tif.ome_metadata) or ""
    planes = re.findall("(?:Size[ZCT]|PlaneCount)\\s*=\\s*[\"']\\s*([0-9]+)", xml)
    if any(int(claimed) > MOST_PLANES for claimed in planes):
        raise VolumeError(f"its OME-XML claims more planes than {MOST_PLANES:,}; write it again")
    for name in re.findall("FileName\\s*=\\s*[\"']([^\"']*)", xml):
        confined(path.parent, unescape(name))


def _only_series(tif: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """Return the image of the file; its pages may be stored in several ways.

    Raises:
        VolumeError: the file holds several images, or voxels that tifffile cannot decode.
    """
    found = tif.series
    if len(found) > 1 and {one.kind for one in found} == {"generic"}:
        stored = (page for page in chain.from_iterable(found) if page is not None)
        pages = sorted(stored, key=lambda page: page.offset)
        shape, dtype, axes = pages[0].shape, pages[0].dtype, pages[0].axes
        if {(page.shape, page.dtype, page.axes) for page in pages} == {(shape, dtype, axes)}:
            found = [tifffile.TiffPageSeries(pages, (len(pages), *shape), dtype, f"I{axes}")]
    if len(found) != 1:
        listing = ", ".join(f"{series.shape} {series.dtype}" for series in found[:4])
        raise VolumeError(f"holds {len(found)} images, which differ in shape or type ({listing}); keep one")
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


def _spacing(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, names: str | None) -> VoxelSize:
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


def _check_pages(series: tifffile.TiffPageSeries) -> tuple[Path, ...]:
    """Return the files of all pages of a series.

    Raises:
        VolumeError: pages are missing, or their data is beyond the end of their file.
    """
    ends: dict[Path, int] = {}
    for number, page in enumerate(series):
        if page is None:
            raise VolumeError(f"page {number} is missing; copy all files of the image again")
        file = Path(page.parent.filehandle.path)
        end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        ends[file] = max(ends.get(file, 0), end)
    for file, end in ends.items():
        require_bytes(file, end)
    return tuple(ends)
