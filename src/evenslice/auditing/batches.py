"""Batches of windows: which windows of several volumes an audit visits, in which order, and what it measures on which."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from evenslice.volumes import WindowGrid

__all__ = ["WindowBatch", "WindowStream"]

EXAMPLES = 8
STEPS = (1, 5, 7, 11, 13, 17, 19, 23)
"""Of how many windows one can be in the subset: the order of the visit has periods of powers of 2 and 3."""


@dataclass(frozen=True)
class WindowStream:
    """The windows of several volumes in batches, taken from each volume in turn.

    Attributes:
        grids: the windows of each volume.
        seed: random seed of their order.
        max_windows: largest number of windows; None for all.
        every: of how many windows about one is in the subset: the first of ``STEPS`` from here on with which the volumes
            have their turns in it, too.
    """

    grids: list[WindowGrid]
    seed: int
    max_windows: int | None
    every: int = 5

    @property
    def available(self) -> int:
        """Number of windows in all volumes."""
        return sum(len(grid) for grid in self.grids)

    @property
    def limit(self) -> int:
        """Largest number of windows to measure."""
        return min(self.available, self.max_windows or self.available)

    def batches(self, size: Callable[[], int]) -> Iterator[WindowBatch]:
        """Yield the windows in batches; ``size`` is asked for the size of each."""
        places, seen, turn = islice(self._places(), self.limit), 0, 0
        every = next(step for step in STEPS if step >= self.every and math.gcd(step, len(self.grids)) == 1)
        before: Counter[int] = Counter()  # windows of the subset, by volume
        while chunk := list(islice(places, size())):
            subset = np.flatnonzero(np.arange(seen, seen + len(chunk)) % every == 0)
            counts = []
            for row in subset.tolist():
                counts.append(before[chunk[row][0]])
                before[chunk[row][0]] += 1
            yield WindowBatch(
                np.array(chunk, dtype=np.int64),
                subset=subset,
                counts=np.array(counts, dtype=np.int64),
                turn=turn,
                pictures=min(max(EXAMPLES - seen, 0), len(chunk)),
            )
            seen += len(chunk)
            turn += len(subset) > 0

    def _places(self) -> Iterator[tuple[int, int, int, int]]:
        visits = {index: grid.visits(seed=self.seed + index) for index, grid in enumerate(self.grids)}
        while visits:
            for index, visit in list(visits.items()):
                place = next(visit, None)
                if place is None:
                    del visits[index]
                else:
                    yield (index, *place)


@dataclass(frozen=True)
class WindowBatch:
    """Windows to measure in one pass.

    Attributes:
        places: (batch, 4) volume, z, y, x of each window.
        subset: (m,) rows of the windows that are also measured by the second method, for each class, and in float32.
        counts: (m,) how many windows of its volume were in the subset before each of these.
        turn: number of batches before that have windows in the subset.
        pictures: number of windows to keep as pictures.
    """

    places: NDArray[np.int64]
    subset: NDArray[np.int64]
    counts: NDArray[np.int64]
    turn: int
    pictures: int
