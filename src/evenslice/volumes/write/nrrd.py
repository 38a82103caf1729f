"""NRRD files (``.nrrd``): gzip-compressed; channels are the components of each voxel."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import numpy as np

from evenslice.volumes.write.placement import itk_placement

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from evenslice.volumes.write.image import Image

__all__ = ["write_nrrd"]

COMPRESSION = 6

_TYPES = {"float32": "float", "float64": "double"}


def write_nrrd(path: Path, image: Image) -> None:
    """Write one file, with lengths in mm as ITK and Slicer expect."""
    with path.open("wb") as file:
        file.write(_header(image))
        with gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) as stream:
            for voxels in image.stacks():
                stream.write(np.ascontiguousarray(np.moveaxis(voxels, 0, -1)).data)


def _header(image: Image) -> bytes:
    """Return the header; see https://teem.sourceforge.net/nrrd/format.html."""
    steps, origin = itk_placement(image)
    directions = [_vector(step) for step in steps]
    sizes, kinds = list(image.zyx[::-1]), ["domain"] * 3
    if image.stacked:
        sizes, kinds, directions = [len(image.channels), *sizes], ["vector", *kinds], ["none", *directions]
    lines = [
        "NRRD0005",
        f"type: {_TYPES.get(image.dtype.name, image.dtype.name)}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {' '.join(directions)}",
        f"kinds: {' '.join(kinds)}",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(origin)}",
    ]
    if image.unit is not None:
        lines.append('space units: "mm" "mm" "mm"')
    return "".join(f"{line}\n" for line in (*lines, "")).encode()


def _vector(values: Iterable[float]) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"
