"""The linear map from voxel values to 0..1, one for all slices of a volume: identical slices stay identical."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, option
from evenslice.volumes.blocks import find_nonfinite, sample_stored, sample_voxels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from evenslice.volumes.volume import Volume

__all__ = ["PERCENTILES", "Scaling", "fit_scaling", "require_finite", "two_numbers"]

PERCENTILES = (0.5, 99.5)
"""The percentiles of the voxel values that become 0 and 1 unless a range is given."""

STRAY = 0.001  # part of the voxels that may lie inside a range although it leaves a volume no contrast

LARGEST = float(np.finfo(np.float32).max)  # beyond which nothing is scaled in float32

EXACT = 2**53  # up to which float64 holds every integer

WHOLE_CHECK = 2**32  # bytes up to which a whole volume, unless it is remote, is searched for NaN first


@dataclass(frozen=True)
class Scaling:
    """The linear map from voxel values to 0..1 that all slices of a volume share; values outside the range are clipped.

    Attributes:
        low: the voxel value that becomes 0.
        high: the voxel value that becomes 1.
        fill: the voxel value that replaces NaN and infinity; with None, NaN stays NaN, and infinity is outside the range
            as any other value.

    Raises:
        ConfigError: a value is not a finite number, ``low`` is not below ``high``, or they are too far apart for a float.

    Example:
        >>> Scaling(low=0, high=200)([-5, 50, 400]).tolist()
        [0.0, 0.25, 1.0]
    """

    low: float
    high: float
    fill: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "fill"):  # those of NumPy may overflow, and are not written as JSON
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None and name == "fill" else _number(name, value))
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ConfigError(
                f"{option('intensity', [self.low, self.high])}: the first must be below the second"
            )
        if not np.isfinite(self.high - self.low):
            raise ConfigError(
                f"{option('intensity', [self.low, self.high])}: too far apart for a float; they must be less than 1.8e308 apart"
            )
        if self.fill is not None and not np.isfinite(self.fill):
            raise ConfigError(
                f"{option('fill', self.fill)}: replaces NaN and infinity, so it must be a finite number"
            )

    def __call__(self, voxels: ArrayLike) -> NDArray[np.float32]:
        """Scale voxels of any shape to float32 in 0..1."""
        stored, width = np.asarray(voxels), self.high - self.low
        if stored.dtype.kind not in "biuf":
            raise ConfigError(f"voxels of type {stored.dtype} cannot be scaled; give numbers, real ones")
        if _exceeds_float32(stored.dtype) or abs(self.low) > LARGEST or 1 / width > LARGEST:
            return self._scale_wide(stored)
        scaled = _in_float32(stored)
        if self.fill is not None:
            scaled[~np.isfinite(scaled)] = self.fill
        scaled -= np.float32(self.low)
        scaled *= np.float32(1 / width)
        return np.clip(scaled, 0, 1, out=scaled)

    def _scale_wide(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Scale voxels of which float32 holds neither the values nor the differences before ``low`` is subtracted."""
        with np.errstate(over="ignore"):  # what overflows is 0 or 1
            if _exceeds_float64(stored.dtype) and max(abs(self.low), abs(self.high)) > EXACT:
                above = self._above_low(stored)
            else:
                above = np.array(stored, np.float64)
                if self.fill is not None:
                    above[~np.isfinite(above)] = self.fill
                above -= self.low
            above /= self.high - self.low
        return np.clip(above, 0, 1, out=above).astype(np.float32)

    def _above_low(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Return how far integers of 64 bits lie above ``low``; those beyond the range may be moved to its ends."""
        limits = np.iinfo(stored.dtype)
        base, top = (
            min(max(end, limits.min), limits.max) for end in (math.floor(self.low), math.ceil(self.high))
        )
        # None is below the base, so the difference is that of the bits, whatever the sign.
        bits = np.array(np.clip(stored, base, top)).view(np.uint64)
        bits -= np.uint64(base % 2**64)
        above = bits.astype(np.float64)
        above += base - self.low
        return above


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError("text")
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"{option('fill' if name == 'fill' else 'intensity')}: {value!r:.40} is not a number; give voxel values"
        ) from None


def _exceeds_float32(dtype: np.dtype[Any]) -> bool:
    """Return whether float32 rounds values of a data type: float64, and integers of more than 24 bits."""
    return dtype.itemsize > (2 if dtype.kind in "iu" else 4)


def _exceeds_float64(dtype: np.dtype[Any]) -> bool:
    """Return whether float64 rounds values of a data type: integers of more than 53 bits."""
    return dtype.kind in "iu" and dtype.itemsize > 4


def _in_float32(voxels: ArrayLike) -> NDArray[np.float32]:
    """Copy voxels; those beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        return np.array(voxels, dtype=np.float32)


def _sample(volume: Volume, seed: int) -> NDArray[Any]:
    """Draw voxels, as float32 unless that would round them."""
    return (sample_stored if _exceeds_float32(volume.dtype) else sample_voxels)(volume, seed=seed)


def fit_scaling(
    volume: Volume,
    *,
    intensity: tuple[float, float] | None = None,
    fill: float | None = None,
    seed: int = 0,
    blank: bool = True,
) -> Scaling:
    """Choose the scaling of a volume: a fixed intensity range, or the 0.5th and 99.5th percentile of a sample.

    Args:
        volume: the volume to scale.
        intensity: the voxel values that become 0 and 1; None for percentiles of about a million voxels.
        fill: the voxel value that replaces NaN and infinity.
        seed: seed of the sample.
        blank: accept a constant volume, such as an empty tile, if ``intensity`` is given.

    Raises:
        ConfigError: the intensities are not two numbers in ascending order, or make (almost) all voxels of a sample equal (not
            checked at an address).
        VolumeError: the sample is constant, and no ``intensity`` given, or not ``blank``; or there is NaN or infinity
            and no ``fill`` (searched for in the whole volume up to 4 GiB, else, and at an address, in the sample;
            ``WindowGrid`` checks what it reads).

    Example:
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(1001, dtype=np.float32).reshape(7, 11, 13))
        >>> fit_scaling(volume)
        Scaling(low=5.0, high=995.0, fill=None)
    """
    if fill is None and _is_searched(volume):
        _check_whole(volume)
    if intensity is not None:
        scaling = Scaling(*two_numbers(intensity), fill=fill)
        if not volume.remote:  # a sample of one at an address takes many requests
            _check_contrast(volume, scaling, seed, blank=blank)
        return scaling
    voxels = _sample(volume, seed)
    finite = voxels[np.isfinite(voxels)]
    if fill is None:
        _check_sample(volume, voxels)
    if finite.size == 0:
        raise VolumeError(
            f"{volume.path}: no voxel of the sample is finite, so it cannot be scaled; check the file"
        )
    return Scaling(*_range(volume, finite, blank=blank), fill)


def two_numbers(intensity: Any) -> tuple[float, float]:
    """Return a range that a user gave.

    Raises:
        ConfigError: it is not two numbers.
    """
    try:
        low, high = map(float, intensity)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{option('intensity', intensity)}: give two numbers, the voxel values that become 0 and 1"
        ) from None
    return low, high


