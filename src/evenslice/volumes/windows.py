"""Slice windows and in-plane tiles of a volume, and the order in which they are visited.

A window is N = 2K + 1 slices around slice z, at offsets k = -K..K (times a step), stacked as input channels. It is read
through a tile of the plane, and all its slices are scaled alike (``scaling.Scaling``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np

from evenslice._core import ConfigError, VolumeError, check_known, option
from evenslice.volumes.read.pieces import reads_at_once
from evenslice.volumes.scaling import require_finite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from evenslice.volumes.scaling import Scaling
    from evenslice.volumes.volume import Volume

__all__ = [
    "Edge",
    "WindowGrid",
    "check_tile",
    "fit_tile",
    "slice_indices",
    "tile_origins",
    "visiting_order",
]

Edge = Literal["valid", "reflect"]

LARGEST_WHOLE = 256  # pixels; the longest side of a plane that one tile covers
TILE = 128  # pixels; along a longer side, it tells enough about a network at a quarter of the cost (docs/speed.md)

_PIECE = 4096  # points of a sequence that are made at once
_MOST_SHUFFLED = 2**16


def slice_indices(
    z: int, slices: int, *, step: int = 1, depth: int, edge: Edge = "reflect"
) -> NDArray[np.intp]:
    """Return the slices of the window around slice z, at offsets -K..K times ``step``.

    Args:
        z: the middle slice, 0 <= z < depth.
        slices: N = 2K + 1, odd.
        step: distance between neighbouring slices of the window.
        depth: number of slices in the volume.
        edge: what lies beyond the first and last slice: "reflect" (the inner slices, without repeating the end slice)
            or "valid" (nothing: z must leave room).

    Raises:
        ConfigError: ``slices`` is even, or "valid" leaves no room at z.

    Example:
        >>> slice_indices(0, 5, depth=9).tolist()
        [2, 1, 0, 1, 2]
        >>> slice_indices(0, 3, step=2, depth=9).tolist()
        [2, 0, 2]
    """
    check_window(slices, step, edge)
    indices = z + step * np.arange(-(slices // 2), slices // 2 + 1)
    if edge == "valid" and (indices[0] < 0 or indices[-1] >= depth):
        raise ConfigError(f"slice {z} of {depth} has no room for {slices} slices in steps of {step}")
    period = max(2 * (depth - 1), 1)
    indices = np.abs(indices) % period
    return np.minimum(indices, period - indices)


def check_window(slices: int, step: int, edge: str) -> None:
    """Raise ConfigError unless ``slices`` is odd, ``step`` positive, both whole numbers, and ``edge`` known."""
    given: dict[str, Any] = {"slices": slices, "step": step}
    for name, value in given.items():
        if not isinstance(value, Integral):
            raise ConfigError(f"{option(name, value)}: must be a whole number")
    if slices < 1 or slices % 2 == 0:
        raise ConfigError(
            f"{option('slices', slices)}: a window has an odd number of slices, such as 3 or 5, with one in the middle"
        )
    if step < 1:
        raise ConfigError(
            f"{option('step', step)}: the distance between the slices of a window is at least 1"
        )
    check_known("edge", edge, get_args(Edge))


def tile_origins(length: int, tile: int, *, overlap: int = 0) -> Sequence[int]:
    """Return where tiles start along an axis so that they cover it; the last one is shifted back to end with the axis.

    Returns:
        A sequence that is computed when it is indexed.

    Example:
        >>> list(tile_origins(10, 4))
        [0, 4, 6]
        >>> list(tile_origins(3, 4))
        [0]
    """
    if not 0 <= overlap < tile:
        raise ConfigError(
            f"{option('overlap', overlap)}: must be at least 0 and below the tile's size {tile}"
        )
    return _Origins(max(length - tile, 0), tile - overlap)


@dataclass(frozen=True)
class _Origins(Sequence[int]):
    """0, step, 2 * step ... below ``last``, then ``last``."""

    last: int
    step: int

    def __len__(self) -> int:
        return -(-self.last // self.step) + 1

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [min(number * self.step, self.last) for number in chosen]
        return min(chosen * self.step, self.last)


def check_tile(tile: object, name: str = "tile") -> tuple[int, int]:
    """Return a tile (y, x) that a user gave, as the option of a name.

    Raises:
        ConfigError: it is not two whole numbers of at least 1.

    Example:
        >>> check_tile([224, 160])
        (224, 160)
    """
    given = tuple(tile) if isinstance(tile, Sequence) and not isinstance(tile, str) else ()
    if len(given) != 2 or not all(isinstance(side, Integral) and int(side) > 0 for side in given):
        raise ConfigError(
            f"{option(name, tile)}: give two whole numbers of at least 1, such as {option(name, [256, 256])}"
        )
    return int(given[0]), int(given[1])


def fit_tile(plane: tuple[int, int], *, multiple: int = 32) -> tuple[int, int]:
    """Return the tile (y, x) that an audit reads of a plane, a multiple of what networks need.

    Along each axis it is as long as fits into the plane, up to ``LARGEST_WHOLE`` pixels, or ``TILE`` pixels of longer
    planes. A plane smaller than ``multiple`` gets one tile of that size, filled up by mirroring the plane.

    Example:
        >>> fit_tile((233, 189)), fit_tile((4096, 4096))
        ((224, 160), (128, 128))
    """
    y, x = (max((TILE if length > LARGEST_WHOLE else length) // multiple, 1) * multiple for length in plane)
    return y, x


def visiting_order(depth: int, tiles: int, *, seed: int = 0) -> Iterator[tuple[int, int]]:
    """Yield every (z, tile) once, so that the visits so far are always spread evenly over both.

    One round visits each z once, in the order of a van der Corput sequence of base 2 with nested scrambling (Owen 1995,
    *Randomly permuted (t,m,s)-nets*), so that which z is taken of any two, four ... neighbours is random: sections may
    alternate. Tiles follow a scrambled van der Corput sequence of base 3. The next round visits each z with the next
    tile. Memory is bounded, whatever the numbers.

    Args:
        depth: number of window centres along z.
        tiles: number of tiles in the plane.
        seed: seed of the scrambling.

    Example:
        >>> sorted(visiting_order(3, 2)) == [(z, t) for z in range(3) for t in range(2)]
        True
    """
    from scipy.stats import qmc

    rng = np.random.default_rng(seed)
    points = qmc.Halton(2, scramble=True, rng=rng)
    keys = rng.integers(2**64, size=max(depth - 1, 1).bit_length(), dtype=np.uint64)
    for shift in _shifts(tiles, rng):
        points.reset()
        for start in range(0, depth, _PIECE):
            numbers = np.arange(start, min(start + _PIECE, depth), dtype=np.int64)
            places = points.random(len(numbers))[:, 1]
            for z, place in zip(_ranks(numbers, depth, keys), places.tolist(), strict=True):
                yield int(z), (int(place * tiles) + shift) % tiles


def _shifts(tiles: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield 0 to ``tiles`` - 1 in random order; for huge numbers in steps of about their golden section."""
    if tiles <= _MOST_SHUFFLED:
        yield from map(int, rng.permutation(tiles))
        return
    start, step = int(rng.integers(tiles)), int(tiles * 0.618)
    while math.gcd(step, tiles) > 1:
        step += 1
    for number in range(tiles):
        yield (start + number * step) % tiles


