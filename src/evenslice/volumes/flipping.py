"""Volumes with one axis reversed, whose voxels keep their places in the patient."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np

from evenslice._core import check_known
from evenslice.volumes.opening import open_volume
from evenslice.volumes.volume import Plane, Volume


def flip_volume(volume: Volume, axis: str, *, ignore_orientation: bool = False) -> Volume:
    """Read a volume into memory with the voxels along one axis in reversed order.

    Args:
        volume: the volume.
        axis: "z", "y" or "x".
        ignore_orientation: keep the affine as it is, which then places voxels wrongly, as a conversion that loses the
            orientation does; by default it follows, so that every voxel keeps its place in the patient.

    Raises:
        ConfigError: it is no axis.
        VolumeError: the volume cannot be read.

    Example:
        >>> volume = open_volume(np.arange(6).reshape(3, 1, 2))
        >>> flip_volume(volume, "z")[...].tolist()
        [[[4, 5]], [[2, 3]], [[0, 1]]]
    """
    check_known("axis", axis, get_args(Plane))
    place = "zyx".index(axis)
    flipped = open_volume(np.flip(volume[...], place), spacing=volume.spacing, unit=volume.unit)
    affine = volume.affine
    if affine is not None and not ignore_orientation:
        reversing = np.eye(4)  # from the index of a voxel here to its index there; columns are x, y, z
        reversing[2 - place, [2 - place, 3]] = -1, volume.shape[place] - 1
        affine = affine @ reversing
    return replace(flipped, affine=affine)
