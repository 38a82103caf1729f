"""Ratios of counts and sums, of which some may be of nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["ratio"]


def ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """Divide a part by a whole, elementwise after broadcasting; NaN where the whole is 0.

    Example:
        >>> ratio([1, 1, 0], [4, 0, 0])
        array([0.25,  nan,  nan])
    """
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    quotient = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=quotient, where=whole != 0)
    return quotient
