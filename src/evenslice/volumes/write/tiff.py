"""TIFF files, zlib-compressed: in ImageJ's dialect if it can hold the image, else OME-TIFF.

ImageJ's dialect holds uint8, uint16 and float32 in files of up to 4 GiB. OME-TIFF holds the rest, as BigTIFF if needed,
except for 64-bit integers, which go into a plain TIFF with the metadata of tifffile. So do single slices, of which ImageJ's
dialect would lose an axis, as it would of planes one voxel wide.
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

    from evenslice.volumes.geometry import Unit
    from evenslice.volumes.write.image import Image

CLASSIC_BYTES = 2**32 - 2**25
"""Bytes of voxels that a classic TIFF can always hold with its tags, compressed or not."""

_BIG_SUFFIXES = (".btf", ".tf8")
_OME_SUFFIXES = (".ome.tif", ".ome.tiff")
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")
_ORIENTATION = (274, 3, 1, 1, False)

_OME_UNITS: dict[Unit, str] = {"um": "µm", "angstrom": "Å", "inch": "in"}


def unfit_for_tiff(image: Image) -> str | None:
    """Return why an image cannot be written as a TIFF; None if it can."""
    if _is_long(image) and image.zyx[2] == 1:
        return "TIFF cannot hold 64-bit integers in planes one voxel wide"
    return None


def _is_long(image: Image) -> bool:
    return image.dtype.kind in "iu" and image.dtype.itemsize == 8


def write_tiff(path: Path, image: Image) -> None:
    """Write one page per slice, or per channel of each slice in turn, as in a hyperstack of ImageJ."""
    with needs_extra("volumes", "writing a TIFF volume"):
        import tifffile
    name = path.name.lower()
    z, y, x = image.zyx
    big = image.nbytes > CLASSIC_BYTES or name.endswith(_BIG_SUFFIXES)
    named_ome = name.endswith(_OME_SUFFIXES)
    plain = _is_long(image) or (z == 1 < x and not named_ome)
    imagej = image.dtype.name in _IMAGEJ_TYPES and x > 1 and not (big or named_ome or plain)
    ome = not plain and not imagej
    metadata: dict[str, Any] = {"axes": "ZCYX" if image.stacked else "ZYX"}
    pages = _pages(image)
    shape = (z, len(image.channels), y, x) if image.stacked else (z, y, x)
    # tifffile suppresses errors when it closes a file that it opened, so we open it.
    with path.open("w+b") as file, tifffile.TiffWriter(file, bigtiff=big, imagej=imagej, ome=ome) as writer:
        writer.write(
            # Not the generator itself, which the writer would close; and whole where it takes pages for columns.
            map(np.asarray, pages) if x > 1 else np.stack(list(pages)).reshape(shape),
            shape=shape,
            dtype=image.dtype,
            photometric="minisblack",
            compression="zlib",
            metadata=metadata | (_ome_metadata(image) if ome else _metadata(image)),
            resolution=None if ome else _resolution(image),
            resolutionunit="NONE",
            # Without this tag, some versions of ImageJ assume that all slices follow the first one, as in an
            # uncompressed file; with it, all versions follow the chain of pages.
            extratags=[_ORIENTATION],
            buffersize=SLAB_BYTES,
        )
        next(pages, None)  # the writer stops at the last page, which is only counted now


def _pages(image: Image) -> Iterator[NDArray[Any]]:
    for voxels in image.stacks():
        for z in range(voxels.shape[1]):
            yield from voxels[:, z]


def _resolution(image: Image) -> tuple[float, float] | None:
    """Return pixels per unit along x and y; None if unknown, or beyond what the tags of a TIFF can state."""
    if image.spacing is None or not 2**-31 < min(image.spacing[1:]) <= max(image.spacing[1:]) < 2**31:
        return None
    return 1 / image.spacing[2], 1 / image.spacing[1]


def _metadata(image: Image) -> dict[str, Any]:
    """Return the distance of slices and its unit; the pixel size is in the resolution tags."""
    if image.spacing is None:
        return {}
    return {"spacing": image.spacing[0]} | ({} if image.unit is None else {"unit": image.unit})


def _ome_metadata(image: Image) -> dict[str, Any]:
    """Return the voxel size, with the unit "pixel" if unknown, because OME-XML assumes micrometres otherwise.

    The UUID of the file is generated here because that of tifffile would contain the network address of the machine.
    """
    identifier = {"UUID": str(uuid.uuid4())}
    if image.spacing is None:
        return identifier
    unit = "pixel" if image.unit is None else _OME_UNITS.get(image.unit, image.unit)
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", image.spacing, strict=True)}
    return identifier | sizes | {f"PhysicalSize{axis}Unit": unit for axis in "ZYX"}
