"""The linear map from voxel values to 0..1, one for all slices of a volume: identical slices stay identical."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import ConfigError, VolumeError, option
from evenslice.volumes.blocks import find_nonfinite, sample_voxels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from evenslice.volumes.volume import Volume

__all__ = ["PERCENTILES", "Scaling", "check_finite", "fit_scaling"]

PERCENTILES = (0.5, 99.5)
"""The percentiles of the voxel values that become 0 and 1 unless a range is given."""

WHOLE_CHECK = 2**32  # bytes up to which a whole volume is searched for NaN first


@dataclass(frozen=True)
class Scaling:
    """The linear map from voxel values to 0..1 that all slices of a volume share; values outside the range are clipped.

    Attributes:
        low: the voxel value that becomes 0.
        high: the voxel value that becomes 1.
        fill: the voxel value that replaces NaN and infinity; None keeps them.

    Example:
        >>> Scaling(low=0, high=200)([-5, 50, 400]).tolist()
        [0.0, 0.25, 1.0]
    """

    low: float
    high: float
    fill: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ConfigError(
                f"intensity range {self.low:g} to {self.high:g}: the first must be below the second"
            )
        if self.fill is not None and not np.isfinite(self.fill):
            raise ConfigError(
                f"{option('fill', self.fill)}: replaces NaN and infinity, so it must be a finite number"
            )

    def __call__(self, voxels: ArrayLike) -> NDArray[np.float32]:
        """Scale voxels of any shape to float32 in 0..1."""
        with np.errstate(over="ignore"):  # values beyond float32 are clipped anyway
            scaled = np.array(voxels, dtype=np.float32)
        if self.fill is not None:
            scaled[~np.isfinite(scaled)] = self.fill
        scaled -= np.float32(self.low)
        scaled *= np.float32(1 / (self.high - self.low))
        return np.clip(scaled, 0, 1, out=scaled)


def fit_scaling(
    volume: Volume,
    *,
    intensity: tuple[float, float] | None = None,
    fill: float | None = None,
    seed: int = 0,
) -> Scaling:
    """Choose the scaling of a volume: a fixed intensity range, or the 0.5th and 99.5th percentile of a sample.

    Args:
        volume: the volume to scale.
        intensity: the voxel values that become 0 and 1; None for percentiles of about a million voxels.
        fill: the voxel value that replaces NaN and infinity.
        seed: seed of the sample.

    Raises:
        ConfigError: the intensities are not in ascending order.
        VolumeError: the sample is constant; or there is NaN or infinity and no ``fill`` (searched for in the whole
            volume up to 4 GiB, else in the sample).

    Example:
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(1001, dtype=np.float32).reshape(7, 11, 13))
        >>> fit_scaling(volume)
        Scaling(low=5.0, high=995.0, fill=None)
    """
    if fill is None and volume.nbytes <= WHOLE_CHECK:
        check_finite(volume)
    if intensity is not None:
        return Scaling(*intensity, fill=fill)
    voxels = sample_voxels(volume, seed=seed)
    finite = voxels[np.isfinite(voxels)]
    if fill is None and finite.size < voxels.size:
        check_finite(volume)
        raise VolumeError(f"{volume.path}: has values beyond the range of float32; scale it down first")
    if finite.size == 0:
        raise VolumeError(
            f"{volume.path}: no voxel of the sample is finite, so it cannot be scaled; check the file"
        )
    low, high = (float(value) for value in np.percentile(finite, PERCENTILES))
    if low == high:  # most voxels of a sparse volume have the same value
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        raise VolumeError(
            f"{volume.path}: constant, all {finite.size} sampled voxels are {low:g}; "
            f"use a volume with contrast, or give its range with {option('intensity')}"
        )
    return Scaling(low, high, fill)


def check_finite(volume: Volume) -> None:
    """Raise VolumeError if a voxel is NaN or infinite; the message counts them and locates the first."""
    found = find_nonfinite(volume)
    if found is not None:
        raise VolumeError(
            f"{volume.path}: {found[0]} voxels are NaN or infinite, the first at z, y, x = {found[1]}; "
            f"to accept them, give the voxel value that replaces them as {option('fill')}"
        )
