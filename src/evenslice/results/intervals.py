"""Confidence intervals: of ratios of totals over a finite population of windows, and of a few independent values.

An audit draws windows without replacement, so that each has the same chance at every look; its figures are ratios of sums
over the windows (a mean is one whose whole is 1 everywhere). Intervals are design-based: they hold whatever the tissue
is, need no model of how neighbours resemble each other, and shrink to nothing once all windows were read (Cochran 1977,
*Sampling Techniques*, chapters 2 and 6). The variance is that of simple random sampling, which is conservative for the
spread-out samples of an audit.

Windows differ much in what they weigh, so the quantiles are those of the bootstrap-t (Efron and Tibshirani 1993, *An
Introduction to the Bootstrap*, section 12.5), on a scale on which the figure is nearly normal: the logarithm for parts
(0..1), the inverse hyperbolic tangent for contrasts (-1..1). They are never narrower than those of Student's t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from scipy.special import gammaln, stdtr, stdtrit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Map: TypeAlias = Callable[[Any], Any]

Scale = Literal["linear", "log", "atanh"]

SCALES: Final[Mapping[Scale, tuple[Map, Map, Map]]] = {
    "linear": (np.positive, np.positive, np.ones_like),
    "log": (np.log, np.exp, np.reciprocal),
    "atanh": (np.arctanh, np.tanh, lambda ratios: 1 / (1 - ratios**2)),
}
"""What maps ratios to a scale and back, and its derivative at ratios."""

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
DRAWS = 1000
LEAST_TELLING = 5
"""Windows with a whole above 0 below which a ratio has no interval, unless all windows were read."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval, all in the unit of the quantity; NaN where undefined."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of_mean(
        cls, values: ArrayLike, bounds: tuple[float, float] = (-math.inf, math.inf), folds: int = 1
    ) -> Interval:
        """Return the mean of values and its 95 % interval by Student's t; NaN values are left out.

        Args:
            values: (n,) the values: independent ones, or one for each fold of a cross-validation.
            bounds: the range of the quantity, to which the interval is clipped.
            folds: number of those folds, for whose overlap it is corrected; see ``variance_of_mean``.

        Example: two values of Dice say little, but not that it may exceed 1.
            >>> Interval.of_mean([0.9, 0.98], bounds=(0, 1))
            Interval(estimate=0.94, low=0.431..., high=1.0)
            >>> Interval.of_mean([0.90, 0.91, 0.92])
            Interval(estimate=0.91, low=0.885..., high=0.934...)
            >>> Interval.of_mean([0.9])
            Interval(estimate=0.9, low=nan, high=nan)
        """
        return pool_means([values], [folds]).interval(bounds)

    def clipped(self, bounds: tuple[float, float]) -> Interval:
        """Return the interval without its ends beyond the range of the quantity.

        Example:
            >>> Interval(0.01, -0.03, 0.05).clipped((0, 1))
            Interval(estimate=0.01, low=0.0, high=0.05)
        """
        return Interval(self.estimate, *np.clip((self.low, self.high), *bounds).tolist())


