"""Which windows of several volumes an audit reads, in which order.

The windows of all volumes, every tile at every depth, are one population. They are read in a random order without
replacement in which every window has the same chance to be among the first n, whatever n is, while those n are spread
over volumes, depth and plane in proportion (``evenslice.volumes.spread_index``).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from evenslice.results import next_look
from evenslice.volumes import spread_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from evenslice.volumes import WindowGrid

EXAMPLES = 4
MOST_OF_EXAMPLES = 2**27  # bytes that they may take: results of a few audits are read back together


@dataclass(frozen=True)
class WindowBatch:
    """Windows to measure in one pass.

    Attributes:
        places: (batch, 4) volume, z, y, x of each window.
        pictures: number of windows to keep as pictures.
    """

    places: NDArray[np.int64]
    pictures: int


@dataclass(frozen=True)
class WindowSample:
    """The windows of several volumes in random order.

    Attributes:
        grids: the windows of each volume.
        seed: random seed of the order.
        max_windows: largest number of windows to read.
        min_windows: number of windows before which an audit does not stop.
    """

    grids: list[WindowGrid]
    seed: int
    max_windows: int
    min_windows: int

    @property
    def population(self) -> list[int]:
        """Number of windows in each volume."""
        return [len(grid) for grid in self.grids]

    @property
    def limit(self) -> int:
        """Largest number of windows to read."""
        return min(sum(self.population), self.max_windows)

    def next_look(self, read: int) -> int:
        """Return the number of windows after which an audit that has read some looks at what it knows."""
        look = next_look(max(read, min(self.min_windows, self.limit) - 1))
        if read < self.min_windows < look:
            look = self.min_windows
        return min(look, self.limit)

    def batches(self, size: Callable[[], int]) -> Iterator[WindowBatch]:
        """Yield the windows in batches; ``size`` is asked for the largest size of each.

        A batch ends where the audit looks, so that what it finds does not depend on the size of batches.
        """
        read = 0
        while read < self.limit:
            stop = min(read + size(), self.next_look(read))
            places = np.array([self._place(number) for number in range(read, stop)], dtype=np.int64)
            yield WindowBatch(places, pictures=min(max(self._examples() - read, 0), stop - read))
            read = stop

    def _place(self, number: int) -> tuple[int, int, int, int]:
        """Return volume, z, y, x of a window."""
        ends = list(accumulate(self.population))
        index = spread_index(number, ends[-1], self.seed)
        volume = bisect_right(ends, index)
        grid = self.grids[volume]
        return (volume, *grid.place(index - (ends[volume] - len(grid))))

    def _examples(self) -> int:
        """Return how many windows to keep as pictures: those of few large ones, a byte and two float32 for each voxel."""
        grid = self.grids[0]
        return min(EXAMPLES, MOST_OF_EXAMPLES // (9 * grid.slices * grid.tile[0] * grid.tile[1]))
