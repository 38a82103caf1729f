"""Student's t for a few independent values: the interval of their mean, of a ratio of means, and non-inferiority."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evenslice.results.intervals import UNKNOWN, Interval
from evenslice.results.tolerances import Tolerances

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LEVEL",
    "ROUNDING",
    "NonInferiority",
    "bias_removed",
    "clipped",
    "inferiority",
    "non_inferiority",
    "student_interval",
]

LEVEL = 0.95

ROUNDING = 1e-12
"""Scores, 0 to 1, that differ by less do so by rounding alone."""


class NonInferiority(NamedTuple):
    """A test that a metric is not inferior to the baseline's; see ``ArmSummary``."""

    margin: float
    p: float
    holds: bool | None


def student_interval(values: ArrayLike, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
    """Return the mean of independent values and its 95 % interval by Student's t; NaN values are left out.

    Args:
        values: (n,) the values.
        bounds: the range of the quantity, to which the interval is clipped.

    Example: two values of Dice say little, but not that it may exceed 1.
        >>> student_interval([0.9, 0.98], bounds=(0, 1))
        Interval(estimate=0.94, low=0.431..., high=1.0)
        >>> student_interval([0.90, 0.91, 0.92])
        Interval(estimate=0.91, low=0.885..., high=0.934...)
        >>> student_interval([0.9])
        Interval(estimate=0.9, low=nan, high=nan)
    """
    known = _known(values)
    if len(known) < 2:
        return Interval(float(known[0]) if len(known) else math.nan, math.nan, math.nan)
    low, high = _t_test(known).confidence_interval(LEVEL)
    return clipped(Interval(float(known.mean()), float(low), float(high)), bounds)


def clipped(interval: Interval, bounds: tuple[float, float]) -> Interval:
    """Return an interval without its ends beyond the range of the quantity.

    Example:
        >>> clipped(Interval(0.01, -0.03, 0.05), bounds=(0, 1))
        Interval(estimate=0.01, low=0.0, high=0.05)
    """
    low, high = (float(np.clip(end, *bounds)) for end in (interval.low, interval.high))
    return Interval(interval.estimate, low, high)


def bias_removed(own: ArrayLike, baseline: ArrayLike) -> Interval:
    """Return the part of the baseline's largest pair bias that an arm does not have, at most 1, with its 95 % interval.

    That is 1 - (mean of own) / (mean of baseline). The interval is Fieller's (1954, doi:10.1111/j.2517-6161.1954.tb00159.x)
    for paired values: all ratios r for which the mean of own - r * baseline does not differ from 0 by Student's t.

    Args:
        own: (n,) largest absolute pair biases of the arm by replicate; those where either is NaN are left out.
        baseline: (n,) those of the baseline.

    Returns:
        NaN with fewer than two replicates, or unless the interval of the baseline's mean lies above the audit's tolerance of
        0.05: where the baseline shows no bias, none can be removed.

    Example:
        >>> bias_removed([0.003, 0.005, 0.004], [0.20, 0.21, 0.22])
        Interval(estimate=0.980..., low=0.970..., high=0.992...)
        >>> bias_removed([0.003, 0.005, 0.004], [0.03, 0.01, 0.08])
        Interval(estimate=nan, low=nan, high=nan)
    """
    pairs = np.array([own, baseline], dtype=np.float64)
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    count = pairs.shape[1]
    if not student_interval(pairs[1]).low > Tolerances.tolerance:
        return UNKNOWN
    from scipy.stats import t as student  # slow to import

    (mean, expected), spread = pairs.mean(axis=1), np.cov(pairs) / count
    squared = float(student.ppf((1 + LEVEL) / 2, count - 1)) ** 2
    # The ends of Fieller's interval solve a r^2 - 2 b r + c = 0; a > 0, as the interval of the baseline excludes 0.
    a = expected**2 - squared * spread[1, 1]
    b = mean * expected - squared * spread[0, 1]
    c = mean**2 - squared * spread[0, 0]
    root = math.sqrt(max(0.0, b**2 - a * c))
    interval = Interval(float(1 - mean / expected), float(1 - (b + root) / a), float(1 - (b - root) / a))
    return clipped(interval, (-math.inf, 1.0))


def non_inferiority(differences: ArrayLike, margin: float) -> NonInferiority:
    """Test that a metric of which more is better is lower than the baseline's by less than a margin.

    Args:
        differences: the metric less that of the baseline, one for each replicate; NaN values are left out.
        margin: the loss that would matter, above 0.

    Returns:
        The test, which holds if p is below 0.025, that is, if the two-sided 95 % interval lies above -margin. With
        fewer than two replicates, or if all their differences are equal, there is no test.

    Example:
        >>> non_inferiority([0.002, -0.001, 0.001], margin=0.01)
        NonInferiority(margin=0.01, p=0.003..., holds=True)
        >>> non_inferiority([-0.02, 0.01, 0.0], margin=0.01).holds
        False
        >>> non_inferiority([0.0, 0.0], margin=0.01)
        NonInferiority(margin=0.01, p=nan, holds=None)
    """
    known = _known(differences)
    if len(known) < 2 or np.ptp(known) < ROUNDING:
        return NonInferiority(margin, math.nan, None)
    p = float(_t_test(known, -margin, alternative="greater").pvalue)
    return NonInferiority(margin, p, p < (1 - LEVEL) / 2)


def inferiority(holds: bool | None, high: float, margin: float) -> str:
    """Return the outcome of a test of non-inferiority in words: not inferior, inferior, not settled or no test.

    Args:
        holds: whether it holds; None without a test.
        high: the upper end of the 95 % interval of the difference: inferior if that, too, lies below -margin.
        margin: the loss that would matter, above 0.

    Example:
        >>> inferiority(True, 0.01, 0.01), inferiority(False, -0.02, 0.01), inferiority(False, 0.0, 0.01)
        ('not inferior', 'inferior', 'not settled')
    """
    if holds is None:
        return "no test"
    if holds:
        return "not inferior"
    return "inferior" if high < -margin else "not settled"


def _known(values: ArrayLike) -> NDArray[np.float64]:
    known = np.asarray(values, dtype=np.float64)
    return known[~np.isnan(known)]


def _t_test(values: NDArray[np.float64], mean: float = 0.0, **options: Any) -> Any:
    from scipy.stats import ttest_1samp  # slow to import

    with warnings.catch_warnings():
        # Equal values have an interval without width.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        return ttest_1samp(values, mean, **options)