def _check_sample(volume: Volume, voxels: NDArray[Any]) -> None:
    """Raise VolumeError if some of a sample are not finite, or so large that they would be the range."""
    if voxels.dtype.kind != "f":
        return
    if not np.isfinite(voxels).all():
        require_finite(volume, voxels, "a sample")
    if not (abs(voxels) <= LARGEST).all():
        raise VolumeError(
            f"{volume.path}: has values beyond the range of float32; scale it down first, or give its range with "
            f"{option('intensity')}"
        )


def _range(volume: Volume, finite: NDArray[Any], *, blank: bool) -> tuple[float, float]:
    """Return the percentiles of sampled voxels or, where these are equal, their extremes.

    Raises:
        VolumeError: these are equal, too.
    """
    first, last = finite.min(), finite.max()
    if _exceeds_float64(
        finite.dtype
    ):  # the percentiles of differences, as those of the values would be rounded first
        base = int(first)
        above = finite.astype(np.uint64) - np.uint64(base % 2**64)
        low, high = (base + float(value) for value in np.percentile(above, PERCENTILES))
    else:
        low, high = (float(value) for value in np.percentile(finite, PERCENTILES))
    if low == high:  # most voxels of a sparse volume have the same value
        low, high = float(first), float(last)
    if low == high and first < last:  # integers that float64 rounds to one
        low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    if low < high:
        return low, high
    raise _constant(volume, finite, f", or give its range with {option('intensity')}" if blank else "")


