"""NumPy ``.npy`` files: voxels alone, (z, y, x) or (channel, z, y, x)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from evenslice.volumes.write.image import Image

__all__ = ["write_npy"]


def write_npy(path: Path, image: Image) -> None:
    """Write the voxels; the format has no place for their spacing.

    They are appended to the header rather than put into a memory map, for a full disk kills a process that writes to one.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(image.dtype),
        "fortran_order": False,
        "shape": image.shape,
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, _, voxels in image.slabs():
            file.write(voxels.data)
