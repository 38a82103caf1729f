"""The verdict of an audit, from what was found about attention, answer and use. docs/statistics.md explains it.

An audit asks three questions: do opposite slices get equal attention, does their order change the answer, and are they
used in the same way, place by place? ``judge`` decides from the evidence on each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from evenslice.results.intervals import FEW_SLICES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from evenslice.results.intervals import MeanFit

    Floats = NDArray[np.float64]

__all__ = [
    "AnswerKind",
    "Decision",
    "Evidence",
    "Question",
    "Verdict",
    "agreement",
    "judge",
]

Verdict = Literal["symmetric", "balanced", "biased", "inconclusive", "not applicable"]
Question = Literal["attention", "answer", "use"]
AnswerKind = Literal["classes", "scores", "unknown"]

BIASED_LEVEL = 0.95
# The 90 % intervals of equivalence are computed at 94 %: exact ones would be wrong in 5 % of audits of a network at the
# tolerance, and estimating the correlation would raise that above 5 % (benchmarks/calibration.py).
WITHIN_LEVEL = 0.94
WITHIN_LEVEL_OF_RATIOS = 0.97  # C and E, which are skewed
EXACT = 1e-4
"""Values of all windows that differ by less decide exactly, however few the windows."""


@dataclass(frozen=True)
class Decision:
    """What decided a verdict.

    Attributes:
        question: "attention", "answer" or "use".
        method: of attribution; None for the question of the answer.
        class_number: the class whose attention decided; None for the whole output.
        offset: k of the pair that decided; None where no single pair did.
    """

    question: Question
    method: str | None = None
    class_number: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Evidence:
    """What windows say about a question: q quantities with a tolerance each.

    Attributes:
        decision: what this evidence would decide.
        fit: the means of the quantities with their precision.
        tolerance: the largest absolute mean that counts as fair.
        judged: (q,) which quantities count.
        slices: number of distinct slices seen.
        exact: the windows agree up to rounding, so that few of them are enough.
    """

    decision: Decision
    fit: MeanFit
    tolerance: float
    judged: tuple[bool, ...]
    slices: int
    exact: bool

    @property
    def enough(self) -> bool:
        """Whether enough slices were seen to call a network balanced or biased."""
        return self.exact or self.slices >= FEW_SLICES

    def beyond(self, comparisons: int) -> NDArray[np.bool_]:
        """Return which quantities (q,) are beyond the tolerance with their whole intervals."""
        low, high = self.fit.bounds(BIASED_LEVEL, comparisons)
        outside = (low > self.tolerance) | (high < -self.tolerance)
        return np.asarray(outside & np.array(self.judged, dtype=bool))

    @property
    def within_level(self) -> float:
        """The confidence of the intervals that have to lie within the tolerance."""
        return WITHIN_LEVEL_OF_RATIOS if self.fit.positive else WITHIN_LEVEL

    def within(self) -> NDArray[np.bool_]:
        """Return which quantities (q,) are within the tolerance with their whole intervals, or not judged."""
        low, high = self.fit.bounds(self.within_level)
        inside = (low >= -self.tolerance) & (high <= self.tolerance)
        return np.asarray(inside | ~np.array(self.judged, dtype=bool))


def judge(
    attention: Sequence[Evidence], answer: Evidence | None, use: Evidence | None
) -> tuple[Verdict, Decision | None]:
    """Return the verdict and what decided it.

    A network is "biased" if any judged pair of any method and class, or the answer, is beyond its tolerance: one of
    many tests decides, so their intervals hold simultaneously. It is "symmetric" if it uses opposite slices in the same
    way, or "balanced" if all attention and the answer are within their tolerances: all tests have to agree, so each may
    be wrong in 5 % of audits without the verdict being so more often (Berger 1982, doi:10.1080/00401706.1982.10487790).

    Args:
        attention: the evidence on the pair biases, that of the first method on the whole output first.
        answer: that on C; None if it was not measured.
        use: that on E, over all pairs and for each judged one; None if it was not measured.

    Returns:
        The verdict; "inconclusive" with the first question that is open, "not applicable" without pairs.
    """
    if not attention or not len(attention[0].judged):
        return "not applicable", None
    tests = [*attention, *([answer] if answer is not None else [])]
    comparisons = sum(sum(item.judged) for item in tests)
    for item in tests:
        beyond = item.beyond(max(comparisons, 1))
        if item.enough and beyond.any():
            return "biased", _decision(item, beyond)
    same = answer is not None and bool(answer.within().all())
    if same and use is not None and use.within().all():
        return "symmetric", use.decision
    open_questions = list(_open(attention, answer))
    if not open_questions:
        return "balanced", attention[0].decision
    return "inconclusive", open_questions[0]


def agreement(first: Evidence, second: Evidence, difference: MeanFit) -> bool | None:
    """Return whether two methods agree about every pair that either judges; None if that is not settled.

    A pair of too little attention to be judged counts as fair; beside one that is biased, it leaves the question open.

    Args:
        first: the pair biases by one method.
        second: those by the other.
        difference: of the pair biases by the two methods, on the windows that both have measured.
    """
    judged = np.array([item.judged for item in (first, second)], dtype=bool)
    either, both = judged.any(axis=0), judged.all(axis=0)
    count = max(int(either.sum()), 1)
    sides = [np.sign(item.fit.estimate) * item.beyond(count) for item in (first, second)]
    fair = first.within() & second.within()
    size, tolerance = np.abs(difference.estimate), first.tolerance
    apart = size - difference.half_width(BIASED_LEVEL, count) > tolerance
    alike = fair | ((sides[0] == sides[1]) & (sides[0] != 0))
    if not second.enough or not first.enough:
        return None
    if (apart & ~alike & both).any():
        return False
    return True if (alike | ~either).all() else None


def _decision(item: Evidence, chosen: NDArray[np.bool_]) -> Decision:
    """Name the pair that is most certainly beyond its tolerance."""
    if item.decision.question != "attention":
        return item.decision
    certain = np.where(chosen, np.abs(item.fit.estimate) - item.fit.half_width(), -np.inf)
    which = item.decision
    return Decision(which.question, which.method, which.class_number, int(certain.argmax()) + 1)


def _open(attention: Sequence[Evidence], answer: Evidence | None) -> Iterator[Decision]:
    for item in attention:
        open_pairs = ~item.within()
        if open_pairs.any() or (any(item.judged) and not item.enough):
            yield item.decision
    if answer is None or not answer.within().all() or not answer.enough:
        yield Decision("answer")
