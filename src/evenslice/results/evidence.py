"""The evidence behind a verdict: attention by each method and class, answer and use, from the measurements of an audit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evenslice.results.biases import halves, model_part, pair_bias
from evenslice.results.intervals import fit_means, fit_ratio, fit_votes, mean_interval
from evenslice.results.output_changes import SAME_OUTPUT
from evenslice.results.thresholds import least_attention
from evenslice.results.verdicts import EXACT, AnswerKind, Decision, Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.results.intervals import Interval, MeanFit
    from evenslice.results.measurements import Measurements
    from evenslice.results.subsets import SubsetMeasurements
    from evenslice.results.thresholds import Thresholds

    Floats = NDArray[np.float64]

__all__ = [
    "ClassEvidence",
    "MethodNames",
    "answer_evidence",
    "answer_kind",
    "are_votes",
    "class_evidence",
    "count_attended",
    "count_slices",
    "difference_of_methods",
    "disagreement_interval",
    "first_evidence",
    "second_evidence",
    "use_evidence",
]

SMALLEST_CLASS = 0.01
"""Part of the pixels that a class has to cover in order to be looked at by itself."""


@dataclass(frozen=True)
class MethodNames:
    """The attribution methods of an audit: of all windows, of the second opinion, and of the mirror mismatch."""

    first: str = "gradient"
    second: str | None = "occlusion"
    use: str = "gradient"


@dataclass(frozen=True)
class ClassEvidence:
    """The attention of one class: the class, the part of the pixels that have it, and the windows seen."""

    class_number: int
    pixels: float
    windows: int
    evidence: Evidence


def first_evidence(measured: Measurements, thresholds: Thresholds, method: str) -> Evidence:
    """Return the attention of the whole output by the first method; all windows need shares."""
    places = measured.volume, measured.position[:, 0]
    return _attention(
        places, measured.shares, measured.mirrored_shares, thresholds, Decision("attention", method)
    )


def second_evidence(
    measured: Measurements, subset: SubsetMeasurements, thresholds: Thresholds, method: str | None
) -> Evidence | None:
    """Return the attention of the whole output by the second method; None without windows that have it."""
    places, kept = _places(measured, subset), _known(subset.second_shares, subset.mirrored_second_shares)
    if not kept.any() or subset.second_shares.shape[1] == 1:
        return None
    shares, mirrored = subset.second_shares[kept], subset.mirrored_second_shares[kept]
    volume, z = places
    return _attention((volume[kept], z[kept]), shares, mirrored, thresholds, Decision("attention", method))


def class_evidence(
    measured: Measurements, subset: SubsetMeasurements, thresholds: Thresholds, method: str
) -> list[ClassEvidence]:
    """Return the attention of each class that covers at least 1 % of the pixels.

    That of a class that no window has told about is unknown. A class whose score depends on no slice in any window, such
    as a background with a constant logit, has no attention and is left out. A network that predicts one class only has no
    other attention than that of its whole output.
    """
    volume, z = _places(measured, subset)
    pixels = subset.class_pixels.mean(axis=0) if len(subset.window) else np.empty(0)
    found = []
    for number in np.flatnonzero(pixels >= SMALLEST_CLASS).tolist():
        shares, mirrored = subset.class_shares[:, number], subset.mirrored_class_shares[:, number]
        kept = _attended(shares, mirrored)
        if not kept.any() and not np.isnan(shares).all():
            continue
        decision = Decision("attention", method, number)
        item = _attention((volume[kept], z[kept]), shares[kept], mirrored[kept], thresholds, decision)
        found.append(ClassEvidence(number, float(pixels[number]), int(kept.sum()), item))
    return found


def answer_evidence(measured: Measurements, thresholds: Thresholds) -> Evidence | None:
    """Return the part C of the answer that changes when a window is reversed; None if no window tells.

    Windows that are their own mirrors do not: their answer is the same whatever the network makes of the order.

    For "classes" (see ``answer_kind``), C is the pixels whose predicted class changes over those that are foreground in
    either answer, pooled over the windows of a volume: 1 - IoU of the two answers if there is one foreground class. (Of
    several volumes, the changed pixels of a window and its foreground are averaged over volumes of equal weight.) For
    "scores", it is the RMS of f(x) - f(x') over sqrt(2) times the standard deviation of f(x), over the pixels of a map or
    else over the windows of a volume, which is 1 for unrelated answers.
    """
    volume, z = measured.volume, measured.position[:, 0]
    root = answer_kind(measured) == "scores"
    part, whole = measured.mirror_disagreement, measured.foreground
    if root:
        part, whole = measured.change, 2 * _variance(measured)
    part = np.where(measured.own_mirror == 1, np.nan, part)
    known, telling = ~np.isnan(part + whole), whole > 0
    if not known.any():
        return None
    if not telling[known].any() and part[known].any():
        return None  # what changes varies over no pixel, so there is nothing to hold the change against
    votes = not root and are_votes(measured)
    fit = (
        fit_votes(part[:, None], z, volume)
        if votes
        else fit_ratio(part[:, None], whole[:, None], z, volume, root=root)
    )
    if not root and not votes and not part[known].any() and not _same_scores(measured, known):
        fit = replace(fit, unseen=np.array([True]))
    each = part[known & telling] / whole[known & telling]
    spread = float(np.ptp(np.sqrt(each) if root else each)) if len(each) else 0.0
    alike = not votes and spread < EXACT and (root or bool(telling[known].all()))
    return Evidence(
        decision=Decision("answer"),
        fit=fit,
        tolerance=thresholds.answer,
        judged=(True,),
        slices=_count_slices(volume[known & telling], z[known & telling]),
        exact=alike and int(known.sum()) > 1,
    )


def _same_scores(measured: Measurements, known: NDArray[np.bool_]) -> bool:
    """Return whether the output has scores, which are those of the mirror in all windows known, so that no class can change."""
    scores = ~np.isnan(measured.power[known])
    return bool(scores.all() and (measured.mirror_error[known] <= SAME_OUTPUT).all())


def answer_kind(measured: Measurements) -> AnswerKind:
    """Return what C compares: the predicted "classes", or the "scores", the numbers of the output.

    Where all pixels of all windows have one class, it says nothing about the order: the output may be that of a regression
    with one channel, whose numbers are always positive, or one of a network that finds nothing.
    """
    if np.isnan(measured.power).all():
        return "classes"
    known = ~np.isnan(measured.lowest_class) & (measured.own_mirror != 1)
    if not known.any():
        return "scores"
    return "classes" if measured.lowest_class[known].min() < measured.highest_class[known].max() else "scores"


def disagreement_interval(measured: Measurements) -> Interval:
    """Return the mean part of the predicted classes that change when a window is reversed."""
    volume, z = measured.volume, measured.position[:, 0]
    if are_votes(measured):
        return fit_votes(measured.mirror_disagreement[:, None], z, volume).intervals(bounds=(0, 1))[0]
    return mean_interval(measured.mirror_disagreement, z, volume, bounds=(0, 1))


def are_votes(measured: Measurements) -> bool:
    """Return whether each window has one class, so that it says only yes or no about a change.

    Outputs of one number or one class a window have a level, and vary over no pixels.
    """
    one = ~np.isnan(measured.level) if np.isnan(measured.power).all() else np.nan_to_num(measured.level)
    part = measured.mirror_disagreement[~np.isnan(measured.mirror_disagreement)]
    return bool(one.any() and len(part) and np.isin(part, (0, 1)).all())


def use_evidence(
    measured: Measurements, thresholds: Thresholds, method: str, attention: Evidence
) -> Evidence | None:
    """Return the mirror mismatch E: over all outer slices first, then for each judged pair; None if no window tells."""
    volume, z = measured.volume, measured.position[:, 0]
    known = ~np.isnan(measured.mismatch).any(axis=1)
    if not known.any() or not measured.mismatch.shape[1]:
        return None
    part, whole = (
        np.column_stack([values.sum(axis=1), values]) for values in (measured.mismatch, measured.outer)
    )
    return Evidence(
        decision=Decision("use", method),
        fit=fit_ratio(part, whole, z, volume),
        tolerance=thresholds.use,
        judged=(True, *attention.judged),
        slices=_count_slices(volume[known], z[known]),
        exact=True,
    )


def difference_of_methods(measured: Measurements, subset: SubsetMeasurements) -> MeanFit:
    """Return the pair biases by the second method minus those by the first, on the windows that both have measured."""
    volume, z = _places(measured, subset)
    given = subset.first_shares, subset.mirrored_first_shares
    other = subset.second_shares, subset.mirrored_second_shares
    kept = _known(*given, *other)
    first, second = (model_part(*(pair_bias(part[kept]) for part in parts)) for parts in (given, other))
    return fit_means(second - first, z[kept], volume[kept])


def _attention(
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
    shares: Floats,
    mirrored: Floats,
    thresholds: Thresholds,
    decision: Decision,
) -> Evidence:
    """Return the evidence of pair biases measured on windows at places (volume, z)."""
    volume, z = places
    biases = model_part(pair_bias(shares), pair_bias(mirrored))
    left, right = halves(model_part(shares, mirrored))
    least = least_attention(left.shape[1], thresholds.judged)
    material = ~(fit_means(left + right, z, volume).estimate < least)  # unknown shares are judged, too
    spread = np.ptp(biases[:, material], axis=0) if len(biases) else np.empty(0)
    return Evidence(
        decision=decision,
        fit=fit_means(biases, z, volume),
        tolerance=thresholds.attention,
        judged=tuple(material.tolist()),
        slices=_count_slices(volume, z),
        exact=len(biases) > 1 and bool((spread < EXACT).all()),
    )


def _places(
    measured: Measurements, subset: SubsetMeasurements
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the volume and the z of each window of a subset."""
    return measured.volume[subset.window], measured.position[subset.window, 0]


def _attended(*shares: Floats) -> NDArray[np.bool_]:
    """Return which windows have all of these shares, with some attention to share."""
    return np.asarray(_known(*shares) & np.all([item.any(axis=1) for item in shares], axis=0))


def _known(*shares: Floats) -> NDArray[np.bool_]:
    """Return which windows have all of these shares."""
    return np.asarray(~np.isnan(sum(shares)).any(axis=1))


def count_slices(measured: Measurements) -> int:
    """Count the distinct slices of windows."""
    return _count_slices(measured.volume, measured.position[:, 0])


def count_attended(
    measured: Measurements, subset: SubsetMeasurements, *, second: bool, class_number: int | None = None
) -> int:
    """Count the distinct slices whose attention is known.

    Args:
        measured: of all windows.
        subset: of some of them.
        second: by the second method, not by the first.
        class_number: of this class alone.
    """
    volume, z = _places(measured, subset)
    if class_number is not None:
        known = _attended(subset.class_shares[:, class_number], subset.mirrored_class_shares[:, class_number])
    elif second:
        known = _known(subset.second_shares, subset.mirrored_second_shares)
    else:
        volume, z = measured.volume, measured.position[:, 0]
        known = _known(measured.shares, measured.mirrored_shares)
    return _count_slices(volume[known], z[known])


def _count_slices(volume: NDArray[np.int64], z: NDArray[np.int64]) -> int:
    """Count the distinct slices of windows."""
    return len(np.unique(np.stack([volume, z]), axis=1).T)


def _variance(measured: Measurements) -> Floats:
    """Return for each window the variance of the output: over its pixels, or over the windows of its volume.

    That over windows is known from two windows of a volume on. Windows that are their own mirrors, such as empty ones, tell
    nothing of the answer, so they do not count.
    """
    around = np.full(len(measured.volume), np.nan)
    known = ~np.isnan(measured.power) & ~np.isnan(measured.level).any(axis=1) & (measured.own_mirror != 1)
    over_windows = bool(measured.level[known].any())
    for one in np.unique(measured.volume[known]):
        here = known & (measured.volume == one)
        level = measured.level[here]
        mean = level.mean(axis=0)
        variance = measured.power[here] + np.mean(mean**2 - 2 * mean * level, axis=1)
        count = int(here.sum())
        unbiased = count / (count - 1) if count > 1 else np.nan
        around[here] = np.maximum(variance, 0) * (unbiased if over_windows else 1.0)
    return around