UNKNOWN = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Ratios:
    """Ratios of q parts to their wholes, with everything needed for intervals at any confidence.

    Attributes:
        estimate: (q,) NaN where the whole is 0 in all windows.
        error: (q,) standard errors on the scale.
        below: (q,) the quantile of (estimate - truth) / error that is undercut in 2.5 % of samples.
        above: (q,) the one that is exceeded in 2.5 %.
        freedom: (q,) degrees of freedom: the effective number of windows (Kish 1965, *Survey Sampling*, 11.7) less 1.
        unseen: (q,) for parts that are 0 in all windows read, the effective number of these; else NaN.
        read: number of windows.
        population: number of windows that could be read.
        scale: on which the intervals are symmetric but for skewness.
    """

    estimate: Floats
    error: Floats
    below: Floats
    above: Floats
    freedom: Floats
    unseen: Floats
    read: int
    population: int
    scale: Scale

    def bounds(self, level: float = LEVEL, comparisons: int = 1) -> tuple[Floats, Floats]:
        """Return the lower and the upper bounds (q,) of the intervals.

        Args:
            level: confidence, between 0 and 1.
            comparisons: number of intervals that hold simultaneously with that confidence (Bonferroni).

        Returns:
            The bounds; infinite where too few windows tell.

        Example: two of a hundred windows, all of which have the same chance.
            >>> changed, read = np.zeros((100, 1)), np.ones((100, 1))
            >>> changed[[3, 40]] = 0.5
            >>> fit = fit_ratios(changed, read, population=100)
            >>> [bound.round(3).tolist() for bound in fit.bounds()]  # all of them were read
            [[0.01], [0.01]]
        """
        tail = (1 - level) / comparisons / 2
        wider = stdtrit(self.freedom, tail) / stdtrit(self.freedom, TAIL)
        exact = self.error == 0
        with np.errstate(all="ignore"):
            forward, backward, _ = SCALES[self.scale]
            middle = forward(self.estimate)
            low = backward(middle - self.above * wider * self.error)
            high = backward(middle - self.below * wider * self.error)
        low, high = (np.where(exact, self.estimate, bound) for bound in (low, high))
        known = ~np.isnan(self.unseen)
        if known.any():
            least = [unseen_part(count, self.read, self.population, 2 * tail) for count in self.unseen[known]]
            high[known] = np.maximum(high[known], least)
        return low, high


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


def fit_ratios(part: ArrayLike, whole: ArrayLike, population: int, *, scale: Scale = "linear") -> Ratios:
    """Estimate ratios of totals over a population from a sample of its windows.

    Args:
        part: (n, q) finite.
        whole: (n, q) at least 0; windows with 0 do not belong to the domain of the quantity.
        population: number of windows, n or more.
        scale: "linear"; "log" for parts of at least 0; "atanh" for contrasts in -1..1.

    Example:
        >>> fit = fit_ratios([[1.0], [2.0]] * 20, [[10.0]] * 40, population=1000, scale="log")
        >>> fit.estimate.round(3).tolist(), [bound.round(3).tolist() for bound in fit.bounds()]
        ([0.15], [[0.135], [0.167]])
    """
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    count, total = len(part), whole.sum(axis=0)
    estimate = ratio(part.sum(axis=0), total)
    effective = np.nan_to_num(ratio(total**2, np.square(whole).sum(axis=0)))
    telling = (whole > 0).sum(axis=0)
    center = np.nan_to_num(estimate)
    squares = np.square(part - center * whole).sum(axis=0)
    rounding = count * (1e-12 * np.abs(part).max(axis=0, initial=0)) ** 2
    squares[squares <= rounding] = 0  # of a constant
    left = max(0.0, 1 - count / population)
    raw = np.sqrt(squares * left * count / max(count - 1, 1)) / np.where(total > 0, total, 1.0)
    with np.errstate(all="ignore"):
        error = np.where(raw == 0, 0.0, raw * SCALES[scale][2](center))
    none = (part == 0).all(axis=0) & (scale == "log") & (total > 0)
    if left > 0:
        error = np.where((telling < LEAST_TELLING) & ~none, np.inf, error)
    usable = np.isfinite(error) & (error > 0)
    below, above = np.full_like(center, -np.inf), np.full_like(center, np.inf)
    if usable.any():
        below[usable], above[usable] = _quantiles(part[:, usable], whole[:, usable], center[usable], scale)
    freedom = np.maximum(effective - 1, 1)
    student = stdtrit(freedom, (1 + LEVEL) / 2)  # the least that is known where windows are few
    return Ratios(
        estimate=estimate,
        error=error,
        below=np.minimum(below, -student),
        above=np.maximum(above, student),
        freedom=freedom,
        unseen=np.where(none & (left > 0), effective, np.nan),
        read=count,
        population=population,
        scale=scale,
    )


