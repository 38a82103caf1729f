"""The statistics of an audit: whether a network treats opposite slices alike, with intervals and a verdict.

``summarize`` makes them from the ``Measurements`` of a sample of windows; ``next_look`` says when an audit may stop.
Everything here is a pure function. docs/statistics.md explains the method, docs/calibration.md how often it is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.results.documents import PAIRS, SLICES
from evenslice.results.intervals import UNKNOWN, Interval, fit_ratios, mean_interval
from evenslice.results.measurements import data_part, directional_bias, halves, model_part, pair_bias
from evenslice.results.tolerances import Tolerances, least_attention
from evenslice.results.verdicts import (
    LARGEST_DIFFERENT,
    AnswerKind,
    Decision,
    Evidence,
    State,
    Verdict,
    ask,
    judge,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.results.measurements import Measurements
    from evenslice.results.verdicts import Questions

    Floats = NDArray[np.float64]

FIRST_LOOKS = (40, 59)
"""Windows at the first two looks: with 59 that equal their mirrors, fewer than 5 % of all can differ."""


@dataclass(frozen=True, slots=True)
class Figure(Interval):
    """A figure that a verdict depends on, with its 95 % interval.

    Attributes:
        judged: whether the verdict depends on it.
        state: "within" or "beyond" the tolerance, or still "open"; "not judged"; "unknown" in audits of version 0.2.
    """

    judged: bool = True
    state: State = "unknown"


@dataclass(frozen=True, slots=True)
class PairBias(Figure):
    """The pair bias B_k of saliency (its model part) or of reliance."""


@dataclass(frozen=True, slots=True)
class AnswerChange(Figure):
    """The answer change C.

    Attributes:
        of: what it compares: "classes", the part of a class that changes, 0..1; "scores", the change of the output in terms
            of its standard deviation; "unknown" if C is not known.
        class_number: the class; None for scores.
    """

    of: AnswerKind = "unknown"
    class_number: int | None = field(default=None, metadata={"key": "class"})


@dataclass(frozen=True, slots=True)
class Mismatch(Figure):
    """The mirror mismatch E.

    Attributes:
        pairs: E of each pair k = 1..K; empty for a class.
    """

    pairs: tuple[Figure, ...] = field(default=(), metadata=PAIRS)


NO_ANSWER = AnswerChange(math.nan, math.nan, math.nan, judged=False, state="not judged")
NO_MISMATCH = Mismatch(math.nan, math.nan, math.nan, judged=False, state="not judged")


@dataclass(frozen=True)
class ClassFigures:
    """The figures of the pixels of one judged class, predicted or (target "labels") labelled.

    Attributes:
        class_number: the class.
        pixels: part of the pixels that have it, in the answers to windows and mirrors.
        windows: number of windows that have it.
        pairs: K pair biases of the saliency, k = 1..K; empty if not asked.
        reliance: K pair biases of the reliance; likewise.
        answer_change: C of the class.
        mirror_mismatch: E of the class.
    """

    class_number: int = field(metadata={"key": "class"})
    pixels: float
    windows: int
    pairs: tuple[PairBias, ...] = field(default=(), metadata=PAIRS)
    reliance: tuple[PairBias, ...] = field(default=(), metadata=PAIRS)
    answer_change: AnswerChange = NO_ANSWER
    mirror_mismatch: Mismatch = NO_MISMATCH


@dataclass(frozen=True)
class VolumeFigures:
    """The figures of one of several volumes, for all predicted pixels, without a verdict."""

    volume: int
    windows: int
    pairs: tuple[Interval, ...] = field(metadata=PAIRS)
    reliance: tuple[Interval, ...] = field(metadata=PAIRS)
    answer_change: Interval
    mirror_mismatch: Interval


@dataclass(frozen=True)
class Asymmetry:
    """The statistics of an audit; every interval has a confidence of 95 %.

    Attributes:
        verdict: "symmetric", "balanced", "biased", "inconclusive", or "not applicable" at N = 1.
        tolerance: the largest absolute pair bias that counts as equal.
        shares: N intervals of the mean share of the saliency (over windows and mirrors), offsets -K..K; NaN if not asked.
        pairs: K intervals of the pair bias B_k of the saliency (its model part), k = 1..K.
        reliance: K intervals of the pair bias of the reliance.
        answer_change: C, the part of the answer that changes when a window is reversed: of the judged class in which it is
            largest, first of those beyond the tolerance, or of scores.
        mirror_mismatch: E, the part of the outer slices' attribution that is not used in the same way.
        data_pairs: K intervals of the data part of B_k.
        directional_bias: D_m, the model part of the directional bias.
        data_direction: D_d, its data part.
        asymmetry: A, half the L1 distance between the mean share profile and its mirror.
        imbalance: U, half the L1 distance between the mean share profile and 1/N.
        wasserstein: K intervals of the Wasserstein-1 distance between mirrored slices.
        mirror_error: mean relative output change when a window is reversed.
        mirror_disagreement: mean share of pixels whose class changes when a window is reversed.
        decided_by: the figures that decided the verdict, or that are open, one for each question.
        classes: the figures of each judged class.
        unjudged_classes: the classes in the answers that were not judged.
        different: the part of the windows that may differ from their mirrors, with 95 % confidence, if all that were read are
            equal to their mirrors; else None.
        needed: windows that would settle the open figures, if these are what they seem; None if none is open.
        by_volume: the figures of each volume, if there are several.
        answer_tolerance: the largest C that counts as the same answer.
        mismatch_tolerance: the largest E that counts as the same use.
        judged_share: the part of the saliency that a pair has to get in order to be judged; see ``least_attention``.
        judged_class: the part of the pixels that a class has to cover.
    """

    verdict: Verdict
    tolerance: float
    shares: tuple[Interval, ...] = field(metadata=SLICES)
    pairs: tuple[PairBias, ...] = field(metadata=PAIRS)
    data_pairs: tuple[Interval, ...] = field(metadata=PAIRS)
    directional_bias: Interval
    data_direction: Interval
    asymmetry: Interval
    imbalance: Interval
    wasserstein: tuple[Interval, ...] = field(metadata=PAIRS)
    mirror_error: Interval
    mirror_disagreement: Interval
    reliance: tuple[PairBias, ...] = field(default=(), metadata=PAIRS)
    answer_change: AnswerChange = NO_ANSWER
    mirror_mismatch: Mismatch = NO_MISMATCH
    decided_by: tuple[Decision, ...] = ()
    classes: tuple[ClassFigures, ...] = ()
    unjudged_classes: tuple[int, ...] = ()
    different: float | None = None
    needed: int | None = None
    by_volume: tuple[VolumeFigures, ...] = ()
    answer_tolerance: float = Tolerances.answer_tolerance
    mismatch_tolerance: float = Tolerances.mismatch_tolerance
    judged_share: float = Tolerances.judged_share
    judged_class: float = Tolerances.judged_class

    @property
    def least_attention(self) -> float:
        """The part of the saliency below which a pair is not judged."""
        return least_attention(len(self.pairs), self.judged_share)


def next_look(windows: int) -> int:
    """Return the number of windows after which an audit next looks at what it knows.

    It looks after 40 windows, after 59, and then whenever their number has grown by a quarter.

    Args:
        windows: number of windows measured so far.

    Example:
        >>> [next_look(windows) for windows in (0, 39, 40, 59, 73)]
        [40, 40, 59, 73, 91]
    """
    first, look = FIRST_LOOKS
    if windows < first:
        return first
    while look <= windows:
        look += look // 4
    return look


def summarize(
    measurements: Measurements,
    population: Sequence[int],
    tolerances: Tolerances = Tolerances(),  # noqa: B008  # immutable
    questions: Questions | None = None,
) -> Asymmetry:
    """Compute the statistics of an audit and its verdict.

    Args:
        measurements: those of a random sample of the windows.
        population: number of windows in each volume.
        tolerances: what counts as fair.
        questions: the evidence on the questions, if it is known from the last look.
    """
    total, count = sum(population), measurements.slices
    found = questions or ask(measurements, total, tolerances)
    verdict, decided_by = judge(found.evidence, found.different)
    shares = measurements.shares
    known = np.asarray(~np.isnan(shares).any(axis=(1, 2)))
    given, mirrored = (np.where(known[:, None], shares[:, order], np.nan) for order in (0, 1))
    directions = directional_bias(given), directional_bias(mirrored)
    profile = model_part(given, mirrored)
    differences = model_part(_differences(given), _differences(mirrored))
    classes = tuple(
        ClassFigures(
            number,
            float(found.pixels[number]),
            int((measurements.pixels[:, number] > 0).sum()),
            **_figures(found.evidence, number, count, found.different),
        )
        for number in found.judged
    )
    overall = _figures(found.evidence, None, count, found.different)
    if classes and overall["answer_change"].of == "unknown":
        overall["answer_change"] = max(
            (item.answer_change for item in classes),
            key=lambda item: (item.state == "beyond", np.nan_to_num(item.estimate, nan=-1)),
        )
    return Asymmetry(
        verdict=verdict,
        tolerance=tolerances.tolerance,
        shares=_means(profile, total, (0, 1)),
        data_pairs=_means(data_part(pair_bias(given), pair_bias(mirrored)), total, (-1, 1)),
        directional_bias=mean_interval(model_part(*directions), total, (-1, 1)),
        data_direction=mean_interval(data_part(*directions), total, (-1, 1)),
        asymmetry=_distance(differences, total, 0, weight=1, most=1),
        imbalance=_distance(profile, total, 1 / count, weight=0.5, most=1 - 1 / count),
        wasserstein=_means(measurements.wasserstein, total, (0, count)),
        mirror_error=mean_interval(measurements.mirror_error, total, (0, np.inf)),
        mirror_disagreement=mean_interval(measurements.mirror_disagreement, total, (0, 1)),
        decided_by=decided_by,
        classes=classes,
        unjudged_classes=found.unjudged,
        different=found.different,
        needed=_needed(found) if verdict == "inconclusive" else None,
        by_volume=_by_volume(measurements, population, tolerances),
        answer_tolerance=tolerances.answer_tolerance,
        mismatch_tolerance=tolerances.mismatch_tolerance,
        judged_share=tolerances.judged_share,
        judged_class=tolerances.judged_class,
        **overall,
    )


def _figures(
    evidence: Sequence[Evidence], number: int | None, slices: int, different: float | None
) -> dict[str, Any]:
    """Return the figures of a class, or of all predicted pixels, by the names of ``ClassFigures``."""
    unknown = (PairBias(math.nan, math.nan, math.nan, judged=False, state="not judged"),) * (slices // 2)
    found: dict[str, Any] = {"pairs": unknown, "reliance": unknown}
    found |= {"answer_change": NO_ANSWER, "mirror_mismatch": NO_MISMATCH}
    tests = [item for item in evidence if item.question != "use"]
    comparisons = max(sum(int((item.judged & item.decides).sum()) for item in tests), 1)
    for item in evidence:
        chosen = [index for index, key in enumerate(item.keys) if key.class_number == number]
        if not chosen:
            continue
        figures = _as_figures(item, chosen, comparisons, different)
        if item.question == "answer":
            of: AnswerKind = "scores" if item.root else "classes"
            found["answer_change"] = AnswerChange(*figures[0], of=of, class_number=number)
        elif item.question == "use":
            pairs = tuple(Figure(*figure) for figure in figures[1:]) if number is None else ()
            found["mirror_mismatch"] = Mismatch(*figures[0], pairs=pairs)
        else:
            name = "pairs" if item.question == "saliency" else "reliance"
            found[name] = tuple(PairBias(*figure) for figure in figures)
    return found


RANGES = {"saliency": (-1.0, 1.0), "reliance": (-1.0, 1.0), "use": (0.0, 1.0)}


def _as_figures(
    item: Evidence, chosen: Sequence[int], comparisons: int, different: float | None
) -> list[tuple[float, float, float, bool, State]]:
    """Return the fields of some figures of a question; 0 where all windows read equal their mirrors."""
    states, low, high = item.states(comparisons), *item.bounds()
    estimate = item.estimate
    if different is not None:
        state: State = "within" if different < LARGEST_DIFFERENT else "open"
        states = [state if judged else "not judged" for judged in item.judged]
        estimate = low = high = np.zeros(len(states))
    low, high = np.clip((low, high), *RANGES.get(item.question, (0.0, np.inf if item.root else 1.0)))
    return [
        (float(estimate[k]), float(low[k]), float(high[k]), bool(item.judged[k]), states[k]) for k in chosen
    ]


def _needed(found: Questions) -> int | None:
    """Return how many windows would settle the open figures: one that seems beyond is enough, else all have to be within."""
    if found.different is not None:
        return FIRST_LOOKS[1]
    tests = [item for item in found.evidence if item.question != "use"]
    counts = [count for item in tests if (count := item.needed()) is not None]
    return max(counts, default=None)


def _by_volume(
    measured: Measurements, population: Sequence[int], tolerances: Tolerances
) -> tuple[VolumeFigures, ...]:
    """Return the figures of each volume of several, from the windows that were read of it."""

    def plain(figure: Interval) -> Interval:
        return Interval(figure.estimate, figure.low, figure.high)

    found = []
    for volume, windows in enumerate(population if len(population) > 1 else ()):
        part = measured.at(measured.volume == volume)
        if len(part):
            of = summarize(part, [windows], tolerances)
            pairs, reliance = tuple(map(plain, of.pairs)), tuple(map(plain, of.reliance))
            answer, use = plain(of.answer_change), plain(of.mirror_mismatch)
            found.append(VolumeFigures(volume, len(part), pairs, reliance, answer, use))
    return tuple(found)


def _differences(shares: Floats) -> Floats:
    left, right = halves(shares)
    return right - left


def _means(values: Floats, population: int, bounds: tuple[float, float]) -> tuple[Interval, ...]:
    return tuple(mean_interval(column, population, bounds) for column in values.T)


def _distance(values: Floats, population: int, target: float, weight: float, most: float) -> Interval:
    """Return the interval of a weighted sum of distances between means and a target, where the sum is at most ``most``.

    With a confidence of 95 % all simultaneous intervals of the signed means hold; the sum then lies between those of
    the smallest and of the largest distances that they admit. Unlike an interval of the sum itself, this is valid
    near 0, where a sum of absolute values is far from normal; elsewhere it is wider than necessary.
    """
    known = np.asarray(~np.isnan(values).any(axis=1))
    if not known.any():
        return UNKNOWN
    fit = fit_ratios(np.where(known[:, None], values, 0), np.ones_like(values) * known[:, None], population)
    lower, upper = fit.bounds(comparisons=max(values.shape[1], 1))
    size, half = np.abs(fit.estimate - target), np.maximum(upper - fit.estimate, fit.estimate - lower)
    low, high = np.maximum(size - half, 0).sum(), min((size + half).sum(), max(most / weight, size.sum()))
    return Interval(weight * float(size.sum()), weight * float(low), weight * float(high))
