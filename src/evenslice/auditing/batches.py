"""Batches of windows: which windows of several volumes an audit visits, in which order, and what it measures on which."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from evenslice.results import FEW_SLICES, next_look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from evenslice.results import MethodNames
    from evenslice.volumes import WindowGrid

__all__ = ["MAX_WITHOUT_ATTRIBUTION", "PLACES", "WindowBatch", "WindowStream", "with_subset"]

MAX_WITHOUT_ATTRIBUTION = 200
"""Windows without any attribution after which an audit gives up."""

EXAMPLES = 8
MOST_OF_EXAMPLES = 2**27  # bytes that they may take: results of a few audits are read back together

# Of how many windows one is in the subset: where it sees a quarter of the tile, or all of it.
SUBSET_STEPS = 5, 7

PLACES = ((0, 0), (2, 2), (0, 2), (2, 0), (1, 1))
"""Where a part is cut out of a tile (y, x), in halves of the room; five, as the windows' depths have periods of 2."""


@dataclass(frozen=True)
class WindowStream:
    """The windows of several volumes in batches, taken from each volume in turn.

    Attributes:
        grids: the windows of each volume.
        seed: random seed of their order.
        max_windows: largest number of windows; None for all.
        every: of how many windows of a volume one is in the subset. It has no divisor 2 or 3: the order of the visit has
            periods of their powers.
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
        """Yield the windows in batches; ``size`` is asked for the size of each.

        A batch ends where the audit may stop, so that this does not depend on the size of batches.
        """
        places, seen, in_subset = islice(self._places(), self.limit), 0, 0
        visits: Counter[int] = Counter()  # of each volume
        while chunk := list(islice(places, min(size(), _next_stop(seen) - seen))):
            chosen = []
            for row, (volume, *_) in enumerate(chunk):
                count = self._count_in_subset(volume, visits[volume])
                if count is not None:
                    chosen.append((row, count))
                visits[volume] += 1
            subset, counts = np.array(chosen, dtype=np.int64).reshape(-1, 2).T
            yield WindowBatch(
                np.array(chunk, dtype=np.int64),
                subset=subset,
                counts=counts,
                turns=in_subset + np.arange(len(subset)),
                pictures=min(max(self._examples() - seen, 0), len(chunk)),
            )
            seen += len(chunk)
            in_subset += len(subset)

    def _examples(self) -> int:
        """Return how many windows to keep as pictures: those of few large ones, a byte and a float32 for each voxel."""
        grid = self.grids[0]
        return min(EXAMPLES, MOST_OF_EXAMPLES // (5 * grid.slices * grid.tile[0] * grid.tile[1]))

    def _count_in_subset(self, volume: int, visit: int) -> int | None:
        """Return the number of a window in its volume's part of the subset; None if it is not in it.

        Each round of visits sees every z once, in the same order. Where the number of windows that are skipped, or of the
        places of their parts, divides the length of a round, the next round begins with another.
        """
        depth = len(self.grids[volume].centres)
        rounds = visit // depth
        turn = visit + volume  # volumes have their turns, too
        if depth % self.every == 0:
            turn += rounds
        if turn % self.every:
            return None
        return visit // self.every + (rounds // self.every if depth % len(PLACES) == 0 else 0)

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
        counts: (m,) number of each of these among those of its volume, which decides the place of the part that is measured.
        turns: (m,) number of each of these in the subset, which decides the classes that are explained.
        pictures: number of windows to keep as pictures.
    """

    places: NDArray[np.int64]
    subset: NDArray[np.int64]
    counts: NDArray[np.int64]
    turns: NDArray[np.int64]
    pictures: int


def _next_stop(seen: int) -> int:
    """Return the number of windows after which an audit that has seen some may stop."""
    return min(stop for stop in (next_look(seen), MAX_WITHOUT_ATTRIBUTION) if stop > seen)


def with_subset(stream: WindowStream, methods: MethodNames, crop: tuple[int, int] | None) -> WindowStream:
    """Return a stream with a subset whose time stays below a third of that of all windows.

    A black box has a subset for its classes alone, which takes no further passes. A short audit has a larger part in it,
    so that its verdict does not fail for want of slices.

    Args:
        stream: the windows of an audit.
        methods: the names of its methods.
        crop: the part of a tile that is measured on the subset; None for all of it.
    """
    often, seldom = SUBSET_STEPS
    if methods.second is None:
        return replace(stream, every=1)
    chosen = replace(stream, every=often if crop or stream.limit < seldom * FEW_SLICES else seldom)
    return replace(stream, every=1) if stream.limit >= FEW_SLICES and _has_few_slices(chosen) else chosen


def _has_few_slices(stream: WindowStream) -> bool:
    """Return whether the subset of a short audit has too few distinct slices; each volume may lack one for its part."""
    if stream.limit >= stream.every * (FEW_SLICES + len(stream.grids)):
        return False
    batches = stream.batches(lambda: stream.limit)
    slices = {tuple(place) for batch in batches for place in batch.places[batch.subset, :2].tolist()}
    return len(slices) < FEW_SLICES
