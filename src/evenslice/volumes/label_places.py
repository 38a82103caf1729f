"""Whether labels lie where their image does, as far as the files of both say.

check_place(labels, volume)
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import VolumeError, option
from evenslice.volumes.affines import axis_codes, fit_spacing, is_invertible
from evenslice.volumes.units import millimetres
from evenslice.volumes.views import reslice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.volumes.volume import Volume

__all__ = ["check_place"]

HALF_VOXEL = (
    0.501  # half of one, and room for the rounding of single precision, in which NIfTI stores positions
)


def check_place(labels: Volume, volume: Volume) -> None:
    """Raise if labels of the shape of an image lie elsewhere in space, by the affines that the files of both state.

    Not compared are labels whose axes the user has named, and those with x, y and z along the axes of space from its origin,
    as programs write that know of no place. Unless their voxels have size 1, such labels are compared all the same with an
    image that fills the same box or its mirror image: one of the two then has axes that were reversed or exchanged.

    Raises:
        VolumeError: a corner voxel of the labels lies more than half a voxel from that of the image.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> check_place(open_volume(np.zeros((2, 3, 4))), open_volume(np.ones((2, 3, 4))))
    """
    if labels.affine is None or volume.affine is None or not is_invertible(volume.affine):
        return
    if labels.axes_given or not (labels.placed and volume.placed) or _is_unplaced(labels, volume):
        return
    gaps = [
        _corner_gaps(own, other, labels.shape)
        for own, other in product(_placements(labels), _placements(volume))
    ]
    if not any((voxels <= HALF_VOXEL).all() for voxels, _ in gaps):
        raise VolumeError(_describe(labels, volume, float(gaps[0][1].max())))


def _is_unplaced(labels: Volume, volume: Volume) -> bool:
    """Return whether the file of labels, of which they may be a part, states only what stands for no place.

    That is all that a format can state which, as MetaImage, stores an origin in any case.
    """
    own, other = (reslice(item._whole or item, "z") for item in (labels, volume))  # noqa: SLF001  # as opened
    affine = np.asarray(own.affine)
    sizes = np.abs(affine.diagonal()[:3])
    if not np.allclose(affine, np.diag(affine.diagonal()), rtol=0, atol=1e-6 * sizes.min()):
        return False
    if np.allclose(sizes, 1.0 if own.unit is None else millimetres(own.unit)):
        return True
    return not np.allclose(_reach(own), _reach(other), rtol=0, atol=HALF_VOXEL * sizes.min())


def _reach(volume: Volume) -> NDArray[np.float64]:
    """Return how near and how far from the origin voxels lie along each axis of space, to whichever side."""
    distances = np.abs(np.asarray(volume.affine)[:3] @ _corners(volume.shape))
    return np.array([distances.min(axis=1), distances.max(axis=1)])


def _corners(shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return the corner voxels (x, y, z, 1) of a volume of shape (z, y, x), one a column."""
    return np.array([[*corner, 1] for corner in product(*((0, length - 1) for length in shape[::-1]))]).T


def _placements(volume: Volume) -> list[NDArray[np.float64]]:
    """Return the affine that a file states, and that with the spacing of the user, as ``segment`` writes it."""
    if volume.affine is None or volume.spacing is None or not is_invertible(volume.affine):
        return [] if volume.affine is None else [volume.affine]
    return [volume.affine, fit_spacing(volume.affine, volume.spacing, volume.unit)]


def _corner_gaps(
    own: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far the corner voxels under one affine lie from those under another: in voxels of that, and in mm."""
    gaps = (own - other)[:3] @ _corners(shape)
    return np.abs(np.linalg.solve(other[:3, :3], gaps)), np.linalg.norm(gaps, axis=0)


def _describe(labels: Volume, volume: Volume, distance: float) -> str:
    own, other = (axis_codes(np.asarray(reslice(item, "z").affine)) for item in (labels, volume))
    names = (labels._whole or labels)._source().names or "zyx"  # noqa: SLF001  # as the file states them
    differs = (
        f"lies up to {distance:.4g} mm from {volume.path}"
        if own == other
        else f"its axes x, y, z run to {own}, those of {volume.path} to {other}"
    )
    return (
        f"{labels.path}: {differs}; resample it onto the image or, if the two correspond voxel by voxel as stored, open "
        f"it with {option('label_axes', names)}"
    )
