"""The statistics of an audit: whether a network treats opposite slices alike, with intervals and a verdict.

``summarize`` makes them from the ``Measurements`` of all windows; ``next_look`` and ``precise_enough`` say when an
audit may stop. Everything here is a pure function. docs/statistics.md explains the method and how often it is right.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np

from evenslice.results.biases import data_part, directional_bias, halves, model_part
from evenslice.results.intervals import Interval, fit_means, mean_interval
from evenslice.results.measurements import Measurements, split_biases

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.results.intervals import MeanFit

    Floats = NDArray[np.float64]

__all__ = ["Asymmetry", "Verdict", "next_look", "precise_enough", "summarize"]

Verdict = Literal["symmetric", "biased", "inconclusive", "not applicable"]

FIRST_LOOK = 40  # windows; fewer say too little about the correlation of neighbours
BIASED_LEVEL = 0.95
# The 90 % intervals of "symmetric" are computed at 94 %: exact ones would be wrong in 5 % of audits of a network at the
# tolerance, and estimating the correlation would raise that above 5 % (benchmarks/calibration.py).
SYMMETRIC_LEVEL = 0.94


@dataclass(frozen=True)
class Asymmetry:
    """The statistics of an audit; every interval has a confidence of 95 %.

    Attributes:
        verdict: "symmetric", "biased", "inconclusive", or "not applicable" at N = 1.
        tolerance: the largest absolute pair bias that still counts as symmetric.
        shares: N intervals of the mean share (over windows and mirrors), offsets -K..K.
        pairs: K intervals of the model part of the pair bias B_k, k = 1..K.
        data_pairs: K intervals of the data part of B_k.
        directional_bias: D_m, the model part of the directional bias.
        data_direction: D_d, its data part.
        asymmetry: A, half the L1 distance between the mean share profile and its mirror.
        imbalance: U, half the L1 distance between the mean share profile and 1/N.
        wasserstein: K intervals of the Wasserstein-1 distance between mirrored slices.
        mirror_error: mean relative output change when a window is reversed.
        mirror_disagreement: mean share of pixels whose class changes when a window is reversed.
    """

    verdict: Verdict
    tolerance: float
    shares: tuple[Interval, ...]
    pairs: tuple[Interval, ...]
    data_pairs: tuple[Interval, ...]
    directional_bias: Interval
    data_direction: Interval
    asymmetry: Interval
    imbalance: Interval
    wasserstein: tuple[Interval, ...]
    mirror_error: Interval
    mirror_disagreement: Interval


def next_look(windows: int) -> int:
    """Return the number of windows after which an audit next checks its precision.

    It checks after 40 windows and then whenever their number has grown by a quarter: often enough to save windows,
    rarely enough to cost nothing compared with the network.

    Args:
        windows: number of windows measured so far.

    Example:
        >>> [next_look(windows) for windows in (0, 39, 40, 50)]
        [40, 40, 50, 62]
    """
    look = FIRST_LOOK
    while look <= windows:
        look += look // 4
    return look


def precise_enough(measurements: Measurements, precision: float = 0.01) -> bool:
    """Return whether the 95 % intervals of all pair biases (their model parts) are narrow enough.

    Args:
        measurements: those of the windows so far.
        precision: upper limit of every half-width.
    """
    kept = _with_shares(measurements)
    return bool((_fit(kept, split_biases(kept).model).half_width() < precision).all())


def summarize(measurements: Measurements, tolerance: float = 0.05) -> Asymmetry:
    """Compute the statistics of an audit and its verdict.

    The verdict is a test of equivalence: "symmetric" if the simultaneous 90 % intervals of the model parts of all B_k
    lie within +-tolerance, "biased" if the simultaneous 95 % interval of any lies outside it, else "inconclusive".
    Each of the first two is wrong in at most 5 % of audits; to ensure this in audits that stop early, the 90 %
    intervals are computed at 94 % (docs/statistics.md).

    Args:
        measurements: those of all windows; windows without attribution (NaN shares) are left out.
        tolerance: the largest absolute pair bias that still counts as symmetric, above 0 and at most 1.

    Example:
        >>> shares = np.array([[0.2, 0.5, 0.3], [0.21, 0.5, 0.29], [0.19, 0.5, 0.31], [0.2, 0.51, 0.29]])
        >>> place, figure = np.zeros((4, 3), dtype=int), np.zeros(4)
        >>> place[:, 0] = 10, 20, 30, 40
        >>> found = summarize(Measurements(place[:, 1], place, shares, shares, figure[:, None], figure, figure))
        >>> found.verdict, round(found.directional_bias.estimate, 2)
        ('biased', 0.2)
    """
    kept = _with_shares(measurements)
    shares, mirrored = kept.shares, kept.mirrored_shares
    profile = _fit(kept, model_part(shares, mirrored))
    differences = _fit(kept, model_part(_differences(shares), _differences(mirrored)))
    pairs = _fit(kept, split_biases(kept).model)
    directions = directional_bias(shares), directional_bias(mirrored)
    return Asymmetry(
        verdict=_verdict(pairs, tolerance),
        tolerance=tolerance,
        shares=profile.intervals(bounds=(0, 1)),
        pairs=pairs.intervals(bounds=(-1, 1)),
        data_pairs=_fit(kept, split_biases(kept).data).intervals(bounds=(-1, 1)),
        directional_bias=_interval(kept, model_part(*directions), bounds=(-1, 1)),
        data_direction=_interval(kept, data_part(*directions), bounds=(-1, 1)),
        asymmetry=_distance(differences, 0, weight=1),
        imbalance=_distance(profile, 1 / shares.shape[1], weight=0.5),
        wasserstein=_fit(kept, kept.wasserstein).intervals(bounds=(0, np.inf)),
        mirror_error=_interval(measurements, measurements.mirror_error, bounds=(0, np.inf)),
        mirror_disagreement=_interval(measurements, measurements.mirror_disagreement, bounds=(0, 1)),
    )


def _with_shares(measurements: Measurements) -> Measurements:
    """Leave out the windows without attribution, of the window or of its mirror."""
    kept = ~np.isnan(measurements.shares + measurements.mirrored_shares).any(axis=1)
    return Measurements(
        **{entry.name: getattr(measurements, entry.name)[kept] for entry in fields(measurements)}
    )


def _fit(measurements: Measurements, values: Floats) -> MeanFit:
    return fit_means(values, measurements.position[:, 0], measurements.volume)


def _differences(shares: Floats) -> Floats:
    left, right = halves(shares)
    return right - left


def _interval(measurements: Measurements, values: Floats, bounds: tuple[float, float]) -> Interval:
    return mean_interval(values, measurements.position[:, 0], measurements.volume, bounds=bounds)


def _verdict(pairs: MeanFit, tolerance: float) -> Verdict:
    size, comparisons = np.abs(pairs.estimate), len(pairs.estimate)
    if comparisons == 0:
        return "not applicable"
    if (size + pairs.half_width(SYMMETRIC_LEVEL, comparisons) <= tolerance).all():
        return "symmetric"
    if (size - pairs.half_width(BIASED_LEVEL, comparisons) > tolerance).any():
        return "biased"
    return "inconclusive"


def _distance(means: MeanFit, target: float, weight: float) -> Interval:
    """Return the interval of a weighted sum of distances between means and a target, where the sum is at most 1.

    With a confidence of 95 % all simultaneous intervals of the signed means hold; the sum then lies between those of
    the smallest and of the largest distances that they admit. Unlike an interval of the sum itself, this is valid
    near 0, where a sum of absolute values is far from normal; elsewhere it is wider than necessary.
    """
    size, half = np.abs(means.estimate - target), means.half_width(comparisons=max(len(means.estimate), 1))
    low, high = np.maximum(size - half, 0).sum(), np.minimum((size + half).sum(), 1 / weight)
    return Interval(weight * float(size.sum()), weight * float(low), weight * float(high))
