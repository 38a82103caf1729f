"""The four questions of an audit, the evidence that its windows give on each, and the verdict. docs/statistics.md explains it.

An audit asks: would a map of saliency favour a side, does the network rely on one, does the order of slices change its
answers, and are opposite slices used in the same way, place by place? ``ask`` collects the evidence, ``judge`` decides from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from evenslice.results.intervals import fit_ratios, unseen_part
from evenslice.results.measurements import halves, model_part, pair_bias
from evenslice.results.tolerances import least_attention

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from evenslice.results.intervals import Ratios
    from evenslice.results.measurements import Measurements
    from evenslice.results.tolerances import Tolerances

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

Verdict = Literal["symmetric", "balanced", "biased", "inconclusive", "not applicable"]
Question = Literal["saliency", "reliance", "answer", "use"]
State = Literal["within", "beyond", "open", "not judged", "unknown"]
AnswerKind = Literal["classes", "scores", "unknown"]

# Looks are taken again and again, and any of several figures decides "biased": with these levels, wrong verdicts are at most
# 5 % over all looks and figures (benchmarks/calibration.py).
BEYOND_LEVEL = 0.95
WITHIN_LEVEL = 0.995
LARGEST_DIFFERENT = 0.05
"""Part of the windows that may differ from their mirrors, at 95 % confidence, where all that were read are equal."""


class Key(NamedTuple):
    """What a figure is about: a class, or all predicted pixels; a pair of offsets -k and k, or all."""

    class_number: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Decision:
    """A figure that decided a verdict.

    Attributes:
        question: "saliency", "reliance", "answer", "use", or "attention" in audits of version 0.2.
        class_number: the class whose figure decided; None for all predicted pixels.
        offset: k of the pair that decided; None where no single pair did.
    """

    question: str
    class_number: int | None = field(default=None, metadata={"key": "class"})
    offset: int | None = None


@dataclass(frozen=True)
class Evidence:
    """What windows say about a question: q figures with one tolerance.

    Attributes:
        question: which.
        keys: what each figure is about.
        fit: the figures, or their squares.
        tolerance: the largest absolute value that counts as fair.
        judged: (q,) which figures count.
        decides: (q,) which of them may decide for "biased".
        root: whether the figures are the square roots of what was fitted.
    """

    question: Question
    keys: tuple[Key, ...]
    fit: Ratios
    tolerance: float
    judged: Flags
    decides: Flags
    root: bool = False

    @property
    def estimate(self) -> Floats:
        """The figures (q,)."""
        return np.sqrt(self.fit.estimate) if self.root else self.fit.estimate

    def bounds(self, level: float = 0.95, comparisons: int = 1) -> tuple[Floats, Floats]:
        """Return the bounds (q,) of the figures; see ``Ratios.bounds``."""
        low, high = self.fit.bounds(level, comparisons)
        return (np.sqrt(low), np.sqrt(high)) if self.root else (low, high)

    def beyond(self, comparisons: int = 1) -> Flags:
        """Return which figures (q,) are beyond the tolerance with their whole intervals."""
        low, high = self.bounds(BEYOND_LEVEL, comparisons)
        return np.asarray(((low > self.tolerance) | (high < -self.tolerance)) & self.judged)

    def within(self) -> Flags:
        """Return which figures (q,) are within the tolerance with their whole intervals."""
        low, high = self.bounds(WITHIN_LEVEL)
        return np.asarray((low >= -self.tolerance) & (high <= self.tolerance) & self.judged)

    def states(self, comparisons: int = 1) -> list[State]:
        """Return the state of each figure."""
        beyond, within = self.beyond(comparisons), self.within()
        return [
            "not judged" if not judged else "beyond" if out else "within" if inside else "open"
            for judged, out, inside in zip(self.judged, beyond, within, strict=True)
        ]

    def excess(self, chosen: Flags) -> int:
        """Return the chosen figure that is most certainly beyond the tolerance, or else nearest to it."""
        low, high = self.bounds()
        least = np.where(self.estimate < 0, -high, low)
        least = np.where(np.isfinite(least), least, -np.inf)
        ranked = np.where(chosen, least, -np.inf)
        ties = np.where(ranked == ranked.max(), np.nan_to_num(np.abs(self.estimate)), -1.0)
        return int(np.where(chosen, ties, -2.0).argmax())

    def decision(self, chosen: Flags) -> Decision:
        """Return the decision of the chosen figure that is most certainly beyond."""
        key = self.keys[self.excess(chosen)]
        return Decision(self.question, key.class_number, key.offset)

    def needed(self) -> int | None:
        """Return how many windows would settle the open figures if they are what they seem; None if all are settled.

        Half-widths shrink with sqrt(1/n - 1/M) of n windows out of M.
        """
        still = self.judged & ~self.beyond() & ~self.within()
        if not still.any():
            return None
        low, high = self.bounds(WITHIN_LEVEL)
        read, population = self.fit.read, self.fit.population
        size = np.abs(self.estimate)
        gap = np.abs(size - self.tolerance)
        nearer = np.where((self.estimate < 0) == (size > self.tolerance), high, low)
        reach = np.abs(nearer - self.estimate)
        with np.errstate(all="ignore"):
            left = np.maximum(1 / read - 1 / population, 0) * np.square(gap / reach)
            counts = np.where(np.isfinite(reach) & (gap > 0), 1 / (left + 1 / population), population)
        return int(min(np.ceil(counts[still].max()), population))


def judge(evidence: Sequence[Evidence], different: float | None) -> tuple[Verdict, tuple[Decision, ...]]:
    """Return the verdict and what decided it.

    A network is "biased" if any judged bias or answer change is beyond its tolerance: one of many figures decides, so their
    intervals hold simultaneously. It is "symmetric" if all are within, uses included, and "balanced" without the uses: all
    have to agree, so that each may be wrong in 5 % of audits without the verdict being so more often (Berger 1982,
    doi:10.1080/00401706.1982.10487790).

    Args:
        evidence: on each question that was asked.
        different: the part of the windows that may differ from their mirrors; None if some of those read do.

    Returns:
        The verdict, and the decision of each question that decided it, or of each that is open.
    """
    if not evidence:
        return "not applicable", ()
    if different is not None:
        return ("symmetric", ()) if different < LARGEST_DIFFERENT else ("inconclusive", ())
    tests = [item for item in evidence if item.question != "use"]
    comparisons = max(sum(int((item.judged & item.decides).sum()) for item in tests), 1)
    beyond = _decisions((item, item.beyond(comparisons) & item.decides) for item in tests)
    if beyond:
        return "biased", beyond
    still = _decisions((item, item.judged & ~item.within()) for item in tests)
    # Where all windows are their own mirrors, nothing is known about the answer.
    if still or not any(item.question == "answer" for item in tests):
        return "inconclusive", still
    uses = [item for item in evidence if item.question == "use"]
    unlike = _decisions((item, item.judged & ~item.within()) for item in uses)
    return ("symmetric", ()) if uses and not unlike else ("balanced", unlike)


def _decisions(chosen: Iterable[tuple[Evidence, Flags]]) -> tuple[Decision, ...]:
    """Return the decision of each question that has chosen figures."""
    return tuple(item.decision(which) for item, which in chosen if which.any())


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


def ask(measured: Measurements, population: int, tolerances: Tolerances) -> Questions:
    """Return the evidence that windows give on each question; none for windows of one slice.

    Args:
        measured: those of a random sample of the windows.
        population: number of all windows.
        tolerances: what counts as fair.
    """
    pixels, judged, decides = _judge_classes(measured, population, tolerances)
    numbers = tuple(np.flatnonzero(judged).tolist())
    # One class that is everywhere has the figures of all pixels.
    groups = (0, *(number + 1 for number in numbers)) if (pixels > 0).sum() > 1 else (0,)
    if not measured.explained[:, 0].any() and numbers:
        groups = tuple(number + 1 for number in numbers)  # classes that overlap have no figure over all
    found: list[Evidence | None] = []
    if measured.slices > 1:
        sample = _Sample(measured, population, tolerances, groups, numbers, decides)
        saliency, reliance = sample.saliency(), sample.reliance()
        found = [saliency, reliance, sample.answer(), sample.use(saliency or reliance)]
    return Questions(
        evidence=tuple(item for item in found if item is not None),
        judged=numbers,
        unjudged=tuple(np.flatnonzero((pixels > 0) & ~judged).tolist()),
        pixels=pixels,
        different=_different_part(measured, population),
    )


def _different_part(measured: Measurements, population: int) -> float | None:
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


def _judge_classes(
    measured: Measurements, population: int, tolerances: Tolerances
) -> tuple[Floats, Flags, Flags]:
    """Return the part of the pixels in each class, which classes are judged, and which may decide for "biased"; (C,) each.

    Judged are those that may cover the judged part of the pixels, and the two largest.
    """
    count = measured.classes
    if not count:
        return np.zeros(0), np.zeros(0, bool), np.zeros(0, bool)
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
    return pixels, seen & (largest | (high >= least)), seen & (surely | (low >= least))


@dataclass(frozen=True)
class _Sample:
    """A sample of windows that is asked.

    Attributes:
        measured: the windows.
        population: number of all windows.
        tolerances: what counts as fair.
        groups: that have figures: 0 for all predicted pixels, c + 1 for those of the class c.
        numbers: of the judged classes.
        decides: (C,) which classes may decide for "biased".
    """

    measured: Measurements
    population: int
    tolerances: Tolerances
    groups: tuple[int, ...]
    numbers: tuple[int, ...]
    decides: Flags

    def saliency(self) -> Evidence | None:
        """Return the pair biases of the saliency, means over the windows that have any; None if none has."""
        parts, wholes, outer = [], [], []
        for group in self.groups:
            sums = self.measured.saliency[:, :, group]
            known = (sums.sum(axis=-1) > 0).all(axis=1)
            bias = model_part(pair_bias(sums[:, 0]), pair_bias(sums[:, 1]))
            shares = sums / np.where(known[:, None, None], sums.sum(axis=-1, keepdims=True), 1)
            left, right = halves(shares.mean(axis=1))
            parts.append(np.where(known[:, None], bias, 0))
            wholes.append(np.broadcast_to(known[:, None], bias.shape).astype(float))
            outer.append((left + right)[known].mean(axis=0) if known.any() else np.zeros(bias.shape[1]))
        if not any(whole.any() for whole in wholes):
            return None
        material = np.stack(outer) >= least_attention(parts[0].shape[1], self.tolerances.judged_share)
        return self._biases("saliency", parts, wholes, material)

    def reliance(self) -> Evidence:
        """Return the pair biases of the reliance: ratios of sums over windows."""
        parts, wholes, material = [], [], []
        for group in self.groups:
            left, right = halves(self.measured.reliance[:, :, group].sum(axis=1))
            parts.append(right - left)
            wholes.append(right + left)
            least = 2 * self.tolerances.judged_share * self.measured.explained[:, group].sum()
            total = (right + left).sum(axis=0)
            material.append((total >= least) & (total > 0))
        return self._biases("reliance", parts, wholes, np.stack(material))

    def _biases(
        self,
        question: Literal["saliency", "reliance"],
        parts: list[Floats],
        wholes: list[Floats],
        material: Flags,
    ) -> Evidence:
        pairs = parts[0].shape[1]
        scale: Literal["linear", "atanh"] = "linear" if question == "saliency" else "atanh"
        decides = [group == 0 or bool(self.decides[group - 1]) for group in self.groups]
        return Evidence(
            question=question,
            keys=tuple(Key(_number(group), k) for group in self.groups for k in range(1, pairs + 1)),
            fit=fit_ratios(np.hstack(parts), np.hstack(wholes), self.population, scale=scale),
            tolerance=self.tolerances.tolerance,
            judged=material.ravel(),
            decides=np.repeat(decides, pairs),
        )

    def answer(self) -> Evidence | None:
        """Return the part C of the answer that changes when a window is reversed; None if no window tells.

        Of a class, the pixels that only one of the answers to window and mirror puts into it, over those that either does:
        1 - IoU. Of scores, the RMS of f(x) - f(x') over sqrt(2) times the standard deviation of f(x), which is 1 for
        unrelated answers.
        """
        measured = self.measured
        of_classes, chosen = answer_kind(measured) == "classes", list[int]()
        if of_classes:
            chosen = [number for number in self.numbers if measured.union[:, number].any()]
            part, whole = measured.changed[:, chosen], measured.union[:, chosen]
        else:
            tell = (measured.own_mirror != 1) & ~np.isnan(measured.change)
            part = np.where(tell, measured.change, 0)[:, None]
            whole = 2 * _variance(measured, tell)[:, None]
        if not whole.any():
            return None  # or the scores vary over no pixel, and nothing is there to hold their change against
        return Evidence(
            question="answer",
            keys=tuple(map(Key, chosen)) if of_classes else (Key(),),
            fit=fit_ratios(part, whole, self.population, scale="log"),
            tolerance=self.tolerances.answer_tolerance,
            judged=np.ones(whole.shape[1], bool),
            decides=self.decides[chosen] if of_classes else np.ones(1, bool),
            root=not of_classes,
        )

    def use(self, biases: Evidence) -> Evidence | None:
        """Return the mirror mismatch E of each class, over all outer slices and for each judged pair; None if no window tells."""
        if not self.measured.outer.any():
            return None
        parts, wholes, keys = [], [], []
        for group in self.groups:
            part, whole = self.measured.mismatch[:, group], self.measured.outer[:, group]
            parts.append(np.column_stack([part.sum(axis=1), part]))
            wholes.append(np.column_stack([whole.sum(axis=1), whole]))
            keys += [Key(_number(group), k or None) for k in range(part.shape[1] + 1)]
        whole = np.hstack(wholes)
        count = len(self.groups)
        pairs = np.column_stack([np.ones(count, bool), biases.judged.reshape(count, -1)])
        return Evidence(
            question="use",
            keys=tuple(keys),
            fit=fit_ratios(np.hstack(parts), whole, self.population, scale="log"),
            tolerance=self.tolerances.mismatch_tolerance,
            judged=pairs.ravel() & (whole.sum(axis=0) > 0),
            decides=np.zeros(len(keys), bool),
        )


def _variance(measured: Measurements, tell: Flags) -> Floats:
    """Return for each window the variance of what is explained: over its pixels, or over windows if it has none."""
    level = measured.level[tell]
    if not len(level):
        return np.zeros(len(measured))
    mean, found = level.mean(axis=0), np.zeros(len(measured))
    found[tell] = np.maximum(measured.power[tell] + np.mean(mean**2 - 2 * mean * level, axis=1), 0)
    return found


def _number(group: int) -> int | None:
    return group - 1 if group else None
