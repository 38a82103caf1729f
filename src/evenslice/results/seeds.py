"""Statistics over the runs of a study: means over seeds, differences from a baseline, and whether Dice was lost.

For each data set and architecture, every arm was run with several seeds. A metric of an arm is the mean over its seeds
with Student's t interval. Two arms are compared seed by seed: runs with the same seed see the same crops and start from
the same random weights, unless the whole network is random. An arm is not inferior to the baseline when the 95 %
interval of the difference in Dice lies above minus the margin. Intervals are not adjusted for the number of arms.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evenslice.results.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    RunRecord = Mapping[str, Any]

__all__ = [
    "METRICS",
    "SALIENCY_PERCENTILES",
    "ArmSummary",
    "Comparison",
    "NonInferiority",
    "non_inferiority",
    "saliency_percentiles",
    "student_interval",
    "summarize_runs",
]

METRICS = (
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
"""Names of the metrics of a run; ``absolute_bias`` is the absolute value of the directional bias."""

SALIENCY_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

LEVEL = 0.95


class NonInferiority(NamedTuple):
    """A test that a metric is not inferior to the baseline's; see ``ArmSummary``."""

    margin: float
    p: float
    holds: bool | None


@dataclass(frozen=True)
class ArmSummary:
    """The runs of one arm in a comparison.

    Attributes:
        arm: its name.
        seeds: those of its finished runs.
        metrics: mean over seeds by name (``METRICS``), with its 95 % interval.
        shares: the same for each slice.
        differences: mean paired difference from the baseline by name; empty for the baseline and without common seeds.
        margin: of the non-inferiority test of Dice: the loss that would matter; NaN if ``differences`` is empty.
        p: of the one-sided paired t test of a mean difference of at most -margin; NaN without a test.
        holds: whether Dice is not inferior; None without a test.
        bias_removed: the share of the baseline's absolute directional bias that the arm does not have; NaN if unknown.
    """

    arm: str
    seeds: tuple[int, ...]
    metrics: dict[str, Interval]
    shares: tuple[Interval, ...]
    differences: dict[str, Interval] = field(default_factory=dict)
    margin: float = math.nan
    p: float = math.nan
    holds: bool | None = None
    bias_removed: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, with the keys of ``summary.json``."""
        values = asdict(self)
        summary = {
            "arm": self.arm,
            "seeds": self.seeds,
            "figures": values["metrics"],
            "shares": values["shares"],
        }
        if not self.differences:
            return summary
        test = {name: values[name] for name in NonInferiority._fields}
        return {
            **summary,
            "differences": values["differences"],
            "non_inferiority": test,
            "bias_removed": values["bias_removed"],
        }


@dataclass(frozen=True)
class Comparison:
    """The arms on one data set with one architecture."""

    dataset: str
    architecture: str
    arms: tuple[ArmSummary, ...]

    @property
    def title(self) -> str:
        """The names of both."""
        return f"{self.dataset}, {self.architecture}"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, with the keys of ``summary.json``."""
        return {
            "dataset": self.dataset,
            "architecture": self.architecture,
            "arms": [arm.to_dict() for arm in self.arms],
        }


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
    low, high = _t_test(known).confidence_interval(LEVEL)
    return Interval(float(known.mean()), float(low), float(high))


def non_inferiority(differences: ArrayLike, margin: float) -> NonInferiority:
    """Test that a metric of which more is better is lower than the baseline's by less than a margin.

    Args:
        differences: the metric less that of the baseline, one for each seed; NaN values are left out.
        margin: the loss that would matter, above 0.

    Returns:
        The test, which holds if p is below 0.025, that is, if the two-sided 95 % interval lies above -margin. With
        fewer than two seeds there is no test.

    Example:
        >>> non_inferiority([0.002, -0.001, 0.001], margin=0.01)
        NonInferiority(margin=0.01, p=0.003..., holds=True)
        >>> non_inferiority([-0.02, 0.01, 0.0], margin=0.01).holds
        False
    """
    known = _known(differences)
    if len(known) < 2:
        return NonInferiority(margin, math.nan, None)
    p = float(_t_test(known, -margin, alternative="greater").pvalue)
    return NonInferiority(margin, p, p < (1 - LEVEL) / 2)


def saliency_percentiles(saliency: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Return percentiles of the saliency of pixels in each slice of the window.

    Args:
        saliency: (windows, slices, y, x), summing to 1 over each window.

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


def summarize_runs(rows: Iterable[RunRecord], *, baseline: str, margin: float) -> list[Comparison]:
    """Summarize the finished runs of a study.

    Args:
        rows: for each run ``dataset``, ``architecture``, ``arm``, ``seed``, ``shares`` and its ``METRICS``; a metric
            that is missing or None is undefined.
        baseline: the arm that the others are compared with.
        margin: of the non-inferiority test of Dice.

    Returns:
        One comparison for each data set and architecture, in the order of the rows.

    Example:
        >>> rows = [
        ...     {"dataset": "d", "architecture": "a", "arm": arm, "seed": seed, "shares": None, "dice": dice + seed / 100}
        ...     for arm, dice in [("pretrained", 0.8), ("uniform", 0.81)] for seed in range(2)
        ... ]
        >>> uniform = summarize_runs(rows, baseline="pretrained", margin=0.01)[0].arms[1]
        >>> round(uniform.differences["dice"].estimate, 6), uniform.holds
        (0.01, True)
    """
    groups: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for row in rows:
        arms = groups.setdefault((row["dataset"], row["architecture"]), {})
        arms.setdefault(row["arm"], []).append(row)
    return [
        Comparison(
            dataset,
            architecture,
            tuple(
                _summarize_arm(arm, runs, [] if arm == baseline else arms.get(baseline, []), margin)
                for arm, runs in arms.items()
            ),
        )
        for (dataset, architecture), arms in groups.items()
    ]


def _summarize_arm(
    arm: str, runs: Sequence[RunRecord], baseline: Sequence[RunRecord], margin: float
) -> ArmSummary:
    seeds = tuple(run["seed"] for run in runs)
    metrics = {name: student_interval(_column(runs, name)) for name in METRICS}
    profiles = [run["shares"] for run in runs if run["shares"]]
    shares = tuple(student_interval(column) for column in zip(*profiles, strict=True))
    by_seed = {run["seed"]: run for run in baseline}
    pairs = [(run, by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
    if not pairs:
        return ArmSummary(arm, seeds, metrics, shares)
    own, other = zip(*pairs, strict=True)
    differences = {name: _column(own, name) - _column(other, name) for name in METRICS}
    bias, expected = (student_interval(_column(side, "absolute_bias")).estimate for side in (own, other))
    return ArmSummary(
        arm,
        seeds,
        metrics,
        shares,
        {name: student_interval(values) for name, values in differences.items()},
        *non_inferiority(differences["dice"], margin),
        1 - bias / expected if expected > 0 else math.nan,
    )


def _column(runs: Sequence[RunRecord], name: str) -> NDArray[np.float64]:
    """Return one metric of runs, NaN where undefined."""
    return np.array([run.get(name) for run in runs], dtype=np.float64)


def _known(values: ArrayLike) -> NDArray[np.float64]:
    known = np.asarray(values, dtype=np.float64)
    return known[~np.isnan(known)]


def _t_test(values: NDArray[np.float64], mean: float = 0.0, **options: Any) -> Any:
    from scipy.stats import ttest_1samp  # slow to import

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Precision loss", RuntimeWarning
        )  # equal values: an interval without width
        return ttest_1samp(values, mean, **options)
