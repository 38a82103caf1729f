"""Statistics over the runs of a study: means over seeds, differences from a baseline, and whether Dice was lost.

For each data set and architecture, every arm was run with several seeds. A metric of an arm is the mean over its seeds
with Student's t interval. Two arms are compared seed by seed: runs with the same seed see the same crops and start from
the same random weights, unless the whole network is random. An arm is not inferior to the baseline when the 95 %
interval of the difference in Dice lies above minus the margin. What an arm removes of the baseline's bias is a ratio
of means and has Fieller's interval. Every interval is clipped to the range of its quantity. Intervals are not adjusted
for the number of arms.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evenslice.results.biases import halves, pair_bias
from evenslice.results.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    RunRecord = Mapping[str, Any]

__all__ = [
    "BOUNDS",
    "METRICS",
    "SALIENCY_PERCENTILES",
    "ArmSummary",
    "Comparison",
    "NonInferiority",
    "bias_removed",
    "clipped",
    "largest_bias",
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
    "largest_bias",
    "asymmetry",
    "imbalance",
    "mirror_error",
    "mirror_disagreement",
    "answer_change",
    "mirror_mismatch",
)
"""Names of the metrics of a run; ``absolute_bias`` is |D_m|, ``largest_bias`` the largest |B_k|, see ``largest_bias``."""

BOUNDS = {
    **dict.fromkeys(("hd95", "variation_of_information", "mirror_error", "answer_change"), (0.0, math.inf)),
    "directional_bias": (-1.0, 1.0),
}
"""Range of the metrics for which it is not 0 to 1."""

SALIENCY_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

LEVEL = 0.95
TOLERANCE = 0.05  # pair bias that counts as equal attention in an audit: less is no bias to be removed
LEAST_PAIR = 0.02  # of the attention: |B_k| of a pair that hardly gets any is noise


_UNKNOWN = Interval(math.nan, math.nan, math.nan)


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
        bias_removed: the part of the baseline's largest pair bias that the arm does not have; see ``bias_removed``.
    """

    arm: str
    seeds: tuple[int, ...]
    metrics: dict[str, Interval]
    shares: tuple[Interval, ...]
    differences: dict[str, Interval] = field(default_factory=dict)
    margin: float = math.nan
    p: float = math.nan
    holds: bool | None = None
    bias_removed: Interval = _UNKNOWN

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


def largest_bias(run: RunRecord) -> float:
    """Return the largest absolute pair bias |B_k| (model part) of a run, 0..1; NaN without pairs.

    |D| is 0 where pairs of opposite sign cancel, as in five slices of repeated colours; the largest |B_k| is not. Pairs
    that get less than 2 % of the attention are left out.

    Args:
        run: with ``largest_bias``; or with ``shares``, their means over windows and mirrors, and ``pairs``, the means
            of B_k. Records of earlier versions have no B_k: with three slices |B_1| is their ``absolute_bias``, with
            more the B_k of the mean shares are very close.

    Example: the inner pair leans to one side, the outer pair to the other.
        >>> round(largest_bias({"shares": [0.15, 0.31, 0.08, 0.15, 0.31]}), 2)
        0.35
    """
    profile = np.array([run.get("shares") or ()], dtype=np.float64)
    stated = run.get("largest_bias")
    if stated is None and profile.shape[1] == 3 and "pairs" not in run:
        stated = run.get("absolute_bias")
    if stated is not None and not math.isnan(stated):
        return float(stated)
    if profile.shape[1] < 3 or np.isnan(profile).any():
        return math.nan
    before, after = halves(profile)
    pairs = np.array([run["pairs"]]) if "pairs" in run else pair_bias(profile)
    return float(np.abs(pairs[before + after >= LEAST_PAIR]).max(initial=0.0))


def bias_removed(own: ArrayLike, baseline: ArrayLike) -> Interval:
    """Return the part of the baseline's largest pair bias that an arm does not have, at most 1, with its 95 % interval.

    That is 1 - (mean of own) / (mean of baseline). The interval is Fieller's (1954, doi:10.1111/j.2517-6161.1954.tb00159.x)
    for paired values: all ratios r for which the mean of own - r * baseline does not differ from 0 by Student's t.

    Args:
        own: (n,) largest absolute pair biases of the arm by seed; seeds where either is NaN are left out.
        baseline: (n,) those of the baseline.

    Returns:
        NaN with fewer than two seeds, or unless the interval of the baseline's mean lies above the audit's tolerance of
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
    if not student_interval(pairs[1]).low > TOLERANCE:
        return _UNKNOWN
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
            that is missing or None is undefined, but for ``largest_bias``, which ``shares`` give too.
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
    metrics = {name: student_interval(_column(runs, name), BOUNDS.get(name, (0.0, 1.0))) for name in METRICS}
    profiles = [run["shares"] for run in runs if run["shares"]]
    shares = tuple(student_interval(column, (0, 1)) for column in zip(*profiles, strict=True))
    by_seed = {run["seed"]: run for run in baseline}
    pairs = [(run, by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
    if not pairs:
        return ArmSummary(arm, seeds, metrics, shares)
    own, other = zip(*pairs, strict=True)
    differences = {name: _column(own, name) - _column(other, name) for name in METRICS}
    return ArmSummary(
        arm,
        seeds,
        metrics,
        shares,
        {name: student_interval(values, difference_bounds(name)) for name, values in differences.items()},
        *non_inferiority(differences["dice"], margin),
        bias_removed(_column(own, "largest_bias"), _column(other, "largest_bias")),
    )


def difference_bounds(name: str) -> tuple[float, float]:
    """Return the range of the difference of two values of a metric.

    Example:
        >>> difference_bounds("dice"), difference_bounds("directional_bias")
        ((-1.0, 1.0), (-2.0, 2.0))
    """
    low, high = BOUNDS.get(name, (0.0, 1.0))
    return low - high, high - low


def _column(runs: Sequence[RunRecord], name: str) -> NDArray[np.float64]:
    """Return one metric of runs, NaN where undefined."""
    values = map(largest_bias, runs) if name == "largest_bias" else (run.get(name) for run in runs)
    return np.array([*values], dtype=np.float64)


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
