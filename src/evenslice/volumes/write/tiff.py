"""TIFF files, zlib-compressed: ImageJ's dialect where it can hold the image, else OME-TIFF.

ImageJ holds uint8, uint16 and float32 in files of up to 4 GiB. OME-TIFF holds the rest, in BigTIFF where it has to be;
only 64-bit integers, which it does not know either, go into a plain TIFF with the notes of tifffile.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import needs_extra
from evenslice.volumes.write.image import SLAB_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.units import Unit
    from evenslice.volumes.write.image import Image

__all__ = ["write_tiff"]

CLASSIC_BYTES = 2**32 - 2**25
"""Bytes of voxels up to which a classic TIFF is sure to hold them, compressed or not, and its pages' tags."""

_BIG_SUFFIXES = (".btf", ".tf8")
_OME_SUFFIXES = (".ome.tif", ".ome.tiff")
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")
_ORIENTATION = (274, 3, 1, 1, False)

_OME_UNITS: dict[Unit, str] = {"um": "µm", "angstrom": "Å", "inch": "in"}


def write_tiff(path: Path, image: Image) -> None:
    """Write one page a slice, of channels those of each slice after another, as ImageJ orders a hyperstack."""
    with needs_extra("volumes", "writing a TIFF volume"):
        import tifffile
    name = path.name.lower()
    big = image.nbytes > CLASSIC_BYTES or name.endswith(_BIG_SUFFIXES)
    plain = image.dtype.kind in "iu" and image.dtype.itemsize == 8
    imagej = image.dtype.name in _IMAGEJ_TYPES and not big and not name.endswith(_OME_SUFFIXES)
    ome = not plain and not imagej
    z, y, x = image.zyx
    metadata: dict[str, Any] = {"axes": "ZCYX" if image.stacked else "ZYX"}
    pages = _pages(image)
    # tifffile swallows what goes wrong when it closes a file of its own; this one is ours.
    with path.open("w+b") as file, tifffile.TiffWriter(file, bigtiff=big, imagej=imagej, ome=ome) as writer:
        writer.write(
            map(np.asarray, pages),  # not the generator itself, which the writer would close
            shape=(z, len(image.channels), y, x) if image.stacked else (z, y, x),
            dtype=image.dtype,
            photometric="minisblack",
            compression="zlib",
            metadata=metadata | (_ome_notes(image) if ome else _notes(image)),
            resolution=None if ome or image.spacing is None else (1 / image.spacing[2], 1 / image.spacing[1]),
            resolutionunit="NONE",
            # Where this tag stands, every version of ImageJ goes from page to page; without it some take all
            # slices to lie behind the first one, as they do in a file that is not compressed.
            extratags=[_ORIENTATION],
            buffersize=SLAB_BYTES,
        )
        next(pages, None)  # the writer stops at the last page, which is counted only now


def _pages(image: Image) -> Iterator[NDArray[Any]]:
    for voxels in image.stacks():
        for z in range(voxels.shape[1]):
            yield from voxels[:, z]


def _notes(image: Image) -> dict[str, Any]:
    """Return the distance of slices and the unit; the pixel size is in the resolution tags."""
    if image.spacing is None:
        return {}
    return {"spacing": image.spacing[0]} | ({} if image.unit is None else {"unit": image.unit})


def _ome_notes(image: Image) -> dict[str, Any]:
    """Return the voxel size; OME-XML takes what has no unit for micrometres, so one that is none is named.

    The identifier of the file is drawn here because tifffile's would hold the address of the machine.
    """
    identifier = {"UUID": str(uuid.uuid4())}
    if image.spacing is None:
        return identifier
    unit = "pixel" if image.unit is None else _OME_UNITS.get(image.unit, image.unit)
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", image.spacing, strict=True)}
    return identifier | sizes | {f"PhysicalSize{axis}Unit": unit for axis in "ZYX"}
