"""Confidence intervals for the mean of a quantity measured on windows that lie near each other.

Neighbouring windows show almost the same tissue, so n of them carry less information than n independent ones, and how
much less has to be estimated from the same few values. The windows of one slice count as one, by their mean; the model
behind the intervals is that such a value is

    mean of the volume + part shared with neighbouring slices + individual part

where the shared parts have correlation ``rho ** distance`` along z (a first-order autoregression read at irregular
positions) and make up a fraction of the variance. For a given correlation and fraction the interval of the mean is
that of Student's t. Because neither is known, the intervals of a grid of both are mixed, each weighted by how well it
explains the values (its restricted likelihood) and by a prior; Kitanidis (1986, doi:10.1029/WR022i004p00499) does so
for means over space. A single estimate of the correlation, taken as certain, would give intervals that are too narrow.

Several volumes are independent units: an interval is then never narrower than that of Student's t on the volume means.
That of a ratio takes their effective number, as some volumes may have much more of the whole than others.

Few slices cannot tell neighbours that vary together from independent ones, so the prior decides, and its intervals are
too narrow where they do: those of fewer than ``ENOUGH_SLICES`` slices are widened. In a ratio a slice counts by its
whole, and a few with much of it can decide: its intervals are those of its effective number of slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from evenslice.results.effective_slices import effective_slices
from evenslice.results.mixtures import mixture_quantile, mixture_weights
from evenslice.results.slice_correlation import PRIOR, group_slices, mean_step, whiten

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

__all__ = [
    "FEW_SLICES",
    "UNKNOWN",
    "Interval",
    "MeanFit",
    "fit_means",
    "fit_ratio",
    "fit_votes",
    "mean_interval",
]

# Up to 8 slices, intervals have to be this much wider to cover 93 % at a correlation of 0.8 (benchmarks/calibration.py);
# less so with more slices, and not at all with enough.
WIDEST, FEW_SLICES, ENOUGH_SLICES = 2.3, 8, 28
# Those of ratios, whose parts are skewed, in effective slices, so that the ratio of windows as uneven as those of real
# labels is wrongly within its tolerance in at most 5 % of audits (the rows "uneven" of benchmarks/calibration.py).
WIDEST_RATIO, ENOUGH_FOR_RATIO = 2.0, 80
# The same for volumes, whose means are less skewed than their slices (the rows of benchmarks/calibration_limits.py).
WIDEST_BETWEEN = 1.25
LEAST_DOF = 1.0  # of ratios; with fewer slices, one decides, and nothing tells how it varies
SINGLE = 1 + 1e-9  # effective slices of a ratio in which all others have nothing of the whole
NO_WIDTH = 1e-100  # half-widths below this come from the residual of a constant quantity


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval, all in the unit of the quantity; NaN where undefined."""

    estimate: float
    low: float
    high: float


