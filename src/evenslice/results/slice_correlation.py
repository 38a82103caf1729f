"""Slices that lie near each other vary together: a first-order autoregression, read at irregular positions.

The value of a slice is the mean of its volume, a part shared with neighbouring slices and a part of its own; the shared
parts have correlation ``rho ** distance`` along z. See ``evenslice.results.intervals``, which mixes what a grid of
correlations and fractions gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["CORRELATION", "FRACTION", "PRIOR", "Slices", "group_slices", "mean_step", "whiten"]

# The grid: independent slices first, then every correlation of the shared parts (of slices at the mean distance of
# those visited) with every fraction of the variance. The prior odds of three to one for independence were chosen by
# simulation (benchmarks/calibration.py): higher odds leave intervals too narrow where neighbours are correlated, lower
# ones too wide where they are not.
_CORRELATIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_FRACTIONS = (0.5, 1.0)
CORRELATION = np.array([0.0, *(rho for rho in _CORRELATIONS for _ in _FRACTIONS)])
FRACTION = np.array([0.0, *(fraction for _ in _CORRELATIONS for fraction in _FRACTIONS)])
PRIOR = np.array([0.75, *np.full(len(CORRELATION) - 1, 0.25 / (len(CORRELATION) - 1))])


class Slices(NamedTuple):
    """The m visited slices of one volume, in ascending order along z.

    Attributes:
        positions: (m,) along z.
        parts: (m,) share of the windows in each; they sum to 1.
        mean: (q,) of all windows.
        values: (m, q) mean of the windows of each slice, minus ``mean``.
    """

    positions: Floats
    parts: Floats
    mean: Floats
    values: Floats


def group_slices(values: Floats, positions: Floats) -> Slices:
    """Return the slices of one volume, given its windows.

    Args:
        values: (n, q) of the windows.
        positions: (n,) of them along z, in any order; those of one slice count as one, by their mean.

    Example:
        >>> group_slices(np.array([[4.0], [1.0], [3.0]]), np.array([7.0, 2.0, 7.0])).positions.tolist()
        [2.0, 7.0]
    """
    order = np.argsort(positions, kind="stable")
    at, first, counts = np.unique(positions[order], return_index=True, return_counts=True)
    mean = values.mean(axis=0)
    sums = np.add.reduceat(values[order] - mean, first, axis=0)
    return Slices(at, counts / len(values), mean, sums / counts[:, None])


def mean_step(positions: list[Floats]) -> float:
    """Return the mean distance of neighbouring visited slices, to which the grid is scaled.

    Example:
        >>> mean_step([np.array([0.0, 2.0, 6.0]), np.array([5.0])])
        3.0
    """
    steps = np.concatenate([np.diff(at) for at in positions])
    return float(steps.mean()) if len(steps) else 1.0


def whiten(slices: Slices, unit: float) -> tuple[Floats, Floats, Floats]:
    """Whiten one volume's values by a Kalman filter, at all points of the grid at once.

    With R the correlation matrix of the slices and 1 a vector of ones, generalised least squares needs the residual
    ``v' inv(R) v - (1' inv(R) v)^2 / (1' inv(R) 1)`` and, for the restricted likelihood, ``log|R| + log(1' inv(R) 1)``
    (Harville 1974, doi:10.1093/biomet/61.2.383); the variance of the mean with weights p is ``p' R p``. The filter
    gives them in time and memory linear in the number of slices.

    Args:
        slices: the values.
        unit: the distance along z at which the correlations of the grid apply.

    Returns:
        The residuals (grid, q), the log-determinants (grid,) and the variances (grid,), for unit variance.

    Example:
        >>> residual, _, variance = whiten(group_slices(np.array([[1.0], [3.0]]), np.array([0.0, 1.0])), 1.0)
        >>> residual[0].tolist(), variance[0].item()  # of independent slices
        ([2.0], 0.5)
    """
    state = np.zeros((len(FRACTION), slices.values.shape[1]))  # prediction of v, and below of 1
    ones = np.zeros(len(FRACTION))
    variance = FRACTION  # of the shared part, given the slices so far
    squares, products = np.zeros_like(state), np.zeros_like(state)
    information, log_determinant = np.zeros_like(ones), np.zeros_like(ones)
    before, total = np.zeros_like(ones), np.zeros_like(ones)
    steps = np.diff(slices.positions, prepend=-np.inf) / unit  # nothing comes before the first slice
    for value, part, step in zip(slices.values, slices.parts, steps, strict=True):
        kept = CORRELATION**step
        state *= kept[:, None]
        ones *= kept
        variance = kept**2 * variance + FRACTION * (1 - kept**2)
        predicted = variance + 1 - FRACTION
        gain = variance / predicted
        error, left = value - state, 1 - ones
        squares += error**2 / predicted[:, None]
        products += (left / predicted)[:, None] * error
        information += left**2 / predicted
        log_determinant += np.log(predicted)
        state += gain[:, None] * error
        ones += gain * left
        variance = variance * (1 - gain)
        before *= kept  # correlation with the slices before, times their parts
        total += part**2 + 2 * part * FRACTION * before
        before += part
    return squares - products**2 / information[:, None], log_determinant + np.log(information), total
