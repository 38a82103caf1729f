"""Multi-page TIFF: plain, ImageJ, OME and BigTIFF, compressed or not, in strips or tiles.

tifffile parses the file and finds the positions of the voxels. Contiguous uncompressed voxels are read as they are;
otherwise the strips or tiles that overlap a window are read and decoded one by one.
"""

from __future__ import annotations

import logging
import math
import struct
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np

from evenslice._core import VolumeError, needs_extra
from evenslice.volumes.geometry import common_unit, normal_unit
from evenslice.volumes.read.checks import reporting_read_errors, require_signature
from evenslice.volumes.read.file_voxels import FileVoxels
from evenslice.volumes.read.places import confined
from evenslice.volumes.read.source import VoxelSource
from evenslice.volumes.read.tiff_pages import PageReader

if TYPE_CHECKING:
    from pathlib import Path

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
                voxels = FileVoxels(path, label, stored, series.dataoffset, self.shape)
                self._reader: FileVoxels | PageReader = voxels
                self.fresh = voxels.fresh
            else:
                self._reader = PageReader(series, path, label)
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
    """Raise if the file refers to pages in a file of another folder, or in a pipe, before tifffile opens it.

    Raises:
        VolumeError: it does, or its OME-XML claims more planes than are ever stored.
    """
    if tif.is_ome:
        with reporting_read_errors(label, "OME-TIFF"):
            root = ET.fromstring(tif.ome_metadata or "")  # noqa: S314  # tifffile parses the same text
            planes = max(map(_stated_planes, root.iter()), default=0)
            names = [
                str(element.get("FileName"))
                for element in root.iter()
                # The UUID of the file itself means this file, whatever its name was when it was written.
                if element.tag.endswith("UUID")
                and element.get("FileName")
                and element.text != root.get("UUID")
            ]
        if planes > MOST_PLANES:
            raise VolumeError(
                f"{label}: its OME-XML claims {planes:,} planes, more than the limit of {MOST_PLANES:,}; write it again"
            )
        files = [confined(path.parent, name, label) for name in names]
    elif tif.is_ndtiff or tif.is_mmstack:
        files = list(path.parent.iterdir())  # tifffile follows an index, or the names
    else:
        return
    for file in files:
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise VolumeError(f"{label}: {file.name[:80]!r} beside it is not a readable file; remove it")


def _stated_planes(element: ET.Element) -> int:
    """Return how many planes an element of OME-XML claims."""
    sizes = [int(element.get(f"Size{axis}", 1)) for axis in "ZCT"]
    counts = [int(element.get(name, 0)) for name in ("PlaneCount", "NumPlanes")]
    along = 0.0
    if "Start" in element.attrib and "End" in element.attrib:
        step = abs(float(element.get("Step", 1)))
        along = abs(float(element.get("End", 0)) - float(element.get("Start", 0))) / step
    return int(max(math.prod(sizes), *counts, along))


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
