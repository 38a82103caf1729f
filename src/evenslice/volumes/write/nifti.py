"""NIfTI files (``.nii``, ``.nii.gz``): x varies fastest; channels are the fourth axis, which is time in the format."""

from __future__ import annotations

import gzip
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from evenslice._core import needs_extra
from evenslice.volumes.write.image import sizes_in
from evenslice.volumes.write.placement import affine_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.units import Unit
    from evenslice.volumes.write.image import Image

__all__ = ["write_nifti"]

COMPRESSION = 6

# The format has codes for three units of length; the others are converted to one of them.
_UNITS: dict[Unit, Unit] = {"pm": "um", "angstrom": "um", "nm": "um", "cm": "mm", "inch": "mm"}
_CODES: dict[Unit | None, str] = {"um": "micron", "mm": "mm", "m": "meter", None: "unknown"}


def write_nifti(path: Path, image: Image) -> None:
    """Write NIfTI-1, or NIfTI-2 if an axis is too long for NIfTI-1."""
    header = _header(image)
    with _opened(path) as file:
        file.write(header.binaryblock)
        file.write(bytes(header.get_data_offset() - len(header.binaryblock)))  # no header extension
        for _, _, voxels in image.slabs():
            file.write(voxels.data)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # Neither time nor name of the staging file is stored, so that the same voxels make the same file.
            with gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) as stream:
                yield cast(BinaryIO, stream)
        else:
            yield file


def _header(image: Image) -> Any:
    with needs_extra("volumes", "writing a NIfTI volume"):
        import nibabel
    shape = image.shape[:0:-1] if image.stacked else image.shape[::-1]
    shape = (*shape, len(image.channels)) if image.stacked else shape
    one = max(shape) < 2**15
    kind: Any = nibabel.Nifti1Header if one else nibabel.Nifti2Header  # its own types are partial
    header = kind(endianness="<")
    header.set_data_dtype(image.dtype)
    header.set_data_shape(shape)
    header.set_data_offset(352 if one else 544)
    header.set_slope_inter(1, 0)
    unit = None if image.unit is None else _UNITS.get(image.unit, image.unit)
    header.set_xyzt_units(_CODES[unit])
    header.set_zooms((*_zooms(image, unit), *(1.0 for _ in shape[3:])))
    affine = affine_in(image, unit)
    if affine is not None and image.placed:
        _place(header, affine)
    if image.labels:
        header.set_intent("label")
    return header


def _place(header: Any, affine: NDArray[np.float64]) -> None:
    """State where the voxels lie. Without it both codes are 0, and readers know the voxel size alone."""
    header.set_sform(affine, code="aligned")
    header.set_qform(affine, code="aligned")
    if not np.allclose(header.get_qform(), affine, rtol=1e-4, atol=1e-4):
        header.set_qform(None, code="unknown")  # a quaternion cannot represent shear


def _zooms(image: Image, unit: Unit | None) -> tuple[float, ...]:
    """Return the voxel size along x, y, z in the unit that is stored."""
    sizes = (1.0, 1.0, 1.0) if image.spacing is None else image.spacing[::-1]
    return sizes if unit is None else sizes_in(sizes, image.unit, unit)
