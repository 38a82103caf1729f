"""Slice windows and in-plane tiles of a volume, a random order of them, and the scaling of their voxels.

A window is N = 2K + 1 slices around slice z, at offsets k = -K..K (times a step), stacked as input channels. It is read
through a tile of the plane. One linear map takes the voxel values of a volume to 0..1: identical slices stay identical.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from evenslice._core import ConfigError, VolumeError, check_known, option, whole_number
from evenslice.volumes.volume import iterate_blocks, reads_at_once, sample_voxels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from evenslice.volumes.volume import Volume

Edge = Literal["valid", "reflect"]

STRAY = 0.001  # part of the voxels that may lie inside a range although it leaves a volume no contrast

LARGEST_FLOAT = float(np.finfo(np.float32).max)  # beyond which nothing is scaled in float32

WHOLE_CHECK = 2**32  # bytes up to which a whole volume, unless it is remote, is searched for NaN first


@dataclass(frozen=True)
class Scaling:
    """The linear map from voxel values to 0..1 that all slices of a volume share; values outside the range are clipped.

    Attributes:
        low: the voxel value that becomes 0.
        high: the voxel value that becomes 1.
        fill: the voxel value that replaces NaN and infinity; with None, NaN stays NaN, and infinity is clipped.

    Raises:
        ConfigError: a value is not a finite number, ``low`` is not below ``high``, or they are too far apart for a float.

    Example:
        >>> Scaling(low=0, high=200)([-5, 50, 400]).tolist()
        [0.0, 0.25, 1.0]
    """

    PERCENTILES: ClassVar[tuple[float, float]] = (0.5, 99.5)
    """The percentiles of the voxel values that become 0 and 1 unless a range is given."""

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

    def check(self, volume: Volume) -> None:
        """Read a volume whole, and raise VolumeError if it holds NaN or infinity and there is no fill value for them."""
        if self.fill is None:
            check_finite(volume)

    def __call__(self, voxels: ArrayLike) -> NDArray[np.float32]:
        """Scale voxels of any shape to float32 in 0..1."""
        stored, width = np.asarray(voxels), self.high - self.low
        if stored.dtype.kind not in "biuf":
            raise ConfigError(f"voxels of type {stored.dtype} cannot be scaled; give numbers, real ones")
        wide = _exceeds_float32(stored.dtype) or abs(self.low) > LARGEST_FLOAT or 1 / width > LARGEST_FLOAT
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


def fit_scaling(
    volume: Volume, intensity: tuple[float, float] | None, fill: float | None, *, seed: int, blank: bool
) -> Scaling:
    """Choose the scaling of a volume, as ``Reading.fit_scaling`` says."""
    if fill is None:
        require_finite(volume)
    scaling = None if intensity is None else Scaling(*intensity, fill)
    if scaling is not None and volume.remote:  # where a sample takes many requests
        return scaling
    voxels = sample_voxels(volume, seed=seed)
    if not _exceeds_float32(volume.dtype):
        voxels = voxels.astype(np.float32)
    finite = voxels[np.isfinite(voxels)]
    if scaling is not None:
        _check_contrast(volume, finite, scaling, blank=blank)
        return scaling
    if fill is None and finite.size < voxels.size:
        require_finite(volume, voxels, "a sample")
    if finite.size == 0:
        raise VolumeError(f"{volume.path}: no voxel of a sample is finite, so it cannot be scaled")
    low, high = (float(value) for value in np.percentile(finite, Scaling.PERCENTILES))
    if low == high:  # most voxels of a sparse volume have the same value
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        raise _constant(volume, finite, f", or give its range with {option('intensity')}" if blank else "")
    return Scaling(low, high, fill)


def _constant(volume: Volume, finite: NDArray[Any], otherwise: str = "") -> VolumeError:
    found = f"all {finite.size} sampled voxels are {float(finite.flat[0]):g}"
    return VolumeError(f"{volume.path}: constant, {found}; use a volume with contrast{otherwise}")


def _check_contrast(volume: Volume, voxels: NDArray[Any], scaling: Scaling, *, blank: bool) -> None:
    """Raise ConfigError if a range makes voxels equal that are not, by which any network would look fair."""
    if voxels.size == 0 or (voxels.min() == voxels.max() and blank):
        return
    if voxels.min() == voxels.max():
        raise _constant(volume, voxels)
    scaled = scaling(voxels)
    (low, high), (first, last) = (np.percentile(values, Scaling.PERCENTILES) for values in (voxels, scaled))
    inside = np.count_nonzero((scaled > 0) & (scaled < 1))  # what is rare may yet be what the range is for
    constant = bool(np.ptp(scaled) == 0)
    if (low < high and first == last and inside < STRAY * voxels.size) or (constant and not blank):
        raise ConfigError(
            f"{volume.path}: {'all' if constant else 'almost all'} voxels are equal after scaling by "
            f"{option('intensity', [scaling.low, scaling.high])}; those of a sample are {voxels.min():g} to {voxels.max():g}"
        )


def require_finite(volume: Volume, voxels: ArrayLike = (), part: str = "") -> None:
    """Raise VolumeError if stored voxels are NaN or infinite, and not only too large for float32.

    All of the volume is searched if it is small enough; of a larger one, or one at an address, those given are.

    Args:
        volume: the volume.
        voxels: a part of it, as stored.
        part: what the message calls that part.
    """
    if volume.nbytes <= WHOLE_CHECK and not volume.remote:
        check_finite(volume)
    elif count := int(np.count_nonzero(~np.isfinite(voxels))):
        raise _nonfinite(volume, f"{count} of {np.size(voxels)} voxels of {part} are NaN or infinite")


def check_finite(volume: Volume) -> None:
    """Read a whole volume in blocks, unless it is one of integers, and raise VolumeError if voxels are NaN or infinite.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> check_finite(open_volume(np.array([[[0, 1, np.nan]]])))
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: 1 voxels are NaN or infinite, the first at z, y, x = (0, 0, 2); to accept them,
        give the value for them as fill
    """
    count, first = 0, volume.shape
    for block in iterate_blocks(volume) if volume.dtype.kind == "f" else ():
        bad = ~np.isfinite(volume[block])
        if found := int(np.count_nonzero(bad)):
            count += found
            inside = np.unravel_index(bad.argmax(), bad.shape)
            z, y, x = (int(index) + part.start for index, part in zip(inside, block, strict=True))
            first = min(first, (z, y, x))  # a later block of the same slices can hold the earlier voxel
    if count:
        raise _nonfinite(volume, f"{count} voxels are NaN or infinite, the first at z, y, x = {first}")


def _nonfinite(volume: Volume, found: str) -> VolumeError:
    return VolumeError(f"{volume.path}: {found}; to accept them, give the value for them as {option('fill')}")


def check_tile(tile: object, name: str = "tile") -> tuple[int, int]:
    """Return a tile (y, x) that a user gave, as the option of a name.

    Raises:
        ConfigError: it is not two whole numbers of at least 1.

    Example:
        >>> check_tile([224, 160])
        (224, 160)
    """
    if not isinstance(tile, Sequence) or isinstance(tile, str) or len(tile) != 2:
        raise ConfigError(f"{option(name, tile)}: give two whole numbers of at least 1, such as 256, 256")
    return whole_number(name, tile[0], 1), whole_number(name, tile[1], 1)


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one volume: where they are and how to read them.

    Attributes:
        volume: the volume.
        scaling: the map from voxel values to 0..1.
        slices: N, odd.
        tile: size (y, x) of the in-plane tile; a smaller plane is reflected at its border.
        step: distance between neighbouring slices.
        edge: how windows at the ends of the volume are filled; "valid" omits these windows.
        overlap: (y, x) pixels that neighbouring tiles share.

    Raises:
        VolumeError: the volume has fewer slices than a window.
        ConfigError: ``slices`` is even, ``step`` below 1 or ``edge`` unknown.

    Example:
        >>> from evenslice.volumes import Scaling, open_volume
        >>> volume = open_volume(np.arange(5 * 6 * 8, dtype=np.float32).reshape(5, 6, 8))
        >>> grid = WindowGrid(volume, Scaling(0, 240), slices=3, tile=(4, 4))
        >>> len(grid), list(grid.centres), [grid.origin(number) for number in range(grid.tiles)]
        (12, [1, 2, 3], [(0, 0), (0, 4), (2, 0), (2, 4)])
        >>> grid.read(2, 0, 4).shape
        (3, 4, 4)
    """

    volume: Volume
    scaling: Scaling
    slices: int
    tile: tuple[int, int]
    step: int = 1
    edge: Edge = "valid"
    overlap: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.check(self.slices, self.step, self.edge)
        extent = (self.slices - 1) * self.step + 1
        if self.volume.shape[0] < extent:
            count = "1 slice" if self.volume.shape[0] == 1 else f"{self.volume.shape[0]} slices"
            steps = "" if self.step == 1 else f" in steps of {self.step}"
            raise VolumeError(
                f"{self.volume.path}: has {count}; a window of {self.slices}{steps} needs {extent}"
            )

    @staticmethod
    def check(slices: int, step: int = 1, edge: str = "reflect") -> None:
        """Raise ConfigError unless ``slices`` is odd, ``step`` positive, both whole numbers, and ``edge`` known."""
        if whole_number("slices", slices) < 1 or slices % 2 == 0:
            raise ConfigError(f"{option('slices', slices)}: a window has an odd number of slices, such as 3")
        whole_number("step", step, 1)
        check_known("edge", edge, get_args(Edge))

    @property
    def centres(self) -> range:
        """The middle slices of the windows, ascending."""
        depth = self.volume.shape[0]
        margin = self.slices // 2 * self.step if self.edge == "valid" else 0
        return range(margin, depth - margin)

    def origin(self, number: int) -> tuple[int, int]:
        """Return the top left corner (y, x) of a tile, counted along x first."""
        rows, columns = self._corners
        return rows[number // len(columns)], columns[number % len(columns)]

    @property
    def tiles(self) -> int:
        """The number of tiles in the plane."""
        rows, columns = self._corners
        return len(rows) * len(columns)

    @cached_property
    def _corners(self) -> tuple[list[int], list[int]]:
        (_, height, width), (ty, tx) = self.volume.shape, self.tile
        rows, columns = self.overlap
        return _tile_origins(height, ty, rows), _tile_origins(width, tx, columns)

    @property
    def reads_at_once(self) -> int:
        """The number of windows that are best read at once, in threads: several if a server sends them, else one."""
        size = (self.slices - 1) * self.step + 1, *self.tile
        chunk = self.volume.chunks or size
        touched = math.prod((length - 2) // part + 2 for length, part in zip(size, chunk, strict=True))
        touched *= math.prod(chunk) * self.volume.dtype.itemsize
        return reads_at_once(touched, remote=self.volume.remote)

    def __len__(self) -> int:
        return len(self.centres) * self.tiles

    def place(self, number: int) -> tuple[int, int, int]:
        """Return z, y, x of a window, counted along the plane first."""
        depth, tile = divmod(number, self.tiles)
        return (self.centres[depth], *self.origin(tile))

    def visits(self, *, seed: int = 0) -> Iterator[tuple[int, int, int]]:
        """Yield (z, y, x) of every window once, in random order, spread evenly over the volume; see ``spread``."""
        for number in range(len(self)):
            yield self.place(self.spread(number, len(self), seed))

    @staticmethod
    def spread(number: int, total: int, seed: int) -> int:
        """Return which of ``total`` items comes at a place of a random order without repetition.

        Each item has the same chance to be among the first n, whatever n is, while those n are spread evenly: the items are
        halved again and again, and each half gets its turns as systematic sampling with a random start gives them (Cochran
        1977, *Sampling Techniques*, chapter 8).

        Args:
            number: the place, from 0.
            total: number of items, in the order along which they are to be spread.
            seed: of the order.

        Example: the first two of four come from different halves.
            >>> order = [WindowGrid.spread(number, 4, seed=0) for number in range(4)]
            >>> sorted(order), {index // 2 for index in order[:2]} == {0, 1}
            ([0, 1, 2, 3], True)
        """
        start, stop = 0, total
        while stop - start > 1:
            half = (stop - start) // 2
            # Of the first n places, (n * half + shift) // size belong to the first half, n * half / size on average.
            shift = _shift(seed, start, stop)
            before, after = ((count * half + shift) // (stop - start) for count in (number, number + 1))
            if after > before:
                number, stop = before, start + half
            else:
                number, start = number - before, start + half
        return start

    def slices_at(self, z: int) -> NDArray[np.intp]:
        """Return the slices of the window around slice z; beyond the ends, the inner slices come again in reverse order.

        Example:
            >>> from evenslice.volumes import open_volume
            >>> grid = WindowGrid(open_volume(np.zeros((9, 4, 4))), Scaling(0, 1), 5, (4, 4), edge="reflect")
            >>> grid.slices_at(0).tolist(), grid.slices_at(4).tolist()
            ([2, 1, 0, 1, 2], [2, 3, 4, 5, 6])
        """
        indices = z + self.step * np.arange(-(self.slices // 2), self.slices // 2 + 1)
        period = max(2 * (len(self.volume) - 1), 1)
        indices = np.abs(indices) % period
        return np.minimum(indices, period - indices)

    def read(self, z: int, y: int, x: int) -> NDArray[np.float32]:
        """Read the window around slice z in the tile whose corner is (y, x): (N, tile y, tile x) in 0..1.

        Raises:
            VolumeError: it cannot be read, or contains NaN or infinity and the scaling has no fill value.
        """
        plane = (slice(y, y + self.tile[0]), slice(x, x + self.tile[1]))
        voxels = self._read_slices(self.slices_at(z), plane)
        # Once scaled, infinity is 0 or 1.
        if self.scaling.fill is None and voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            require_finite(self.volume, voxels, f"the window at z, y, x = {z, y, x}")
        return self._fill_tile(self.scaling(voxels))

    def read_labels(self, labels: Volume, z: int, y: int, x: int) -> NDArray[np.int64]:
        """Read the class map (tile y, tile x) of the middle slice of a window."""
        plane = labels[z, y : y + self.tile[0], x : x + self.tile[1]]
        classes: NDArray[np.int64] = self._fill_tile(plane[None].astype(np.int64))[0]
        return classes

    def _read_slices(self, indices: NDArray[np.intp], plane: tuple[slice, slice]) -> NDArray[Any]:
        first, last = int(indices.min()), int(indices.max())
        if self.step == 1:
            return self.volume[(slice(first, last + 1), *plane)][indices - first]
        if self.volume.chunks is not None and ((indices - first) % self.step == 0).all():
            # Slices of one chunk together, because each read decodes it whole.
            return self.volume[(slice(first, last + 1, self.step), *plane)][(indices - first) // self.step]
        return np.stack([self.volume[(int(index), *plane)] for index in indices])

    def _fill_tile(self, window: NDArray[Any]) -> NDArray[Any]:
        missing = [(0, size - length) for size, length in zip(self.tile, window.shape[1:], strict=True)]
        return np.pad(window, [(0, 0), *missing], mode="symmetric") if any(m for _, m in missing) else window


def _tile_origins(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles start along an axis so that they cover it; the last one is shifted back to end with the axis."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


@lru_cache(maxsize=2**16)
def _shift(seed: int, start: int, stop: int) -> int:
    return int(np.random.default_rng([seed, start, stop]).integers(stop - start))