def _ranks(numbers: NDArray[np.int64], depth: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the ranks of points among the first ``depth`` of a van der Corput sequence of base 2 with nested scrambling.

    A point's first digits are the lowest bits of its number, each either kept or flipped for all points with the same
    digits before it. A point is below another if its digits are the same up to one, which is 0 instead of 1: the numbers
    of these are those with the same low bits and another next bit, and are counted without making them.

    Args:
        numbers: numbers of the points, from 0.
        depth: number of points in all.
        keys: a random number for each digit, from which it follows whether it is flipped.
    """
    ranks = np.zeros(len(numbers), np.int64)
    for digit, key in enumerate(keys):
        unit = 1 << digit
        low = numbers % unit
        high = (numbers // unit + _coins(low, key)) % 2 == 1
        lower = (numbers % (2 * unit)) ^ unit  # the same low bits, and the other next one
        ranks += np.where(high, np.maximum(depth - lower + 2 * unit - 1, 0) // (2 * unit), 0)
    return ranks


def _coins(numbers: NDArray[np.int64], key: np.uint64) -> NDArray[np.int64]:
    """Return 0 or 1 for each number, as good as random, by the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = numbers.astype(np.uint64) + key  # both operations are modulo 2^64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(2)).astype(np.int64)


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

    def __post_init__(self) -> None:
        check_window(self.slices, self.step, self.edge)
        extent = (self.slices - 1) * self.step + 1
        if self.volume.shape[0] < extent:
            count = "1 slice" if self.volume.shape[0] == 1 else f"{self.volume.shape[0]} slices"
            steps = f" in steps of {self.step}" if self.step != 1 else ""
            part, advice = "", "ask for fewer slices"
            if self.volume.region is not None:
                part, advice = " in this region", f"{advice}, or for a larger {option('region')}"
            raise VolumeError(
                f"{self.volume.path}: has {count}{part}; a window of {self.slices}{steps} needs {extent}; {advice}"
            )

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
    def _corners(self) -> tuple[Sequence[int], Sequence[int]]:
        (_, height, width), (ty, tx) = self.volume.shape, self.tile
        return tile_origins(height, ty), tile_origins(width, tx)

    @property
    def reads_at_once(self) -> int:
        """The number of windows that are best read at once, in threads: several if a server sends them, else one."""
        size = (self.slices - 1) * self.step + 1, *self.tile
        chunk = self.volume.chunks or size
        touched = math.prod((length - 2) // part + 2 for length, part in zip(size, chunk, strict=True))
        return reads_at_once(
            touched * math.prod(chunk) * self.volume.dtype.itemsize, remote=self.volume.remote
        )

    def __len__(self) -> int:
        return len(self.centres) * self.tiles

    def visits(self, *, seed: int = 0) -> Iterator[tuple[int, int, int]]:
        """Yield (z, y, x) of every window once, always spread evenly over the volume; see ``visiting_order``."""
        centres = self.centres
        for z, tile in visiting_order(len(centres), self.tiles, seed=seed):
            yield (centres[z], *self.origin(tile))

    def read(self, z: int, y: int, x: int) -> NDArray[np.float32]:
        """Read the window around slice z in the tile whose corner is (y, x): (N, tile y, tile x) in 0..1.

        Raises:
            VolumeError: it cannot be read, or contains NaN or infinity and the scaling has no fill value.
        """
        depth = self.volume.shape[0]
        indices = slice_indices(z, self.slices, step=self.step, depth=depth, edge=self.edge)
        plane = (slice(y, y + self.tile[0]), slice(x, x + self.tile[1]))
        return self._prepare(self._read_slices(indices, plane), f"the window at z, y, x = {z, y, x}")

    def read_run(self, first: int, stop: int, y: int, x: int) -> NDArray[np.float32]:
        """Read consecutive slices in the tile whose corner is (y, x): (stop - first, tile y, tile x) in 0..1.

        Raises:
            VolumeError: as for ``read``.
        """
        voxels = self.volume[first:stop, y : y + self.tile[0], x : x + self.tile[1]]
        return self._prepare(voxels, f"slices {first} to {stop - 1} at y, x = {y, x}")

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

    def _prepare(self, voxels: NDArray[Any], part: str) -> NDArray[np.float32]:
        """Scale slices (n, y, x) and fill the tile."""
        # Once scaled, infinity is 0 or 1.
        if self.scaling.fill is None and voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            require_finite(self.volume, voxels, part)
        return self._fill_tile(self.scaling(voxels))

    def _fill_tile(self, window: NDArray[Any]) -> NDArray[Any]:
        missing = [(0, size - length) for size, length in zip(self.tile, window.shape[1:], strict=True)]
        return np.pad(window, [(0, 0), *missing], mode="symmetric") if any(m for _, m in missing) else window
