"""The position of voxels in space: the affine in a unit of length, and as the formats of ITK store it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evenslice.volumes.affines import fit_spacing, is_invertible
from evenslice.volumes.write.image import sizes_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.volumes.units import Unit
    from evenslice.volumes.write.image import Image

__all__ = ["affine_in", "itk_placement"]


def affine_in(image: Image, unit: Unit | None) -> NDArray[np.float64] | None:
    """Return the affine of an image in a unit of length, with columns as long as the voxels.

    Args:
        image: the image.
        unit: unit of the result; None means mm, as does an unknown unit of the spacing.

    Returns:
        (4, 4) map from voxel indices (x, y, z, 1), or None if the image has no invertible affine.
    """
    if image.affine is None or not is_invertible(image.affine):
        return None
    if image.spacing is None:
        return image.affine
    affine = fit_spacing(image.affine, image.spacing, image.unit)
    affine[:3] /= sizes_in([1.0], unit, "mm")[0]
    return affine


def itk_placement(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what MetaImage and NRRD store: steps and origin in mm, x to the left, y to the back, z to the head.

    Returns:
        (3, 3) array whose rows are the steps from a voxel to the next along x, y and z, and the position (3,) of the
        first voxel. An image without an affine, or with one that is merely assumed, is aligned with the axes.
    """
    affine = affine_in(image, "mm") if image.placed else None
    if affine is None:
        spacing = image.spacing or (1.0, 1.0, 1.0)
        return np.diag(sizes_in(spacing[::-1], image.unit, "mm")), np.zeros(3)
    flipped = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    # Adding zero turns -0.0 into 0.0.
    return flipped[:, :3].T + 0.0, flipped[:, 3] + 0.0
