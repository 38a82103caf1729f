"""The linear map from voxel values to 0..1, one for all slices of a volume: identical slices stay identical."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, option
from evenslice.volumes.blocks import find_nonfinite, sample_voxels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from evenslice.volumes.volume import Volume

PERCENTILES = (0.5, 99.5)
"""The percentiles of the voxel values that become 0 and 1 unless a range is given."""

STRAY = 0.001  # part of the voxels that may lie inside a range although it leaves a volume no contrast

LARGEST = float(np.finfo(np.float32).max)  # beyond which nothing is scaled in float32

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
        low, high = two_numbers((self.low, self.high))
        if not (low < high and np.isfinite(high - low)):
            raise ConfigError(f"{option('intensity', [low, high])}: the first must be below the second")
        fill = None if self.fill is None else _number("fill", self.fill)
        if fill is not None and not np.isfinite(fill):
            raise ConfigError(f"{option('fill', fill)}: must be finite, to replace NaN and infinity")
        for name, value in {"low": low, "high": high, "fill": fill}.items():
            object.__setattr__(self, name, value)

    def __call__(self, voxels: ArrayLike) -> NDArray[np.float32]:
        """Scale voxels of any shape to float32 in 0..1."""
        stored, width = np.asarray(voxels), self.high - self.low
        if stored.dtype.kind not in "biuf":
            raise ConfigError(f"voxels of type {stored.dtype} cannot be scaled; give numbers, real ones")
        wide = _exceeds_float32(stored.dtype) or abs(self.low) > LARGEST or 1 / width > LARGEST
        kind: Any = np.float64 if wide else np.float32
        with np.errstate(over="ignore"):  # what overflows is 0 or 1
            scaled: NDArray[Any] = np.array(stored, kind)
            if self.fill is not None:
                scaled[~np.isfinite(scaled)] = self.fill
            scaled -= kind(self.low)
            if wide:
                scaled /= width
            else:
                scaled *= np.float32(1 / width)
        return np.clip(scaled, 0, 1, out=scaled).astype(np.float32, copy=False)


def two_numbers(intensity: Any) -> tuple[float, float]:
    """Return the voxel values that become 0 and 1, as a user gave them.

    Raises:
        ConfigError: they are not two numbers.
    """
    try:
        low, high = intensity
    except (TypeError, ValueError):
        told = option("intensity", intensity)
        raise ConfigError(f"{told}: give two numbers, the voxel values that become 0 and 1") from None
    return _number("intensity", low), _number("intensity", high)


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError("text")
        return float(value)  # those of NumPy may overflow, and are not written as JSON
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{option(name)}: {value!r:.40} is not a number; give voxel values") from None


def _exceeds_float32(dtype: np.dtype[Any]) -> bool:
    """Return whether float32 rounds values of a data type: float64, and integers of more than 24 bits."""
    return dtype.itemsize > (2 if dtype.kind in "iu" else 4)


def _sample(volume: Volume, seed: int) -> NDArray[Any]:
    """Draw voxels, as float32 unless that would round them."""
    voxels = sample_voxels(volume, seed=seed)
    with np.errstate(over="ignore"):  # overflows become infinite
        return voxels if _exceeds_float32(volume.dtype) else voxels.astype(np.float32)


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
    if fill is None and finite.size < voxels.size:
        require_finite(volume, voxels, "a sample")
    if finite.size == 0:
        raise VolumeError(f"{volume.path}: no voxel of a sample is finite, so it cannot be scaled")
    if voxels.dtype.kind == "f" and fill is None and not (abs(voxels) <= LARGEST).all():
        raise VolumeError(
            f"{volume.path}: has values beyond float32; give its range as {option('intensity')}"
        )
    low, high = (float(value) for value in np.percentile(finite, PERCENTILES))
    if low == high:  # most voxels of a sparse volume have the same value
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        raise _constant(volume, finite, f", or give its range with {option('intensity')}" if blank else "")
    return Scaling(low, high, fill)


def _constant(volume: Volume, finite: NDArray[Any], otherwise: str = "") -> VolumeError:
    found = f"all {finite.size} sampled voxels are {float(finite.flat[0]):g}"
    return VolumeError(f"{volume.path}: constant, {found}; use a volume with contrast{otherwise}")


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
            f"{option('intensity', [scaling.low, scaling.high])}; those of a sample are {voxels.min():g} to {voxels.max():g}"
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
        give the value for them as fill
    """
    if _is_searched(volume):
        _check_whole(volume)
    elif count := int(np.count_nonzero(~np.isfinite(voxels))):
        raise _nonfinite(volume, f"{count} of {voxels.size} voxels of {part} are NaN or infinite")


def _is_searched(volume: Volume) -> bool:
    """Return whether a whole volume is searched for NaN; one at an address would be downloaded for it."""
    return volume.nbytes <= WHOLE_CHECK and not volume.remote


def _check_whole(volume: Volume) -> None:
    if found := find_nonfinite(volume):
        raise _nonfinite(volume, f"{found[0]} voxels are NaN or infinite, the first at z, y, x = {found[1]}")


def _nonfinite(volume: Volume, found: str) -> VolumeError:
    return VolumeError(f"{volume.path}: {found}; to accept them, give the value for them as {option('fill')}")
