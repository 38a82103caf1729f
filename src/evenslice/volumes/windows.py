"""Slice windows and in-plane tiles of a volume, the order of visits, and the one scaling that all slices share.

A window is N = 2K + 1 slices around slice z, at offsets k = -K..K (times a step), stacked as input channels. It is read
through a tile of the plane. Every slice of a volume is scaled by one and the same linear map to 0..1: three identical
slices stay identical.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from evenslice._core import ConfigError, VolumeError, nearest, option
from evenslice.volumes.blocks import first_nonfinite, sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from evenslice.volumes.volume import Volume

__all__ = [
    "Edge",
    "Scaling",
    "WindowGrid",
    "fit_scaling",
    "fit_tile",
    "slice_indices",
    "tile_origins",
    "visiting_order",
]

Edge = Literal["valid", "reflect", "nearest"]

WHOLE_CHECK = 2**32  # bytes in memory up to which a volume is looked through for NaN before anything else


@dataclass(frozen=True)
class Scaling:
    """The linear map from voxel values to 0..1 that all slices of a volume share; values outside are clipped.

    Attributes:
        low: the voxel value that becomes 0.
        high: the voxel value that becomes 1.
        fill: the voxel value that stands in for NaN and infinity; None leaves them as they are.

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

    def __call__(self, voxels: ArrayLike) -> NDArray[np.float32]:
        """Scale voxels of any shape to float32 in 0..1."""
        with np.errstate(over="ignore"):  # what is beyond float32 is beyond the range, and clipped
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
    percentiles: tuple[float, float] = (0.5, 99.5),
    fill: float | None = None,
    seed: int = 0,
) -> Scaling:
    """Choose the scaling of a volume: a fixed intensity range, or percentiles of a seeded sample of its voxels.

    Args:
        volume: the volume to scale.
        intensity: the voxel values that become 0 and 1; percentiles are used where it is None.
        percentiles: two percentiles, 0..100, of a sample of about a million voxels.
        fill: the voxel value that stands in for NaN and infinity.
        seed: of the sample.

    Raises:
        ConfigError: the percentiles or the intensities are not in ascending order.
        VolumeError: the sample is constant; or there is NaN or infinity and no ``fill`` is given, looked for in the
            whole volume up to 4 GiB, in the sample of a larger one.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(1001, dtype=np.float32).reshape(7, 11, 13))
        >>> fit_scaling(volume, percentiles=(1, 99))
        Scaling(low=10.0, high=990.0, fill=None)
    """
    if fill is None and volume.nbytes <= WHOLE_CHECK:
        _check_finite(volume)
    if intensity is not None:
        return Scaling(*intensity, fill=fill)
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ConfigError(f"percentiles {percentiles}: two ascending values between 0 and 100 are needed")
    voxels = sample(volume, seed=seed)
    finite = voxels[np.isfinite(voxels)]
    if fill is None and finite.size < voxels.size:
        _check_finite(volume)
        raise VolumeError(f"{volume.path}: holds values beyond the range of float32; scale it down first")
    if finite.size == 0:
        raise VolumeError(f"{volume.path}: no voxel of the sample is finite; there is nothing to scale")
    low, high = (float(value) for value in np.percentile(finite, percentiles))
    if low == high:  # a sparse volume: most voxels have one value
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        raise VolumeError(
            f"{volume.path}: constant, all {finite.size} voxels looked at are {low:g}; "
            f"a volume with contrast is needed (if it has some elsewhere, name its range with {option('intensity')})"
        )
    return Scaling(low, high, fill)


def _check_finite(volume: Volume) -> None:
    found = first_nonfinite(volume)
    if found is not None:
        raise VolumeError(
            f"{volume.path}: {found[0]} voxels are NaN or infinite, the first at z, y, x = {found[1]}; "
            f"to accept them, give the voxel value that stands in for them as {option('fill')}"
        )


