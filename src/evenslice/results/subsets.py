"""Measurements that are made on a subset of an audit's windows only, because each of them takes passes of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["SubsetMeasurements"]


@dataclass(frozen=True, eq=False)
class SubsetMeasurements:
    """Measurements on m of the n windows of an audit; row i belongs to window ``window[i]``.

    Shares are in the order in which the network was given the slices, like those of ``Measurements``.

    Attributes:
        window: (m,) rows of ``Measurements``, ascending.
        first_shares: (m, N) shares by the first method of the part of the window that is measured; NaN without
            attribution.
        mirrored_first_shares: (m, N) those of the mirrored window.
        second_shares: (m, N) shares by the second method of the same part.
        mirrored_second_shares: (m, N) those of the mirrored window.
        class_pixels: (m, C) part of the output's pixels whose class, that of the target, is c = 0..C-1.
        class_shares: (m, C, N) shares of the window for the pixels of class c alone; NaN where they were not measured, 0
            where the score of the class depends on no slice.
        mirrored_class_shares: (m, C, N) those of the mirrored window.
    """

    window: NDArray[np.int64]
    first_shares: NDArray[np.float64]
    mirrored_first_shares: NDArray[np.float64]
    second_shares: NDArray[np.float64]
    mirrored_second_shares: NDArray[np.float64]
    class_pixels: NDArray[np.float64]
    class_shares: NDArray[np.float64]
    mirrored_class_shares: NDArray[np.float64]

    @classmethod
    def empty(cls, slices: int) -> Self:
        """Return the measurements on no window, for windows of N slices.

        Example:
            >>> SubsetMeasurements.empty(3).second_shares.shape
            (0, 3)
        """
        none, classes = np.empty((0, slices)), np.empty((0, 0, slices))
        return cls(np.empty(0, dtype=np.int64), none, none, none, none, np.empty((0, 0)), classes, classes)
