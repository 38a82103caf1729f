"""Disturbances of a window: which of its slices are lost or damaged, and what stands in their place.

Each is what happens to real stacks: a section is missing and its neighbour stands in, a frame is blank, noisy, or out of
register with the others; or the whole stack is upside down. The middle slice, which is to be segmented, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

__all__ = ["KINDS", "NOISE", "SHIFT", "Disturbances"]

KINDS = ("missing", "blank", "noisy", "shifted")
"""What becomes of a slice: the middle slice in its place; 0, the darkest intensity; noise added; or a translation."""

NOISE = 0.1
"""Standard deviation of the noise of noisy slices, where intensities are scaled to 0..1."""

SHIFT = 8
"""Pixels by which shifted slices are translated along x; their first column is repeated."""


@dataclass(frozen=True)
class Disturbances:
    """The ways in which a window of N slices is shown to a network.

    Attributes:
        slices: N = 2K + 1, at least 3.
        seed: random seed of the noise.

    Example: windows of one pixel, at offsets -1, 0 and 1, as they are, reversed, and with a missing slice.
        >>> window = [np.full((1, 1), value, np.float32) for value in (0.2, 0.5, 0.8)]
        >>> ways = Disturbances(3).windows(window, 0, 0)
        >>> [[round(plane.item(), 2) for plane in next(ways)] for _ in range(5)]
        [[0.2, 0.5, 0.8], [0.8, 0.5, 0.2], [0.5, 0.5, 0.8], [0.2, 0.5, 0.5], [0.5, 0.5, 0.5]]
        >>> len(Disturbances(3)), Disturbances(5).kinds[:2]
        (14, [('missing', 1), ('missing', 2)])
    """

    slices: int
    seed: int = 0

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """The kind and the offset k of each three ways after the first two."""
        return [(kind, k) for kind in KINDS for k in range(1, self.slices // 2 + 1)]

    def __len__(self) -> int:
        """Return the number of ways."""
        return 2 + 3 * len(self.kinds)

    def windows(self, window: Sequence[Plane], volume: int, z: int) -> Iterator[list[Plane]]:
        """Yield the window as it is, reversed, and for each of ``kinds`` with the slice at -k, that at +k, and both.

        Args:
            window: its N slices (y, x), scaled to 0..1.
            volume: number of the volume.
            z: the middle slice. The noise depends on the volume and z, and is the same at -k as at +k; where both are
                noisy, that at +k is another.
        """
        yield list(window)
        yield list(window[::-1])
        middle = self.slices // 2
        random = np.random.default_rng([self.seed, volume, z])
        noise = [NOISE * random.standard_normal(window[middle].shape, dtype=np.float32) for _ in range(2)]
        for kind, k in self.kinds:
            before, after = (self._slice(kind, window, middle + side * k, noise[0]) for side in (-1, 1))
            other = self._slice(kind, window, middle + k, noise[1])
            for changes in ({-k: before}, {k: after}, {-k: before, k: other}):
                yield [changes.get(place - middle, plane) for place, plane in enumerate(window)]

    def _slice(self, kind: str, window: Sequence[Plane], place: int, noise: Plane) -> Plane:
        """Return what stands in the place of a slice."""
        plane = window[place]
        if kind == "missing":
            return window[self.slices // 2]
        if kind == "blank":
            return np.zeros_like(plane)
        if kind == "noisy":
            noisy: Plane = np.clip(plane + noise, 0, 1)  # as the scaling clips voxels
            return noisy
        shift = min(SHIFT, plane.shape[1] - 1)
        return np.pad(plane[:, : plane.shape[1] - shift], [(0, 0), (shift, 0)], mode="edge")
