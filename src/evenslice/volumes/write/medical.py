"""Files that place voxels in a patient: NIfTI (``.nii``, ``.nii.gz``), MetaImage (``.mha``) and NRRD (``.nrrd``).

In NIfTI x varies fastest, and channels are the fourth axis, which is time in the format. In the other two, which are written
compressed and in mm as ITK expects, channels are the components of each voxel.
"""

from __future__ import annotations

import gzip
import zlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import needs_extra
from evenslice.volumes.geometry import fit_spacing, is_invertible, sizes_in

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit
    from evenslice.volumes.write.image import Image

COMPRESSION = 6

# NIfTI has codes for three units of length; the others are converted to one of them.
_NIFTI_UNITS: dict[Unit, Unit] = {"pm": "um", "angstrom": "um", "nm": "um", "cm": "mm", "inch": "mm"}
_NIFTI_CODES: dict[Unit | None, str] = {"um": "micron", "mm": "mm", "m": "meter", None: "unknown"}

_MHA_TYPES = {
    "int8": "MET_CHAR",
    "uint8": "MET_UCHAR",
    "int16": "MET_SHORT",
    "uint16": "MET_USHORT",
    "int32": "MET_INT",
    "uint32": "MET_UINT",
    "int64": "MET_LONG_LONG",
    "uint64": "MET_ULONG_LONG",
    "float32": "MET_FLOAT",
    "float64": "MET_DOUBLE",
}
_MHA_SIZE = "CompressedDataSize = "
_MHA_DIGITS = 20

_NRRD_TYPES = {"float32": "float", "float64": "double"}


def write_nifti(path: Path, image: Image) -> None:
    """Write NIfTI-1, or NIfTI-2 if an axis is too long for NIfTI-1."""
    header = _nifti_header(image)
    zipped = path.name.lower().endswith(".gz")
    # Neither time nor name of the staging file is stored, so that the same voxels make the same file.
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) if zipped else nullcontext(file) as stream,
    ):
        stream.write(header.binaryblock)
        stream.write(bytes(header.get_data_offset() - len(header.binaryblock)))  # no header extension
        for _, _, voxels in image.slabs():
            stream.write(voxels.data)


def _nifti_header(image: Image) -> Any:
    with needs_extra("volumes", "writing a NIfTI volume"):
        import nibabel
    shape = (*image.zyx[::-1], len(image.channels)) if image.stacked else image.zyx[::-1]
    one = max(shape) < 2**15
    kind: Any = nibabel.Nifti1Header if one else nibabel.Nifti2Header  # its own types are partial
    header = kind(endianness="<")
    header.set_data_dtype(image.dtype)
    header.set_data_shape(shape)
    header.set_data_offset(352 if one else 544)
    header.set_slope_inter(1, 0)
    unit = None if image.unit is None else _NIFTI_UNITS.get(image.unit, image.unit)
    header.set_xyzt_units(_NIFTI_CODES[unit])
    spacing = (image.spacing or (1.0, 1.0, 1.0))[::-1]
    zooms = spacing if unit is None else sizes_in(spacing, image.unit, unit)
    header.set_zooms((*zooms, *(1.0 for _ in shape[3:])))
    affine = _affine_in(image, unit)
    if affine is not None:  # without it both codes are 0, and readers know the voxel size alone
        header.set_sform(affine, code="aligned")
        header.set_qform(affine, code="aligned")
        if not np.allclose(header.get_qform(), affine, rtol=1e-4, atol=1e-4):
            header.set_qform(None, code="unknown")  # a quaternion cannot represent shear
    if image.labels:
        header.set_intent("label")
    return header


def write_mha(path: Path, image: Image) -> None:
    """Write one file; the header comes first and states the compressed size, whose digits are filled in at the end."""
    header = _mha_header(image)
    compressor = zlib.compressobj(COMPRESSION)
    with path.open("wb") as file:
        file.write(header)
        for voxels in image.stacks():
            file.write(compressor.compress(np.ascontiguousarray(np.moveaxis(voxels, 0, -1)).data))
        file.write(compressor.flush())
        size = file.tell() - len(header)
        file.seek(header.index(_MHA_SIZE.encode()) + len(_MHA_SIZE))
        file.write(f"{size:0{_MHA_DIGITS}d}".encode())


def _mha_header(image: Image) -> bytes:
    steps, origin = _itk_placement(image)
    spacing = np.linalg.norm(steps, axis=1)
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"{_MHA_SIZE}{'0' * _MHA_DIGITS}",
        f"TransformMatrix = {_joined((steps / spacing[:, None]).ravel())}",
        f"Offset = {_joined(origin)}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_joined(spacing)}",
        f"DimSize = {' '.join(map(str, image.zyx[::-1]))}",
        f"ElementNumberOfChannels = {len(image.channels)}",
        f"ElementType = {_MHA_TYPES[image.dtype.name]}",
        "ElementDataFile = LOCAL",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _joined(values: NDArray[np.float64], separator: str = " ") -> str:
    return separator.join(map(repr, values.tolist()))


def write_nrrd(path: Path, image: Image) -> None:
    """Write one file, gzip-compressed; see https://teem.sourceforge.net/nrrd/format.html."""
    with path.open("wb") as file:
        file.write(_nrrd_header(image))
        with gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) as stream:
            for voxels in image.stacks():
                stream.write(np.ascontiguousarray(np.moveaxis(voxels, 0, -1)).data)


def _nrrd_header(image: Image) -> bytes:
    steps, origin = _itk_placement(image)
    directions = [f"({_joined(step, ',')})" for step in steps]
    sizes, kinds = list(image.zyx[::-1]), ["domain"] * 3
    if image.stacked:
        sizes, kinds, directions = [len(image.channels), *sizes], ["vector", *kinds], ["none", *directions]
    lines = [
        "NRRD0005",
        f"type: {_NRRD_TYPES.get(image.dtype.name, image.dtype.name)}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {' '.join(directions)}",
        f"kinds: {' '.join(kinds)}",
        "endian: little",
        "encoding: gzip",
        f"space origin: ({_joined(origin, ',')})",
    ]
    if image.unit is not None:
        lines.append('space units: "mm" "mm" "mm"')
    return "".join(f"{line}\n" for line in (*lines, "")).encode()


def _affine_in(image: Image, unit: Unit | None) -> NDArray[np.float64] | None:
    """Return the affine of an image in a unit of length, with columns as long as the voxels.

    Args:
        image: the image.
        unit: unit of the result; None means mm, as does an unknown unit of the spacing.

    Returns:
        (4, 4) map from voxel indices (x, y, z, 1), or None if the image has no invertible affine, or one that is merely
        assumed.
    """
    if image.affine is None or not image.placed or not is_invertible(image.affine):
        return None
    if image.spacing is None:
        return image.affine
    affine = fit_spacing(image.affine, image.spacing, image.unit)
    affine[:3] /= sizes_in([1.0], unit, "mm")[0]
    return affine


def _itk_placement(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what MetaImage and NRRD store: steps and origin in mm, x to the left, y to the back, z to the head.

    Returns:
        (3, 3) array whose rows are the steps from a voxel to the next along x, y and z, and the position (3,) of the
        first voxel. An image without an affine, or with one that is merely assumed, is aligned with the axes.
    """
    affine = _affine_in(image, "mm")
    if affine is None:
        spacing = image.spacing or (1.0, 1.0, 1.0)
        return np.diag(sizes_in(spacing[::-1], image.unit, "mm")), np.zeros(3)
    flipped = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    # Adding zero turns -0.0 into 0.0.
    return flipped[:, :3].T + 0.0, flipped[:, 3] + 0.0
