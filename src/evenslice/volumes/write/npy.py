"""NumPy ``.npy`` files: voxels only, (z, y, x) or (channel, z, y, x)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from evenslice.volumes.write.image import Image

__all__ = ["write_npy"]


def write_npy(path: Path, image: Image) -> None:
    """Write the voxels; the format cannot store their spacing.

    They are appended to the header, not written to a memory map, because a full disk kills a process that does that.
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