UNKNOWN = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class MeanFit:
    """The means of q quantities, with everything needed for their intervals at any confidence.

    Attributes:
        estimate: (q,) the means; each volume counts the same, whatever its number of windows.
        dof: degrees of freedom within volumes: slices minus volumes.
        scale: (grid, q) standard errors of the means with the volumes taken as given, one for each correlation and
            fraction on the grid.
        weight: (grid, q) their weights, which sum to 1.
        volumes: number of volumes.
        between: (q,) standard error of the means from the spread of the volume means; zeros for a single volume.
        positive: whether the quantities are at least 0 and skewed, so that bounds are taken of their logarithm.
        effective: (q,) effective numbers of slices of ratios; None where each slice counts the same.
        effective_volumes: (q,) those of volumes, likewise.
        unseen: (q,) which of the quantities, at most 1, were 0 in all windows though a further window might differ; None
            if that says all about the others, too.
    """

    estimate: Floats
    dof: int
    scale: Floats
    weight: Floats
    volumes: int
    between: Floats
    positive: bool = False
    effective: Floats | None = None
    effective_volumes: Floats | None = None
    unseen: NDArray[np.bool_] | None = None

    def half_width(self, level: float = 0.95, comparisons: int = 1) -> Floats:
        """Return the half-widths (q,) of the intervals around the estimates.

        Args:
            level: confidence, between 0 and 1.
            comparisons: number of intervals that hold simultaneously with that confidence (Bonferroni).

        Returns:
            Infinity for a single slice, which says nothing about its spread, and where one decides a ratio.

        Example:
            >>> fit = fit_means([[0.1], [0.3], [0.2], [0.4]], positions=[0, 10, 20, 30])
            >>> bool(fit.half_width(0.95, comparisons=3) > fit.half_width(0.95))
            True
        """
        tail = (1 - level) / comparisons
        half = np.full(self.estimate.shape, np.inf if self.volumes < 2 else 0.0)
        if self.dof > 0:
            slices, widest, enough = np.asarray(self.dof + self.volumes), WIDEST, ENOUGH_SLICES
            if self.effective is not None:
                slices = self.effective
                if self.positive:
                    widest, enough = WIDEST_RATIO, ENOUGH_FOR_RATIO
            dof = slices - self.volumes
            half = mixture_quantile(np.maximum(dof, LEAST_DOF), self.scale, self.weight, tail)
            half = half * _widening(slices, widest, enough)
            # Rounding must not decide whether a single slice has a spread.
            unknown = (slices < 1 + LEAST_DOF) & (
                (half >= NO_WIDTH) | ((slices < SINGLE) & (self.estimate != 0))
            )
            half = np.where(unknown, np.inf, half)
        if self.volumes > 1:
            half = np.maximum(half, self._half_width_between(tail))
        return np.where(half < NO_WIDTH, 0.0, half)

    def _half_width_between(self, tail: float) -> Floats:
        """Return the half-widths by the spread of the volumes alone."""
        volumes, widening = np.asarray(float(self.volumes)), np.asarray(1.0)
        if self.effective_volumes is not None:
            volumes = self.effective_volumes
            widening = _widening(volumes, WIDEST_BETWEEN, ENOUGH_FOR_RATIO)
        return np.asarray(-stdtrit(np.maximum(volumes - 1, LEAST_DOF), tail / 2) * widening * self.between)

    def bounds(self, level: float = 0.95, comparisons: int = 1) -> tuple[Floats, Floats]:
        """Return the lower and the upper bounds (q,) of the intervals; see ``half_width`` for the arguments.

        Example:
            >>> low, high = fit_ratio([[1], [2], [2], [1]], [[10], [20], [10], [10]], positions=[0, 10, 20, 30]).bounds()
            >>> low.round(2).tolist(), high.round(2).tolist()
            ([0.02], [0.53])
        """
        half = self.half_width(level, comparisons)
        if not self.positive:
            return self.estimate - half, self.estimate + half
        # Those of the logarithm, estimate * exp(+-half / estimate). The upper one does so as long as it rises by less
        # than a factor of e; from there on it is its tangent, lest a tiny ratio of few slices has no bound at all.
        some = self.estimate > 0
        relative = np.divide(half, self.estimate, out=np.zeros_like(half), where=some)
        small = np.minimum(half, self.estimate)
        high = self.estimate * np.exp(np.minimum(relative, 1)) + np.e * (half - small)
        if self.unseen is not None and self.effective is not None:
            # If a part p of the slices had the difference, none of n would show it in (1 - p)^n of audits.
            least = 1 - ((1 - level) / comparisons) ** (1 / self.effective)
            high = np.where(self.unseen, np.maximum(high, least), high)
        return self.estimate * np.exp(-relative), high

    def intervals(self, bounds: tuple[float, float] = (-np.inf, np.inf)) -> tuple[Interval, ...]:
        """Return the q 95 % intervals.

        Args:
            bounds: the range of the quantity, to which the intervals are clipped.

        Example:
            >>> fit_means([[0.5], [0.5]], positions=[0, 1]).intervals()
            (Interval(estimate=0.5, low=0.5, high=0.5),)
        """
        low, high = np.clip(self.bounds(), *bounds)
        return tuple(Interval(*map(float, figures)) for figures in zip(self.estimate, low, high, strict=True))


