"""MetaImage files (``.mha``): zlib-compressed; channels are the components of each voxel."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from evenslice.volumes.write.placement import itk_placement

if TYPE_CHECKING:
    from pathlib import Path

    from evenslice.volumes.write.image import Image

__all__ = ["write_mha"]

COMPRESSION = 6

_TYPES = {
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
_SIZE = "CompressedDataSize = "
_DIGITS = 20


def write_mha(path: Path, image: Image) -> None:
    """Write one file, with lengths in mm as ITK expects.

    The header comes first and states the compressed size, whose digits are filled in at the end.
    """
    header = _header(image)
    compressor = zlib.compressobj(COMPRESSION)
    with path.open("wb") as file:
        file.write(header)
        for voxels in image.stacks():
            file.write(compressor.compress(np.ascontiguousarray(np.moveaxis(voxels, 0, -1)).data))
        file.write(compressor.flush())
        size = file.tell() - len(header)
        file.seek(header.index(_SIZE.encode()) + len(_SIZE))
        file.write(f"{size:0{_DIGITS}d}".encode())


def _header(image: Image) -> bytes:
    steps, origin = itk_placement(image)
    spacing = np.linalg.norm(steps, axis=1)
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"{_SIZE}{'0' * _DIGITS}",
        f"TransformMatrix = {_numbers((steps / spacing[:, None]).ravel())}",
        f"Offset = {_numbers(origin)}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_numbers(spacing)}",
        f"DimSize = {' '.join(map(str, image.zyx[::-1]))}",
        f"ElementNumberOfChannels = {len(image.channels)}",
        f"ElementType = {_TYPES[image.dtype.name]}",
        "ElementDataFile = LOCAL",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _numbers(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    return " ".join(map(repr, values.tolist()))
