"""The statistics of an audit: whether a network treats opposite slices alike, with intervals and a verdict.

``summarize`` makes them from the ``Measurements`` of all windows; ``next_look`` and ``precise_enough`` say when an
audit may stop. Everything here is a pure function. docs/statistics.md explains the method, docs/calibration.md how often it is
right.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from evenslice.results.biases import data_part, directional_bias, halves, model_part
from evenslice.results.evidence import (
    MethodNames,
    answer_evidence,
    answer_kind,
    class_evidence,
    difference_of_methods,
    disagreement_interval,
    first_evidence,
    second_evidence,
    use_evidence,
)
from evenslice.results.intervals import UNKNOWN, Interval, fit_means, mean_interval
from evenslice.results.measurements import Measurements, split_biases
from evenslice.results.subsets import SubsetMeasurements
from evenslice.results.thresholds import Thresholds, least_attention
from evenslice.results.verdicts import (
    AnswerKind,
    Decision,
    Verdict,
    agreement,
    judge,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.results.intervals import MeanFit
    from evenslice.results.verdicts import Evidence

    Floats = NDArray[np.float64]

__all__ = [
    "AnswerChange",
    "Asymmetry",
    "ClassBias",
    "PairBias",
    "SecondOpinion",
    "next_look",
    "precise_enough",
    "summarize",
]

FIRST_LOOK = 40  # windows; fewer say too little about the correlation of neighbours


@dataclass(frozen=True, slots=True)
class PairBias(Interval):
    """The model part of the pair bias B_k with its interval.

    Attributes:
        judged: whether the pair gets enough of the attention for the verdict to depend on it.
    """

    judged: bool = True


@dataclass(frozen=True, slots=True)
class AnswerChange(Interval):
    """The answer change C with its interval.

    Attributes:
        of: what it compares: "classes", the part of the foreground whose class changes, 0..1; "scores", the change of the
            output in terms of its standard deviation; "unknown" if that was not recorded, or C is not known.
    """

    of: AnswerKind = "unknown"


NO_ANSWER = AnswerChange(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class SecondOpinion:
    """The pair biases by another method, on a subset of the windows.

    Attributes:
        method: of attribution.
        windows: number of windows.
        pairs: K pair biases, k = 1..K.
    """

    method: str
    windows: int
    pairs: tuple[PairBias, ...]


@dataclass(frozen=True)
class ClassBias:
    """The pair biases of the pixels of one class, predicted or (target "labels") labelled, on a subset of the windows.

    Attributes:
        class_number: the class.
        pixels: part of the pixels that have it.
        windows: number of windows.
        pairs: K pair biases, k = 1..K.
    """

    class_number: int
    pixels: float
    windows: int
    pairs: tuple[PairBias, ...]


@dataclass(frozen=True)
class Asymmetry:
    """The statistics of an audit; every interval has a confidence of 95 %.

    Attributes:
        verdict: "symmetric", "balanced", "biased", "inconclusive", or "not applicable" at N = 1.
        tolerance: the largest absolute pair bias that counts as equal attention.
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
        answer_change: C, the part of the answer that changes when a window is reversed; see ``answer_evidence``.
        mirror_mismatch: E, the part of the outer slices' attribution that is not used in the same way.
        decided_by: what decided the verdict; None if nothing did.
        methods_agree: whether both methods agree about the pair biases; None if that is not settled, or there is one
            method only.
        second_opinion: the pair biases by another method; None if there is none.
        classes: the pair biases of each class that covers at least 1 % of the pixels.
        answer_tolerance: the largest C that counts as the same answer.
        mismatch_tolerance: the largest E that counts as the same use.
        judged_share: the part of the attention that a pair has to get in order to be judged; see ``least_attention``.
    """

    verdict: Verdict
    tolerance: float
    shares: tuple[Interval, ...]
    pairs: tuple[PairBias, ...]
    data_pairs: tuple[Interval, ...]
    directional_bias: Interval
    data_direction: Interval
    asymmetry: Interval
    imbalance: Interval
    wasserstein: tuple[Interval, ...]
    mirror_error: Interval
    mirror_disagreement: Interval
    answer_change: AnswerChange = NO_ANSWER
    mirror_mismatch: Interval = UNKNOWN
    decided_by: Decision | None = None
    methods_agree: bool | None = None
    second_opinion: SecondOpinion | None = None
    classes: tuple[ClassBias, ...] = ()
    answer_tolerance: float = Thresholds.answer
    mismatch_tolerance: float = Thresholds.use
    judged_share: float = Thresholds.judged

    @property
    def least_attention(self) -> float:
        """The part of the attention below which a pair is not judged."""
        return least_attention(len(self.pairs), self.judged_share)


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


def precise_enough(
    measurements: Measurements,
    precision: float = 0.01,
    thresholds: Thresholds = Thresholds(),  # noqa: B008  # immutable
) -> bool:
    """Return whether the 95 % intervals of all pair biases (their model parts) are narrow enough.

    Args:
        measurements: those of the windows so far.
        precision: upper limit of every half-width.
        thresholds: which pairs get too little attention to be judged, and to wait for.
    """
    evidence = first_evidence(_with_shares(measurements), thresholds, "")
    wide = evidence.fit.half_width() >= precision
    return not (wide & np.array(evidence.judged, dtype=bool)).any()


def summarize(
    measurements: Measurements,
    subset: SubsetMeasurements | None = None,
    thresholds: Thresholds = Thresholds(),  # noqa: B008  # immutable
    methods: MethodNames = MethodNames(),  # noqa: B008
) -> Asymmetry:
    """Compute the statistics of an audit and its verdict.

    Args:
        measurements: those of all windows; windows without attribution (NaN shares) are left out.
        subset: those of the second method and of each class, on some of the windows.
        thresholds: what counts as fair.
        methods: the names of the methods behind the measurements.

    Example:
        >>> shares = np.array([[0.2, 0.5, 0.3], [0.21, 0.5, 0.29], [0.19, 0.5, 0.31], [0.2, 0.51, 0.29]] * 2)
        >>> place, figure, pair = np.zeros((8, 3), dtype=int), np.zeros(8), np.ones((8, 1))
        >>> place[:, 0] = range(10, 90, 10)
        >>> outputs = dict.fromkeys(("mirror_error", "foreground", "mirror_disagreement", "change", "power"), figure)
        >>> outputs |= dict.fromkeys(("lowest_class", "highest_class", "own_mirror"), figure) | {"level": figure[:, None]}
        >>> rows = {"shares": shares, "mirrored_shares": shares, "wasserstein": pair, "mismatch": pair, "outer": pair}
        >>> found = summarize(Measurements(place[:, 1], place, **rows, **outputs))
        >>> found.verdict, found.decided_by.question, round(found.directional_bias.estimate, 2)
        ('biased', 'attention', 0.2)
    """
    kept = _with_shares(measurements)
    shares, mirrored = kept.shares, kept.mirrored_shares
    subset = SubsetMeasurements.empty(shares.shape[1]) if subset is None else subset
    profile = _fit(kept, model_part(shares, mirrored))
    differences = _fit(kept, model_part(_differences(shares), _differences(mirrored)))
    directions = directional_bias(shares), directional_bias(mirrored)
    first = first_evidence(kept, thresholds, methods.first)
    second = second_evidence(measurements, subset, thresholds, methods.second)
    classes = class_evidence(measurements, subset, thresholds, methods.first)
    answer = answer_evidence(measurements, thresholds)
    use = use_evidence(measurements, thresholds, methods.use, first)
    verdict, decided_by = judge(
        [first, *([second] if second else []), *(item.evidence for item in classes)], answer, use
    )
    agree = None
    if second is not None:
        agree = agreement(first, second, difference_of_methods(measurements, subset))
    return Asymmetry(
        verdict=verdict,
        tolerance=thresholds.attention,
        shares=profile.intervals(bounds=(0, 1)),
        pairs=_pairs(first),
        data_pairs=_fit(kept, split_biases(kept).data).intervals(bounds=(-1, 1)),
        directional_bias=_interval(kept, model_part(*directions), bounds=(-1, 1)),
        data_direction=_interval(kept, data_part(*directions), bounds=(-1, 1)),
        asymmetry=_distance(differences, 0, weight=1, most=1),
        imbalance=_distance(profile, 1 / shares.shape[1], weight=0.5, most=1 - 1 / shares.shape[1]),
        wasserstein=_fit(kept, kept.wasserstein).intervals(bounds=(0, shares.shape[1])),
        mirror_error=_interval(measurements, measurements.mirror_error, bounds=(0, np.inf)),
        mirror_disagreement=disagreement_interval(measurements),
        answer_change=_answer_change(measurements, answer),
        mirror_mismatch=use.fit.intervals(bounds=(0, 1))[0] if use else UNKNOWN,
        decided_by=decided_by,
        methods_agree=agree,
        second_opinion=SecondOpinion(str(methods.second), len(subset.window), _pairs(second))
        if second
        else None,
        classes=tuple(
            ClassBias(item.class_number, item.pixels, item.windows, _pairs(item.evidence))
            for item in classes
            if item.windows
        ),
        answer_tolerance=thresholds.answer,
        mismatch_tolerance=thresholds.use,
        judged_share=thresholds.judged,
    )


def _answer_change(measurements: Measurements, answer: Evidence | None) -> AnswerChange:
    if answer is None:
        return NO_ANSWER
    kind = answer_kind(measurements)
    (found,) = answer.fit.intervals(bounds=(0, np.inf if kind == "scores" else 1))
    return AnswerChange(found.estimate, found.low, found.high, kind)


def _pairs(evidence: Evidence) -> tuple[PairBias, ...]:
    found = evidence.fit.intervals(bounds=(-1, 1))
    return tuple(
        PairBias(item.estimate, item.low, item.high, judged)
        for item, judged in zip(found, evidence.judged, strict=True)
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


def _distance(means: MeanFit, target: float, weight: float, most: float) -> Interval:
    """Return the interval of a weighted sum of distances between means and a target, where the sum is at most ``most``.

    With a confidence of 95 % all simultaneous intervals of the signed means hold; the sum then lies between those of
    the smallest and of the largest distances that they admit. Unlike an interval of the sum itself, this is valid
    near 0, where a sum of absolute values is far from normal; elsewhere it is wider than necessary.
    """
    size, half = np.abs(means.estimate - target), means.half_width(comparisons=max(len(means.estimate), 1))
    low, high = np.maximum(size - half, 0).sum(), min((size + half).sum(), max(most / weight, size.sum()))
    return Interval(weight * float(size.sum()), weight * float(low), weight * float(high))