def mean_interval(
    values: ArrayLike, population: int, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Interval:
    """Return the mean of a quantity over a population of windows and its 95 % interval.

    Args:
        values: (n,) the quantity; windows where it is NaN are outside of its domain.
        population: number of windows, n or more.
        bounds: the range of the quantity, to which the interval is clipped.

    Example:
        >>> interval = mean_interval([0.11, 0.14, 0.09, 0.12, 0.13], population=100)
        >>> print(f"{interval.estimate:.3f}, {interval.low:.2f} to {interval.high:.2f}")
        0.118, 0.09 to 0.14
    """
    values = np.asarray(values, dtype=np.float64)[:, None]
    known = ~np.isnan(values)
    fit = fit_ratios(np.where(known, values, 0), known, population)
    return Interval(*(float(part[0]) for part in (fit.estimate, *np.clip(fit.bounds(), *bounds))))


def unseen_part(effective: float, read: int, population: int, tail: float) -> float:
    """Return the part of a population that may have what no window read has, but for a chance of ``tail``.

    That is the hypergeometric bound: if D of M windows had it, none of n would show it with a probability of
    C(M - D, n) / C(M, n).

    Args:
        effective: number of windows read; less where they weigh differently.
        read: number of windows read, n.
        population: number of windows, M.
        tail: the chance.

    Example:
        >>> round(unseen_part(59, 59, 10**9, 0.05), 3), unseen_part(40, 40, 40, 0.05)
        (0.05, 0.0)
    """
    if read >= population or effective <= 0:
        return 0.0 if read >= population else 1.0
    whole = population * effective / read
    low, high = 0.0, whole - effective
    for _ in range(60):
        middle = (low + high) / 2
        chance = (
            gammaln(whole - middle + 1)
            + gammaln(whole - effective + 1)
            - gammaln(whole - middle - effective + 1)
            - gammaln(whole + 1)
        )
        low, high = (middle, high) if chance > np.log(tail) else (low, middle)
    return float(high / whole)


def _quantiles(part: Floats, whole: Floats, center: Floats, scale: Scale) -> tuple[Floats, Floats]:
    """Return the 2.5 % and the 97.5 % quantiles (q,) of the studentized ratios of bootstrap samples."""
    count = len(part)
    weights = resamples(count)
    # Everything is computed from residuals, which may be much smaller than the parts.
    residual, wholes = part - center * whole, weights @ whole
    with np.errstate(all="ignore"):
        shift = (weights @ residual) / wholes
        squares = weights @ residual**2 - 2 * shift * (weights @ (residual * whole))
        squares += shift**2 * (weights @ whole**2)
        found = center + shift
        forward, _, slope = SCALES[scale]
        error = np.sqrt(np.maximum(squares, 0) * count / (count - 1)) / wholes * slope(found)
        off = forward(found) - forward(center)
        studentized = np.where(off == 0, 0.0, off / error)
    studentized = np.where(np.isnan(studentized), np.where(off > 0, np.inf, -np.inf), studentized)
    # Drawn values, not means of two: one of them may be infinite.
    below = np.nanquantile(studentized, TAIL, axis=0, method="lower")
    return below, np.nanquantile(studentized, 1 - TAIL, axis=0, method="higher")


@lru_cache(maxsize=1)
def resamples(count: int) -> Floats:
    """Return how often each of n windows is in each bootstrap sample (draws, n); the same ones for the same n."""
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return np.asarray(draws, dtype=np.float64)


# Student's t for a few independent values, such as the scores of runs.

ROUNDING = 1e-12
"""Scores, 0 to 1, that differ by less do so by rounding alone."""


class PooledMean(NamedTuple):
    """A mean over data sets, with its standard error, degrees of freedom and heterogeneity; NaN where undefined."""

    estimate: float
    error: float
    dof: float
    heterogeneity: float = math.nan

    def interval(self, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
        """Return the mean with its 95 % interval, clipped to the range of the quantity."""
        half = -float(stdtrit(self.dof, TAIL)) * self.error if self.error > 0 else self.error
        return Interval(self.estimate, self.estimate - half, self.estimate + half).clipped(bounds)

    def p_above(self, value: float = 0.0) -> float:
        """Return the p of the one-sided test that the true mean is at most a value; NaN without an error."""
        if not self.error > ROUNDING:  # a few equal values are no proof that others would be equal
            return math.nan
        return float(stdtr(self.dof, (value - self.estimate) / self.error))

    def p_differs(self) -> float:
        """Return the p of the two-sided test that the true mean is 0; NaN without an error."""
        below = self.p_above()
        return 2 * min(below, 1 - below)


def variance_of_mean(count: int, folds: int = 1) -> float:
    """Return the variance of a mean of values, in units of their sample variance.

    That is 1 / n for independent values. Folds of one cross-validation are not: the networks of any two share training
    data. For these it is 1 / n + n_test / n_train = 1 / n + 1 / (folds - 1), the correction of Nadeau and Bengio (2003,
    *Inference for the generalization error*, doi:10.1023/A:1024068626366). It is exact if the values of any two folds have
    a correlation of n_test / (n_test + n_train) = 1 / folds; no data can tell what that is.

    Args:
        count: number of values, n.
        folds: number of folds of the cross-validation that they come from, whether each has a value or not; 1 without.

    Example: with four folds, intervals are 1.53 times as wide as without the correction.
        >>> round((variance_of_mean(4, folds=4) / variance_of_mean(4)) ** 0.5, 2)
        1.53
    """
    return 1 / count + (1 / (folds - 1) if folds > 1 else 0)


def pool_means(groups: Iterable[ArrayLike], folds: Iterable[int] = ()) -> PooledMean:
    """Return the mean of the means of several groups of values, and its precision.

    With m groups, of which group j has n_j values of variance s_j^2, the squared standard error is the sum of
    v_j = c_j s_j^2 / m^2, where c_j is ``variance_of_mean``, and the degrees of freedom are
    (sum v_j)^2 / sum(v_j^2 / (n_j - 1)): Welch's unequal variances (1947, doi:10.1093/biomet/34.1-2.28) by Satterthwaite's
    approximation (1946, doi:10.2307/3002019). A single group has exactly the interval of Student's t. With at least three
    values in each group, simulated 95 % intervals cover 92 % or more, whatever the variances; a group of two that varies
    far more than larger groups brings that down to 89 % (``Comparison.few_replicates``).

    The heterogeneity I^2 is the part of the scatter of the means that their own errors do not explain: max(0, 1 - (m - 1) / Q),
    Q the sum of squared distances from the mean weighted by 1 / v_j (Higgins and Thompson 2002, doi:10.1002/sim.1186).

    Args:
        groups: the values of each group; NaN values are left out, and so are groups without any others.
        folds: for each group, the number of folds of the cross-validation that its values come from; 1, as by default, if
            they are independent.

    Returns:
        The mean; its error is NaN if a group has a single value, and all of it without values. Its heterogeneity is NaN,
        too, if there is one group, or if the values of one are equal.

    Example:
        >>> mean = pool_means([[0.80, 0.82, 0.81], [0.70, 0.76]])
        >>> [round(part, 4) for part in mean]
        [0.77, 0.0153, 1.0747, 0.8542]
        >>> pool_means([[0.80, 0.82], [0.70]])
        PooledMean(estimate=0.755, error=nan, dof=nan, heterogeneity=nan)
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    every = zip(arrays, folds or [1] * len(arrays), strict=True)
    known = [(found, of) for values, of in every if len(found := values[~np.isnan(values)])]
    means = np.array([values.mean() for values, _ in known])
    counts = np.array([len(values) for values, _ in known])
    if not len(counts) or counts.min() < 2:
        return PooledMean(float(means.mean()) if len(means) else math.nan, math.nan, math.nan)
    squared = np.array([values.var(ddof=1) * variance_of_mean(len(values), of) for values, of in known])
    parts = squared / len(known) ** 2
    total = float(parts.sum())
    squares = float((parts**2 / (counts - 1)).sum())  # may be 0 by underflow
    dof = total**2 / squares if squares > 0 else float(counts.sum() - len(known))
    return PooledMean(float(means.mean()), math.sqrt(total), dof, _heterogeneity(means, squared))


def _heterogeneity(means: Floats, squared: Floats) -> float:
    """Return I^2 of means with their squared standard errors; see ``pool_means``."""
    if len(means) < 2 or not squared.min() > ROUNDING**2:
        return math.nan
    scatter = ((means - np.average(means, weights=1 / squared)) ** 2 / squared).sum()
    return float(max(0.0, 1 - (len(means) - 1) / scatter)) if scatter > 0 else 0.0


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
