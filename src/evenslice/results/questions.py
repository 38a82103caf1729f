"""The evidence on the four questions, from the measurements of an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import stdtrit

from evenslice.results.biases import halves, model_part, pair_bias
from evenslice.results.intervals import fit_ratios, unseen_part
from evenslice.results.tolerances import least_attention
from evenslice.results.verdicts import Evidence, Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.results.measurements import Measurements
    from evenslice.results.tolerances import Tolerances

    Floats = NDArray[np.float64]

__all__ = ["AnswerKind", "Questions", "answer_kind", "ask", "different_part"]

AnswerKind = Literal["classes", "scores", "unknown"]


@dataclass(frozen=True)
class Questions:
    """The evidence on the questions that were asked, and the classes that it is about.

    Attributes:
        evidence: on saliency, reliance, answer and use, as far as asked.
        judged: the numbers of the judged classes.
        unjudged: those of the other classes in the answers.
        pixels: (C,) the part of the pixels in each class.
        different: the part of the windows that may differ from their mirrors; None if some of those read do.
    """

    evidence: tuple[Evidence, ...]
    judged: tuple[int, ...]
    unjudged: tuple[int, ...]
    pixels: Floats
    different: float | None


@dataclass(frozen=True)
class _Classes:
    """Which classes are judged, and which of them may decide for "biased"; (C,) each."""

    pixels: Floats
    judged: NDArray[np.bool_]
    decides: NDArray[np.bool_]


def ask(measured: Measurements, population: int, tolerances: Tolerances) -> Questions:
    """Return the evidence that windows give on each question; none for windows of one slice.

    Args:
        measured: those of a random sample of the windows.
        population: number of all windows.
        tolerances: what counts as fair.
    """
    classes = _judge_classes(measured, population, tolerances)
    numbers = tuple(np.flatnonzero(classes.judged).tolist())
    unjudged = tuple(np.flatnonzero((classes.pixels > 0) & ~classes.judged).tolist())
    # One class that is everywhere has the figures of all pixels.
    groups = (0, *(number + 1 for number in numbers)) if (classes.pixels > 0).sum() > 1 else (0,)
    if not measured.explained[:, 0].any() and numbers:
        groups = tuple(number + 1 for number in numbers)  # classes that overlap have no figure over all
    decides = np.array([group == 0 or bool(classes.decides[group - 1]) for group in groups])
    found: list[Evidence] = []
    if measured.slices > 1:
        saliency = _saliency(measured, population, tolerances, groups, decides)
        reliance = _reliance(measured, population, tolerances, groups, decides)
        answer = _answer(measured, population, tolerances, numbers, classes.decides)
        use = _use(measured, population, tolerances, groups, saliency or reliance)
        found = [item for item in (saliency, reliance, answer, use) if item is not None]
    return Questions(
        evidence=tuple(found),
        judged=numbers,
        unjudged=unjudged,
        pixels=classes.pixels,
        different=different_part(measured, population),
    )


def different_part(measured: Measurements, population: int) -> float | None:
    """Return the part of all windows that may differ from their mirrors, with 95 % confidence; None if some read do."""
    if not measured.equal.all() or (measured.own_mirror == 1).all():  # then nothing tells
        return None
    return unseen_part(float(len(measured)), len(measured), population, 0.05)


def answer_kind(measured: Measurements) -> AnswerKind:
    """Return what C compares: the predicted "classes", or the "scores", the numbers that are explained.

    Where one class is predicted everywhere, it says nothing about the order, and its scores are compared.
    """
    if np.isnan(measured.power).all():
        return "classes"
    tell = measured.own_mirror != 1
    return "classes" if (measured.union[tell].sum(axis=0) > 0).sum() > 1 else "scores"


def _judge_classes(measured: Measurements, population: int, tolerances: Tolerances) -> _Classes:
    """Tell which classes are judged: those that may cover the judged part of the pixels, and the two largest."""
    count = measured.classes
    if not count:
        nothing = np.zeros(0)
        return _Classes(nothing, nothing.astype(bool), nothing.astype(bool))
    # Student's intervals: those of the bootstrap have no end for a class that few windows have.
    read, pixels = len(measured), measured.pixels.mean(axis=0)
    left = max(0.0, 1 - read / population) / max(read, 1)
    error = np.sqrt(measured.pixels.var(axis=0, ddof=1) * left) if read > 1 else np.full(count, np.inf)
    half = -stdtrit(max(read - 1, 1), 0.025) * error
    low, high, seen = pixels - half, pixels + half, pixels > 0
    largest = np.zeros(count, bool)
    largest[np.argsort(-pixels, kind="stable")[:2]] = True
    surely = largest & ((high[None, :] > low[:, None]).sum(axis=1) <= 2)  # one of the others, and itself
    least = tolerances.judged_class
    return _Classes(pixels, seen & (largest | (high >= least)), seen & (surely | (low >= least)))


def _saliency(
    measured: Measurements,
    population: int,
    tolerances: Tolerances,
    groups: tuple[int, ...],
    decides: NDArray[np.bool_],
) -> Evidence | None:
    """Return the pair biases of the saliency, means over the windows that have any; None if none has."""
    parts, wholes, outer = [], [], []
    for group in groups:
        sums = measured.saliency[:, :, group]
        known = (sums.sum(axis=-1) > 0).all(axis=1)
        bias = model_part(pair_bias(sums[:, 0]), pair_bias(sums[:, 1]))
        shares = sums / np.where(known[:, None, None], sums.sum(axis=-1, keepdims=True), 1)
        left, right = halves(shares.mean(axis=1))
        parts.append(np.where(known[:, None], bias, 0))
        wholes.append(np.broadcast_to(known[:, None], bias.shape).astype(float))
        outer.append((left + right)[known].mean(axis=0) if known.any() else np.zeros(bias.shape[1]))
    if not any(whole.any() for whole in wholes):
        return None
    pairs = parts[0].shape[1]
    material = np.stack(outer) >= least_attention(pairs, tolerances.judged_share)
    return _biases("saliency", groups, parts, wholes, material, decides, population, tolerances)


def _reliance(
    measured: Measurements,
    population: int,
    tolerances: Tolerances,
    groups: tuple[int, ...],
    decides: NDArray[np.bool_],
) -> Evidence:
    """Return the pair biases of the reliance: ratios of sums over windows."""
    parts, wholes, material = [], [], []
    for group in groups:
        sums = measured.reliance[:, :, group].sum(axis=1)
        left, right = halves(sums)
        parts.append(right - left)
        wholes.append(right + left)
        least = 2 * tolerances.judged_share * measured.explained[:, group].sum()
        total = (right + left).sum(axis=0)
        material.append((total >= least) & (total > 0))
    return _biases("reliance", groups, parts, wholes, np.stack(material), decides, population, tolerances)


def _biases(
    question: Literal["saliency", "reliance"],
    groups: tuple[int, ...],
    parts: list[Floats],
    wholes: list[Floats],
    material: NDArray[np.bool_],
    decides: NDArray[np.bool_],
    population: int,
    tolerances: Tolerances,
) -> Evidence:
    pairs = parts[0].shape[1]
    return Evidence(
        question=question,
        keys=tuple(Key(_number(group), offset) for group in groups for offset in range(1, pairs + 1)),
        fit=fit_ratios(
            np.concatenate(parts, axis=1),
            np.concatenate(wholes, axis=1),
            population,
            scale="linear" if question == "saliency" else "atanh",
        ),
        tolerance=tolerances.tolerance,
        judged=material.ravel(),
        decides=np.repeat(decides, pairs),
    )


def _answer(
    measured: Measurements,
    population: int,
    tolerances: Tolerances,
    numbers: tuple[int, ...],
    decides: NDArray[np.bool_],
) -> Evidence | None:
    """Return the part C of the answer that changes when a window is reversed; None if no window tells.

    Of a class, the pixels that only one of the answers to window and mirror puts into it, over those that either does:
    1 - IoU. Of scores, the RMS of f(x) - f(x') over sqrt(2) times the standard deviation of f(x), which is 1 for unrelated
    answers.
    """
    if answer_kind(measured) == "classes":
        chosen = [number for number in numbers if measured.union[:, number].any()]
        if not chosen:
            return None
        return Evidence(
            question="answer",
            keys=tuple(Key(number) for number in chosen),
            fit=fit_ratios(measured.changed[:, chosen], measured.union[:, chosen], population, scale="log"),
            tolerance=tolerances.answer_tolerance,
            judged=np.ones(len(chosen), bool),
            decides=decides[chosen],
        )
    tell = (measured.own_mirror != 1) & ~np.isnan(measured.change)
    change, spread = np.where(tell, measured.change, 0), 2 * _variance(measured, tell)
    if not spread.any():
        return None  # what changes varies over no pixel, so there is nothing to hold the change against
    return Evidence(
        question="answer",
        keys=(Key(),),
        fit=fit_ratios(change[:, None], spread[:, None], population, scale="log"),
        tolerance=tolerances.answer_tolerance,
        judged=np.ones(1, bool),
        decides=np.ones(1, bool),
        root=True,
    )


def _variance(measured: Measurements, tell: NDArray[np.bool_]) -> Floats:
    """Return for each window the variance of what is explained: over its pixels, or over windows if it has none."""
    level = measured.level[tell]
    if not len(level):
        return np.zeros(len(measured))
    mean, found = level.mean(axis=0), np.zeros(len(measured))
    found[tell] = np.maximum(measured.power[tell] + np.mean(mean**2 - 2 * mean * level, axis=1), 0)
    return found


def _use(
    measured: Measurements,
    population: int,
    tolerances: Tolerances,
    groups: tuple[int, ...],
    biases: Evidence,
) -> Evidence | None:
    """Return the mirror mismatch E of each class, over all outer slices and for each judged pair; None if no window tells."""
    if not measured.outer.any():
        return None
    parts, wholes, keys = [], [], []
    for group in groups:
        part, whole = measured.mismatch[:, group], measured.outer[:, group]
        parts.append(np.column_stack([part.sum(axis=1), part]))
        wholes.append(np.column_stack([whole.sum(axis=1), whole]))
        keys += [Key(_number(group)), *(Key(_number(group), offset + 1) for offset in range(part.shape[1]))]
    part, whole = np.concatenate(parts, axis=1), np.concatenate(wholes, axis=1)
    judged_pairs = biases.judged.reshape(len(groups), -1)
    judged = np.column_stack([np.ones(len(groups), bool), judged_pairs]).ravel() & (whole.sum(axis=0) > 0)
    return Evidence(
        question="use",
        keys=tuple(keys),
        fit=fit_ratios(part, whole, population, scale="log"),
        tolerance=tolerances.mismatch_tolerance,
        judged=judged,
        decides=np.zeros(len(keys), bool),
    )


def _number(group: int) -> int | None:
    return group - 1 if group else None
