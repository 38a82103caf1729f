"""What the runs of a study say together: means over seeds, differences to a baseline, and whether Dice was lost.

For each data set and architecture, every arm was run with several seeds. A figure of an arm is the mean over its seeds
with Student's t interval. Two arms are compared seed by seed: a run and that of the baseline with the same seed see the
same crops and start from the same random parts, unless one of them is random as a whole. An arm is not inferior to the baseline when the 95 % interval of the
difference in Dice lies above minus the margin. Intervals are not adjusted for the number of arms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtr, stdtrit

from evenslice.results.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    Row = Mapping[str, Any]

__all__ = [
    "FIGURES",
    "SALIENCY_PERCENTILES",
    "non_inferiority",
    "saliency_percentiles",
    "student_interval",
    "summarize_runs",
]

FIGURES = (
    "dice",
    "iou",
    "hd95",
    "surface_dice",
    "adapted_rand_error",
    "variation_of_information",
    "directional_bias",
    "absolute_bias",
    "asymmetry",
    "imbalance",
    "mirror_error",
    "mirror_disagreement",
)
"""The figures of a run; ``absolute_bias`` is the absolute value of the directional bias."""

SALIENCY_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

LEVEL = 0.95


def student_interval(values: ArrayLike) -> Interval:
    """Return the mean of independent values and its 95 % interval by Student's t; NaN values are left out.

    Example:
        >>> student_interval([0.90, 0.91, 0.92])
        Interval(estimate=0.91, low=0.885..., high=0.934...)
        >>> student_interval([0.9])
        Interval(estimate=0.9, low=nan, high=nan)
    """
    known = _known(values)
    if len(known) < 2:
        return Interval(float(known[0]) if len(known) else math.nan, math.nan, math.nan)
    mean, error = _mean_and_error(known)
    half = float(stdtrit(len(known) - 1, (1 + LEVEL) / 2)) * error
    return Interval(mean, mean - half, mean + half)


def non_inferiority(differences: ArrayLike, margin: float) -> dict[str, Any]:
    """Test that a figure of which more is better is lower than the baseline's by less than a margin.

    Args:
        differences: the figure less that of the baseline, one for each seed; NaN values are left out.
        margin: the loss that would matter, above 0.

    Returns:
        ``margin``; ``p``, of the one-sided paired t test of a mean difference of at most -margin; ``holds``, whether p
        is below 0.025, which is to say that the two-sided 95 % interval lies above -margin. With fewer than two seeds
        there is no test, and both are None.

    Example:
        >>> non_inferiority([0.002, -0.001, 0.001], margin=0.01)
        {'margin': 0.01, 'p': 0.003..., 'holds': True}
        >>> non_inferiority([-0.02, 0.01, 0.0], margin=0.01)["holds"]
        False
    """
    known = _known(differences)
    if len(known) < 2:
        return {"margin": margin, "p": None, "holds": None}
    mean, error = _mean_and_error(known)
    statistic = (mean + margin) / max(error, np.finfo(float).tiny)  # equal differences leave no doubt
    p = float(stdtr(len(known) - 1, -statistic))
    return {"margin": margin, "p": p, "holds": p < (1 - LEVEL) / 2}


def saliency_percentiles(saliency: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Describe how the saliency of pixels is distributed in each slice of the window.

    Args:
        saliency: (windows, slices, y, x), which sums to 1 over a window.

    Returns:
        For each slice the ``SALIENCY_PERCENTILES`` over all its pixels in all windows, in units of the mean over
        pixels and slices, rounded to four digits.

    Example: all saliency falls on the second of two slices.
        >>> saliency_percentiles(np.array([[[[0.0, 0.0]], [[0.5, 0.5]]]]))[1][:2]
        [2.0, 2.0]
    """
    pixels = saliency.swapaxes(0, 1).reshape(saliency.shape[1], -1) * saliency[0].size
    values = np.percentile(pixels, SALIENCY_PERCENTILES, axis=1).T
    return [[float(f"{value:.4g}") for value in row] for row in values]


def summarize_runs(rows: Iterable[Row], *, baseline: str, margin: float) -> list[dict[str, Any]]:
    """Summarize the finished runs of a study, data set by data set and architecture by architecture.

    Args:
        rows: for each run ``dataset``, ``architecture``, ``arm``, ``seed``, ``shares`` and those of ``FIGURES`` that it
            has; None stands for a figure that does not exist.
        baseline: the arm that others are compared with.
        margin: of the non-inferiority test of Dice.

    Returns:
        For each data set and architecture, in the order in which they come: ``dataset``, ``architecture`` and
        ``arms``; for each arm ``arm``, ``seeds``, ``figures`` and ``shares``, each with ``estimate``, ``low`` and
        ``high``; and, except for the baseline, where it was run with the same seeds: ``differences`` likewise,
        ``non_inferiority`` of Dice, and ``bias_removed``, the share of the baseline's absolute directional bias that
        the arm does not have.

    Example:
        >>> rows = [
        ...     {"dataset": "d", "architecture": "a", "arm": arm, "seed": seed, "shares": None, "dice": dice + seed / 100}
        ...     for arm, dice in [("pretrained", 0.8), ("uniform", 0.81)] for seed in range(2)
        ... ]
        >>> uniform = summarize_runs(rows, baseline="pretrained", margin=0.01)[0]["arms"][1]
        >>> round(uniform["differences"]["dice"]["estimate"], 6), uniform["non_inferiority"]["holds"]
        (0.01, True)
    """
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        arms = groups.setdefault((row["dataset"], row["architecture"]), {})
        arms.setdefault(row["arm"], []).append(row)
    return [
        {
            "dataset": dataset,
            "architecture": architecture,
            "arms": [
                _summarize_arm(arm, runs, [] if arm == baseline else arms.get(baseline, []), margin)
                for arm, runs in arms.items()
            ],
        }
        for (dataset, architecture), arms in groups.items()
    ]


def _summarize_arm(arm: str, runs: Sequence[Row], baseline: Sequence[Row], margin: float) -> dict[str, Any]:
    summary = {
        "arm": arm,
        "seeds": [run["seed"] for run in runs],
        "figures": {name: _plain(student_interval(_column(runs, name))) for name in FIGURES},
        "shares": _summarize_shares(runs),
    }
    by_seed = {run["seed"]: run for run in baseline}
    pairs = [(run, by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
    if not pairs:
        return summary
    own, other = zip(*pairs, strict=True)
    differences = {name: _column(own, name) - _column(other, name) for name in FIGURES}
    bias, expected = (student_interval(_column(side, "absolute_bias")).estimate for side in (own, other))
    return {
        **summary,
        "differences": {name: _plain(student_interval(values)) for name, values in differences.items()},
        "non_inferiority": non_inferiority(differences["dice"], margin),
        "bias_removed": 1 - bias / expected if expected > 0 else None,
    }


def _summarize_shares(runs: Sequence[Row]) -> list[dict[str, Any]]:
    profiles = [run["shares"] for run in runs if run["shares"]]
    return [_plain(student_interval(column)) for column in zip(*profiles, strict=True)]


def _column(runs: Sequence[Row], name: str) -> NDArray[np.float64]:
    """Return one figure of runs; NaN where it does not exist."""
    return np.array([run.get(name) for run in runs], dtype=np.float64)


def _known(values: ArrayLike) -> NDArray[np.float64]:
    known = np.asarray(values, dtype=np.float64)
    return known[~np.isnan(known)]


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _plain(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