def _constant(volume: Volume, finite: NDArray[Any], otherwise: str = "") -> VolumeError:
    return VolumeError(
        f"{volume.path}: constant, all {finite.size} sampled voxels are {float(finite.flat[0]):g}; use a volume with "
        f"contrast{otherwise}"
    )


def _check_contrast(volume: Volume, scaling: Scaling, seed: int, *, blank: bool) -> None:
    """Raise ConfigError if a range makes voxels equal that are not, by which any network would look fair."""
    voxels = _sample(volume, seed)
    voxels = voxels[np.isfinite(voxels)]
    if voxels.size == 0:
        return
    if voxels.min() == voxels.max():
        if blank:
            return
        raise _constant(volume, voxels)
    scaled = scaling(voxels)
    (low, high), (first, last) = (np.percentile(values, PERCENTILES) for values in (voxels, scaled))
    inside = np.count_nonzero((scaled > 0) & (scaled < 1))  # what is rare may yet be what the range is for
    constant = bool(np.ptp(scaled) == 0)
    if (low < high and first == last and inside < STRAY * voxels.size) or (constant and not blank):
        raise ConfigError(
            f"{volume.path}: {'all' if constant else 'almost all'} voxels are equal after scaling by "
            f"{option('intensity', [scaling.low, scaling.high])}; give the voxel values that should become 0 and 1, or "
            f"omit it (the sampled voxels are {voxels.min():g} to {voxels.max():g})"
        )


def require_finite(volume: Volume, voxels: NDArray[Any], part: str) -> None:
    """Raise VolumeError if stored voxels are NaN or infinite, and not only too large for float32.

    The message counts all of the volume and locates the first, if the volume is small enough to be searched; of a larger one,
    or one at an address, it counts those given.

    Args:
        volume: the volume.
        voxels: a part of it, as stored.
        part: what the message calls that part.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> require_finite(open_volume(np.array([[[0, 1, np.nan]]])), np.array([np.nan]), "a sample")
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: 1 voxels are NaN or infinite, the first at z, y, x = (0, 0, 2); to accept them,
        give the voxel value that replaces them as fill
    """
    if _is_searched(volume):
        _check_whole(volume)
        return
    count = int(np.count_nonzero(~np.isfinite(voxels)))
    if count:
        raise VolumeError(
            f"{volume.path}: {count} of {voxels.size} voxels of {part} are NaN or infinite; {_accept_them()}"
        )


def _is_searched(volume: Volume) -> bool:
    """Return whether a whole volume is searched for NaN; one at an address would be downloaded for it."""
    return volume.nbytes <= WHOLE_CHECK and not volume.remote


def _check_whole(volume: Volume) -> None:
    found = find_nonfinite(volume)
    if found is not None:
        raise VolumeError(
            f"{volume.path}: {found[0]} voxels are NaN or infinite, the first at z, y, x = {found[1]}; {_accept_them()}"
        )


def _accept_them() -> str:
    return f"to accept them, give the voxel value that replaces them as {option('fill')}"
