"""Means over data sets: their intervals and tests, and p values adjusted for their number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evenslice.results.intervals import Interval
from evenslice.results.student import LEVEL, ROUNDING, clipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike

__all__ = ["PooledMean", "holm", "pool_means"]


class PooledMean(NamedTuple):
    """A mean over data sets, with its standard error and degrees of freedom; NaN where undefined."""

    estimate: float
    error: float
    dof: float

    def interval(self, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
        """Return the mean with its 95 % interval, clipped to the range of the quantity."""
        from scipy.special import stdtrit

        half = -float(stdtrit(self.dof, (1 - LEVEL) / 2)) * self.error if self.error > 0 else self.error
        return clipped(Interval(self.estimate, self.estimate - half, self.estimate + half), bounds)

    def p_above(self, value: float = 0.0) -> float:
        """Return the p of the one-sided test that the true mean is at most a value; NaN without an error."""
        from scipy.special import stdtr

        if not self.error > ROUNDING:  # a few equal values are no proof that others would be equal
            return math.nan
        return float(stdtr(self.dof, (value - self.estimate) / self.error))

    def p_differs(self) -> float:
        """Return the p of the two-sided test that the true mean is 0; NaN without an error."""
        below = self.p_above()
        return 2 * min(below, 1 - below)


def pool_means(groups: Iterable[ArrayLike]) -> PooledMean:
    """Return the mean of the means of several groups of independent values, and its precision.

    With m groups, of which group j has n_j values of variance s_j^2, the squared standard error is the sum of
    v_j = s_j^2 / (m^2 n_j), and the degrees of freedom are (sum v_j)^2 / sum(v_j^2 / (n_j - 1)): Welch's unequal
    variances (1947, doi:10.1093/biomet/34.1-2.28) by Satterthwaite's approximation (1946, doi:10.2307/3002019). A
    single group has exactly the interval of Student's t. With at least three values in each group, simulated 95 %
    intervals cover 92 % or more, whatever the variances; a group of two that varies far more than larger groups brings
    that down to 89 % (``ENOUGH_REPLICATES``).

    Args:
        groups: the values of each group; NaN values are left out, and so are groups without any others.

    Returns:
        The mean; its error is NaN if a group has a single value, and all of it without values.

    Example:
        >>> mean = pool_means([[0.80, 0.82, 0.81], [0.70, 0.76]])
        >>> round(mean.estimate, 3), round(mean.error, 4), round(mean.dof, 2)
        (0.77, 0.0153, 1.07)
        >>> pool_means([[0.80, 0.82], [0.70]])
        PooledMean(estimate=0.755, error=nan, dof=nan)
    """
    known = [
        values[~np.isnan(values)] for values in (np.asarray(group, dtype=np.float64) for group in groups)
    ]
    known = [values for values in known if len(values)]
    if not known:
        return PooledMean(math.nan, math.nan, math.nan)
    estimate = float(np.mean([values.mean() for values in known]))
    counts = np.array([len(values) for values in known])
    if counts.min() < 2:
        return PooledMean(estimate, math.nan, math.nan)
    parts = np.array([values.var(ddof=1) for values in known]) / counts / len(known) ** 2
    total = float(parts.sum())
    dof = total**2 / float((parts**2 / (counts - 1)).sum()) if total > 0 else float(counts.sum() - len(known))
    return PooledMean(estimate, math.sqrt(total), dof)


def holm(p_values: Sequence[float], planned: int = 0) -> list[float]:
    """Return p values adjusted for their number by the method of Holm (1979, doi:10.2307/4615733).

    Args:
        p_values: any number of them; NaN values stay.
        planned: how many there will be; those that are known always count.

    Example:
        >>> holm([0.01, 0.04, 0.03, math.nan])
        [0.03, 0.06, 0.06, nan]
        >>> holm([0.01, 0.04, 0.03, math.nan], planned=4)
        [0.04, 0.09, 0.09, nan]
    """
    adjusted = list(p_values)
    order = sorted((n for n, p in enumerate(p_values) if not math.isnan(p)), key=lambda n: p_values[n])
    count, least = max(planned, len(order)), 0.0
    for rank, n in enumerate(order):
        least = max(least, min(1.0, (count - rank) * p_values[n]))
        adjusted[n] = least
    return adjusted