def slice_indices(
    z: int, slices: int, *, step: int = 1, depth: int, edge: Edge = "reflect"
) -> NDArray[np.intp]:
    """Return the slices of the window around slice z, at offsets -K..K times ``step``.

    Args:
        z: the middle slice, 0 <= z < depth.
        slices: N = 2K + 1, odd.
        step: distance between neighbouring slices of the window.
        depth: number of slices in the volume.
        edge: what stands beyond the first and last slice: "reflect" (the inner slices, the end slice not repeated),
            "nearest" (the end slice), or "valid" (nothing: z must leave room).

    Raises:
        ConfigError: ``slices`` is even, or "valid" leaves no room at z.

    Example:
        >>> slice_indices(0, 5, depth=9).tolist()
        [2, 1, 0, 1, 2]
        >>> slice_indices(0, 3, step=2, depth=9, edge="nearest").tolist()
        [0, 0, 2]
    """
    check_window(slices, step, edge)
    indices = z + step * np.arange(-(slices // 2), slices // 2 + 1)
    if edge == "valid" and (indices[0] < 0 or indices[-1] >= depth):
        raise ConfigError(f"slice {z} of {depth} has no room for {slices} slices in steps of {step}")
    if edge == "nearest" or depth == 1:
        return np.clip(indices, 0, depth - 1)
    period = 2 * (depth - 1)
    indices = np.abs(indices) % period
    return np.minimum(indices, period - indices)


def check_window(slices: int, step: int, edge: str) -> None:
    """Raise ConfigError unless slices is odd, step positive and edge a known policy."""
    if slices < 1 or slices % 2 == 0:
        raise ConfigError(
            f"slices = {slices}: a window has an odd number of slices, such as 3 or 5, with one in the middle"
        )
    if step < 1:
        raise ConfigError(f"step = {step}: the distance between the slices of a window is at least 1")
    if edge not in get_args(Edge):
        raise ConfigError(f"edge = {edge!r}: {nearest(edge, get_args(Edge))}")


def tile_origins(length: int, tile: int, *, overlap: int = 0) -> list[int]:
    """Return where tiles start along an axis so that they cover it; the last one is moved back to end with it.

    Example:
        >>> tile_origins(10, 4)
        [0, 4, 6]
        >>> tile_origins(3, 4)
        [0]
    """
    if not 0 <= overlap < tile:
        raise ConfigError(f"overlap = {overlap}: must be at least 0 and below the tile's size {tile}")
    last = max(length - tile, 0)
    return sorted({*range(0, last, tile - overlap), last})


def fit_tile(plane: tuple[int, int], *, size: int = 256, multiple: int = 32) -> tuple[int, int]:
    """Return the largest tile (y, x) up to ``size`` that fits a plane and is a multiple of what networks need.

    A plane smaller than ``multiple`` gets one tile of that size; what lies outside the plane is mirrored in.

    Example:
        >>> fit_tile((233, 189))
        (224, 160)
    """
    y, x = (max(min(size, length) // multiple, 1) * multiple for length in plane)
    return y, x


def visiting_order(depth: int, tiles: int, *, seed: int = 0) -> Iterator[tuple[int, int]]:
    """Yield every (z, tile) once, so that whatever was visited so far is spread evenly over both.

    One round visits each z once, in the order of a scrambled Halton sequence (base 2 along z, base 3 over the tiles);
    the next round visits each with the next tile. Memory grows with depth + tiles, not with their product.

    Args:
        depth: number of window centres along z.
        tiles: number of tiles in the plane.
        seed: of the scrambling; one seed gives one order.

    Example:
        >>> sorted(visiting_order(3, 2)) == [(z, t) for z in range(3) for t in range(2)]
        True
    """
    from scipy.stats import qmc

    rng = np.random.default_rng(seed)
    points = qmc.Halton(2, scramble=True, rng=rng).random(depth)
    rank = points[:, 0].argsort().argsort()
    first = (points[:, 1] * tiles).astype(int)
    for shift in rng.permutation(tiles):
        for z, tile in zip(rank, first, strict=True):
            yield int(z), int((tile + shift) % tiles)


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one volume: which there are, and how one is read.

    Attributes:
        volume: the volume they are taken from.
        scaling: voxel values to 0..1.
        slices: N, odd.
        tile: size (y, x) of the in-plane tile; a plane that is smaller is mirrored beyond its border.
        step: distance between neighbouring slices.
        edge: how windows at the ends of the volume are filled; "valid" leaves those out.

    Raises:
        VolumeError: the volume has fewer slices than a window.
        ConfigError: an even number of slices, a step below 1, an unknown edge policy.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(5 * 6 * 8, dtype=np.float32).reshape(5, 6, 8))
        >>> grid = WindowGrid(volume, Scaling(0, 240), slices=3, tile=(4, 4))
        >>> len(grid), grid.centres.tolist(), grid.origins
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

    def __post_init__(self) -> None:
        check_window(self.slices, self.step, self.edge)
        extent = (self.slices - 1) * self.step + 1
        if self.volume.shape[0] < extent:
            raise VolumeError(
                f"{self.volume.path}: has {self.volume.shape[0]} slices, fewer than the {extent} that a window of "
                f"{self.slices} in steps of {self.step} spans; ask for fewer slices"
            )

    @cached_property
    def centres(self) -> NDArray[np.intp]:
        """The middle slices of the windows, ascending."""
        depth = self.volume.shape[0]
        margin = self.slices // 2 * self.step if self.edge == "valid" else 0
        return np.arange(margin, depth - margin)

    @cached_property
    def origins(self) -> list[tuple[int, int]]:
        """The upper left corners (y, x) of the tiles."""
        (_, height, width), (ty, tx) = self.volume.shape, self.tile
        return [(y, x) for y in tile_origins(height, ty) for x in tile_origins(width, tx)]

    def __len__(self) -> int:
        return len(self.centres) * len(self.origins)

    def visits(self, *, seed: int = 0) -> Iterator[tuple[int, int, int]]:
        """Yield (z, y, x) of every window once, spread evenly over the volume at any time; see ``visiting_order``."""
        for z, tile in visiting_order(len(self.centres), len(self.origins), seed=seed):
            yield (int(self.centres[z]), *self.origins[tile])

    def read(self, z: int, y: int, x: int) -> NDArray[np.float32]:
        """Read the window around slice z in the tile whose corner is (y, x): (N, tile y, tile x) in 0..1.

        Raises:
            VolumeError: it cannot be read, or holds NaN or infinity and the scaling has no fill value.
        """
        depth = self.volume.shape[0]
        indices = slice_indices(z, self.slices, step=self.step, depth=depth, edge=self.edge)
        plane = (slice(y, y + self.tile[0]), slice(x, x + self.tile[1]))
        return self._prepare(self._read_slices(indices, plane))

    def read_run(self, first: int, stop: int, y: int, x: int) -> NDArray[np.float32]:
        """Read neighbouring slices in the tile whose corner is (y, x): (stop - first, tile y, tile x) in 0..1.

        Raises:
            VolumeError: as for ``read``.
        """
        return self._prepare(self.volume[first:stop, y : y + self.tile[0], x : x + self.tile[1]])

    def read_labels(self, labels: Volume, z: int, y: int, x: int) -> NDArray[np.int64]:
        """Read the class map (tile y, tile x) that belongs to the middle slice of a window."""
        plane = labels[z, y : y + self.tile[0], x : x + self.tile[1]]
        classes: NDArray[np.int64] = self._fill_tile(plane[None].astype(np.int64))[0]
        return classes

    def _read_slices(self, indices: NDArray[np.intp], plane: tuple[slice, slice]) -> NDArray[Any]:
        if self.step == 1:
            first, last = int(indices.min()), int(indices.max())
            return self.volume[(slice(first, last + 1), *plane)][indices - first]
        return np.stack([self.volume[(int(index), *plane)] for index in indices])

    def _prepare(self, voxels: NDArray[Any]) -> NDArray[np.float32]:
        """Scale slices (n, y, x) and fill the tile."""
        window = self.scaling(voxels)
        if self.scaling.fill is None and not np.isfinite(window).all():
            _check_finite(self.volume)
        return self._fill_tile(window)

    def _fill_tile(self, window: NDArray[Any]) -> NDArray[Any]:
        missing = [(0, size - length) for size, length in zip(self.tile, window.shape[1:], strict=True)]
        return np.pad(window, [(0, 0), *missing], mode="symmetric") if any(m for _, m in missing) else window