def mean_interval(
    values: ArrayLike,
    positions: ArrayLike,
    volumes: ArrayLike | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Return the mean of a quantity over windows and its 95 % interval.

    Args:
        values: (n,) the quantity; windows where it is NaN are left out.
        positions: (n,) position of the windows along z, in any unit and order; equal for windows of one slice.
        volumes: (n,) index of the volume of each window; None for a single volume. With several, the mean is that
            of the volume means.
        bounds: the range of the quantity, to which the interval is clipped.

    Returns:
        The interval; its bounds are infinite for a single slice, and all of it is NaN without windows.

    Example:
        >>> interval = mean_interval([0.11, 0.14, 0.09, 0.12, 0.13], positions=[3, 40, 21, 60, 77])
        >>> print(f"{interval.estimate:.3f}, {interval.low:.2f} to {interval.high:.2f}")
        0.118, 0.05 to 0.19
        >>> mean_interval([0.2], positions=[0])
        Interval(estimate=0.2, low=-inf, high=inf)
    """
    values, positions = np.asarray(values, dtype=np.float64), np.asarray(positions)
    volumes = np.zeros(len(values), dtype=np.int64) if volumes is None else np.asarray(volumes)
    valid = ~np.isnan(values)
    fit = fit_means(values[valid, None], positions[valid], volumes[valid])
    return fit.intervals(bounds)[0]


def fit_means(
    values: ArrayLike,
    positions: ArrayLike,
    volumes: ArrayLike | None = None,
    *,
    whole: ArrayLike | None = None,
) -> MeanFit:
    """Estimate the means of several quantities measured on the same windows, and their precision.

    Args:
        values: (n, q) finite values.
        positions: (n,) position of the windows along z, as for ``mean_interval``.
        volumes: (n,) index of the volume of each window; None for a single volume.
        whole: (n, q) what the windows weigh in the ratios of which these are the linearisation, see ``fit_ratio``;
            None if each counts the same.

    Returns:
        The fit, from which intervals can be computed.

    Example:
        >>> fit = fit_means([[1.0, 0.0], [3.0, 0.5], [2.0, 0.1]], positions=[0, 1, 2], volumes=[0, 0, 1])
        >>> fit.estimate.tolist(), fit.dof
        ([2.0, 0.175], 1)
    """
    values, positions = np.asarray(values, dtype=np.float64), np.asarray(positions, dtype=np.float64)
    volumes = np.zeros(len(values), dtype=np.int64) if volumes is None else np.asarray(volumes)
    parts = [
        group_slices(values[here], positions[here]) for here in (volumes == v for v in np.unique(volumes))
    ]
    if not parts:
        nothing = np.full(values.shape[1], np.nan)
        return MeanFit(nothing, 0, np.empty((0, 0)), np.empty((0, 0)), 0, nothing)
    unit = mean_step([part.positions for part in parts])
    residuals, log_determinants, variances = zip(*(whiten(part, unit) for part in parts), strict=True)
    # A constant quantity leaves no residual except rounding errors.
    residual = np.maximum(sum(residuals), np.finfo(float).tiny)
    count, dof = len(parts), sum(len(part.positions) for part in parts) - len(parts)
    log_weight = np.log(PRIOR) - sum(log_determinants) / 2
    means = np.array([part.mean for part in parts])
    return MeanFit(
        estimate=means.mean(axis=0),
        dof=dof,
        scale=np.sqrt(residual * (sum(variances) / count**2 / max(dof, 1))[:, None]),
        weight=mixture_weights(log_weight[:, None] - dof / 2 * np.log(residual)),
        volumes=count,
        between=means.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.zeros_like(means[0]),
        effective=None if whole is None else effective_slices(whole, positions, volumes),
    )


def fit_ratio(
    part: ArrayLike,
    whole: ArrayLike,
    positions: ArrayLike,
    volumes: ArrayLike | None = None,
    *,
    root: bool = False,
) -> MeanFit:
    """Estimate the ratios of the means of pairs of quantities measured on the same windows, and their precision.

    The interval is that of the mean of (part - ratio * whole) / mean whole, the ratio's linearisation (Cochran 1977,
    Sampling Techniques, section 6.4), so windows count by their whole w: n slices are worth (sum w)^2 / sum(w^2) equal
    ones (Kish 1965, Survey Sampling, section 11.7). Such ratios are skewed to the right, and a sample without a large
    value gives a small ratio with a small spread, so the bounds are those of the logarithm.

    Args:
        part: (n, q) at least 0; windows where anything is NaN are left out.
        whole: (n, q) at least 0.
        positions: (n,) position of the windows along z, as for ``mean_interval``.
        volumes: (n,) index of the volume of each window; None for a single volume.
        root: return the square roots of the ratios instead.

    Returns:
        The fit of q ratios: 0 where part and whole are 0 everywhere, NaN without windows.

    Example:
        >>> fit = fit_ratio([[1.0], [2.0], [1.5]], [[10.0], [30.0], [10.0]], positions=[0, 10, 20])
        >>> fit.estimate.round(3).tolist(), fit.half_width().round(2).tolist()
        ([0.09], [0.45])
    """
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    volumes = np.zeros(len(part), dtype=np.int64) if volumes is None else np.asarray(volumes)
    valid = ~np.isnan(part + whole).any(axis=1)
    at = np.asarray(positions)[valid], volumes[valid]
    mean_part, mean_whole = (fit_means(values[valid], *at).estimate for values in (part, whole))
    scale = np.where(mean_whole > 0, mean_whole, 1.0)
    ratio = mean_part / scale
    influence = (part[valid] - ratio * whole[valid]) / scale
    if root:
        ratio = np.sqrt(ratio)
        influence = influence / np.where(ratio > 0, 2 * ratio, 1.0)
    weights = whole[valid] / scale
    return replace(
        fit_means(influence, *at, whole=weights),
        estimate=ratio,
        positive=True,
        effective_volumes=_effective_volumes(weights, volumes[valid]),
    )


def _effective_volumes(whole: Floats, volumes: NDArray[Any]) -> Floats:
    """Return the effective numbers (q,) of volumes of ratios, as `effective_slices` does those of slices."""
    means = np.array([whole[volumes == volume].mean(axis=0) for volume in np.unique(volumes)])
    return effective_slices(means.reshape(-1, whole.shape[1]), np.arange(len(means)), np.zeros(len(means)))


def fit_votes(votes: ArrayLike, positions: ArrayLike, volumes: ArrayLike | None = None) -> MeanFit:
    """Estimate the parts of the windows for which things hold, and their precision.

    Votes that all agree have no spread, but the next might differ: the width is then that with one of them changed, in the
    middle of the volume with the most windows, so that their order does not matter.

    Args:
        votes: (n, q) 0 or 1; windows where anything is NaN are left out, and one has to remain.
        positions: (n,) position of the windows along z, as for ``mean_interval``.
        volumes: (n,) index of the volume of each window; None for a single volume.

    Example:
        >>> low, high = fit_votes(np.zeros((40, 1)), positions=range(40)).bounds()
        >>> low.round(2).tolist(), high.round(2).tolist()
        ([0.0], [0.14])
    """
    given, at = np.asarray(votes, dtype=np.float64), np.asarray(positions)
    number = np.zeros(len(given), dtype=np.int64) if volumes is None else np.asarray(volumes)
    known = ~np.isnan(given).any(axis=1)
    given, at, number = given[known], at[known], number[known]
    agree = (given == given[0]).all(axis=0)
    changed = given.copy()
    largest = np.flatnonzero(number == np.bincount(number).argmax())
    changed[largest[np.argsort(at[largest], kind="stable")[len(largest) // 2]], agree] = 1 - given[0, agree]
    fit = fit_ratio(changed, np.ones_like(given), at, number)
    return replace(
        fit, estimate=np.where(agree, given[0], fit.estimate), effective=None, effective_volumes=None
    )


def _widening(slices: NDArray[Any], widest: float, enough: int) -> Floats:
    """Return the factor by which the intervals of a number of slices are widened."""
    return np.asarray(1 + (widest - 1) * np.clip((enough - slices) / (enough - FEW_SLICES), 0, 1))
