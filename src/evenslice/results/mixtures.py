"""Mixtures of Student's t, of which the intervals of means are made: their weights and their quantiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln, stdtr, stdtrit

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

__all__ = ["mixture_quantile", "mixture_weights"]


def mixture_weights(log_weight: Floats) -> Floats:
    """Return weights that sum to 1 in each column, from their logarithms (grid, q), of which a constant may be missing.

    Example:
        >>> mixture_weights(np.log([[3.0], [1.0]])).round(2).tolist()
        [[0.75], [0.25]]
    """
    weight = np.exp(log_weight - log_weight.max(axis=0))
    return np.asarray(weight / weight.sum(axis=0))


def mixture_quantile(dof: ArrayLike, scale: Floats, weight: Floats, tail: float) -> Floats:
    """Return for each column the distance from 0 beyond which a mixture of Student's t has the given two-sided tail.

    The tail is convex in the distance, so Newton steps from below never overshoot; a dozen steps reach a relative
    error of a thousandth.

    Args:
        dof: degrees of freedom, above 0: of all columns, or (q,).
        scale: (grid, q) of the parts.
        weight: (grid, q) of the parts; each column sums to 1.
        tail: between 0 and 1.

    Example:
        >>> mixture_quantile(9, np.array([[0.1], [0.3]]), np.array([[1.0], [0.0]]), 0.05).round(3).tolist()
        [0.226]
    """
    dof = np.asarray(dof, dtype=np.float64)
    peak = np.exp(gammaln((dof + 1) / 2) - gammaln(dof / 2)) / np.sqrt(dof * np.pi)
    distance = -stdtrit(dof, tail / 2) * scale.min(axis=0)
    for _ in range(12):
        ratio = distance / scale
        excess = 2 * (weight * stdtr(dof, -ratio)).sum(axis=0) - tail
        slope = 2 * (weight / scale * peak * (1 + ratio**2 / dof) ** (-(dof + 1) / 2)).sum(axis=0)
        distance = distance + np.maximum(excess, 0) / slope
    return np.asarray(distance)
