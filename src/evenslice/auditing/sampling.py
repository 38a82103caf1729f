"""Which windows an audit reads, and when it stops.

The windows of all volumes, every tile at every depth, are one population. They are read in a random order without
replacement in which every window has the same chance to be among the first n, whatever n is, while those n are spread
over volumes, depth and plane in proportion (``WindowGrid.spread``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence  # noqa: TC003  # the command line reads it
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import ConfigError, map_ahead, option
from evenslice.auditing.options import FIRST, Sampling
from evenslice.volumes import WindowGrid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from evenslice.volumes import Volume


LOOKS = (FIRST, 59)  # windows: if 59 equal their mirrors, fewer than 5 % of all can differ
LARGEST_WHOLE = 256  # pixels; the longest side of a plane that one tile covers
MARGIN = 16  # pixels of a tile beyond which its borders change few answers (docs/statistics.md)
TILE = 192  # pixels; along a longer side, it tells enough about a network at a part of the cost (docs/statistics.md)


@dataclass(frozen=True)
class WindowBatch:
    """Windows that were read.

    Attributes:
        places: (batch, 4) volume, z, y, x of each window.
        windows: (batch, N, y, x) in 0..1.
        labels: (batch, y, x) the label maps of their middle slices, if there are any.
    """

    places: NDArray[np.int64]
    windows: NDArray[np.float32]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class WindowSample:
    """The windows of several volumes in random order.

    Attributes:
        grids: the windows of each volume.
        sampling: how many of them are read, and the seed of their order.
        labels: the label map of each volume, for the target "labels".
    """

    grids: list[WindowGrid]
    sampling: Sampling
    labels: list[Volume] | None = None

    @property
    def population(self) -> list[int]:
        """Number of windows in each volume."""
        return [len(grid) for grid in self.grids]

    @property
    def volumes(self) -> list[Volume]:
        """All volumes that are read, of labels too."""
        return [*(grid.volume for grid in self.grids), *(self.labels or [])]

    @property
    def limit(self) -> int:
        """Largest number of windows to read."""
        return min(sum(self.population), self.sampling.max_windows)

    def next_look(self, read: int) -> int:
        """Return the number of windows after which an audit that has read some looks at what it knows."""
        least = min(self.sampling.min_windows, self.limit)
        return least if read < least else min(next_look(read), self.limit)

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Yield the places of the windows in batches of at most ``size``.

        A batch ends where the audit looks, so that what it finds does not depend on the size of batches.
        """
        read = 0
        while read < self.limit:
            stop = min(read + size, self.next_look(read))
            yield self.positions(read, stop)
            read = stop

    def positions(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return volume, z, y, x (n, 4) of some windows by their numbers in the order."""
        ends, found = list(accumulate(self.population)), []
        for number in range(first, stop):
            index = WindowGrid.spread(number, ends[-1], self.sampling.seed)
            volume = bisect_right(ends, index)
            grid = self.grids[volume]
            found.append((volume, *grid.place(index - (ends[volume] - len(grid)))))
        return np.array(found, dtype=np.int64)

    def read(self, places: NDArray[np.int64]) -> WindowBatch:
        """Read windows, several at once if a server sends them; safe in any thread."""
        threads = min(len(places), *(grid.reads_at_once for grid in self.grids))
        ahead = threads if threads > 1 else 0
        read = list(map_ahead(self._read_one, places.tolist(), threads=threads, ahead=ahead))
        maps = [found for _, found in read if found is not None]
        labels = np.stack(maps) if maps else None
        return WindowBatch(places, np.stack([window for window, _ in read]), labels)

    def _read_one(self, place: list[int]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Read a window (N, y, x), and the label map (y, x) of its middle slice."""
        volume, z, y, x = place
        grid, labels = self.grids[volume], self.labels
        return grid.read(z, y, x), None if labels is None else grid.read_labels(labels[volume], z, y, x)


def corner_of(
    name: str, centre: Sequence[int] | None, tile: tuple[int, int], plane: tuple[int, int]
) -> tuple[int, int]:
    """Return the corner (y, x) of the tile around a pixel of a plane, or in its middle, as far inside as it fits.

    Raises:
        ConfigError: the option ``name`` gives a pixel outside of the plane.

    Example:
        >>> corner_of("at", (0, 90), (32, 32), (20, 100)), corner_of("at", None, (32, 32), (64, 64))
        ((0, 68), (16, 16))
    """
    y, x = centre or (plane[0] // 2, plane[1] // 2)
    if not (0 <= y < plane[0] and 0 <= x < plane[1]):
        raise ConfigError(
            f"{option(name, (y, x))}: y, x lies outside of the plane; give a pixel of {plane[0]} x {plane[1]}"
        )
    return (
        max(0, min(y - tile[0] // 2, plane[0] - tile[0])),
        max(0, min(x - tile[1] // 2, plane[1] - tile[1])),
    )


def next_look(windows: int) -> int:
    """Return the number of windows after which an audit next looks at what it knows.

    It looks after 40 windows, after 59, and then whenever their number has grown by a quarter.

    Args:
        windows: number of windows measured so far.

    Example:
        >>> [next_look(windows) for windows in (0, 39, 40, 59, 73)]
        [40, 40, 59, 73, 91]
    """
    first, look = LOOKS
    if windows < first:
        return first
    while look <= windows:
        look += look // 4
    return look


def fit_tile(plane: tuple[int, int], *, multiple: int = 32) -> tuple[int, int]:
    """Return the tile (y, x) that an audit reads of a plane, a multiple of what networks need.

    Along each axis it is as long as fits into the plane, up to ``LARGEST_WHOLE`` pixels, or ``TILE`` pixels of longer
    planes. A plane smaller than ``multiple`` gets one tile of that size, filled up by mirroring the plane.

    Example:
        >>> fit_tile((233, 189)), fit_tile((4096, 4096))
        ((224, 160), (192, 192))
    """
    y, x = (max((TILE if length > LARGEST_WHOLE else length) // multiple, 1) * multiple for length in plane)
    return y, x


def inner_margin(plane: tuple[int, int], tile: tuple[int, int]) -> tuple[int, int]:
    """Return how many pixels (y, x) of each side of a tile answers are not compared in.

    There a network lacks the surroundings that it has in a whole plane, and answers otherwise; a tile that is as long as
    the plane has no margin.

    Example:
        >>> inner_margin((512, 190), (192, 192)), inner_margin((512, 512), (96, 96))
        ((16, 0), (16, 16))
    """
    y, x = (min(MARGIN, side // 6) if side < length else 0 for side, length in zip(tile, plane, strict=True))
    return y, x
