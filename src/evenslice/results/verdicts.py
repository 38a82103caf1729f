"""The verdict of an audit, from what was found about saliency, reliance, answer and use. docs/statistics.md explains it.

An audit asks four questions: would a map of saliency favour a side, does the network rely on one, does the order of slices
change its answers, and are opposite slices used in the same way, place by place? ``judge`` decides from the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from evenslice.results.intervals import Ratios

    Floats = NDArray[np.float64]

__all__ = ["QUESTIONS", "Decision", "Evidence", "Key", "Question", "State", "Verdict", "judge"]

Verdict = Literal["symmetric", "balanced", "biased", "inconclusive", "not applicable"]
Question = Literal["saliency", "reliance", "answer", "use"]
State = Literal["within", "beyond", "open", "not judged", "unknown"]

QUESTIONS: tuple[Question, ...] = ("saliency", "reliance", "answer", "use")

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
    class_number: int | None = None
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
    judged: NDArray[np.bool_]
    decides: NDArray[np.bool_]
    root: bool = False

    @property
    def estimate(self) -> Floats:
        """The figures (q,)."""
        return np.sqrt(self.fit.estimate) if self.root else self.fit.estimate

    def bounds(self, level: float = 0.95, comparisons: int = 1) -> tuple[Floats, Floats]:
        """Return the bounds (q,) of the figures; see ``Ratios.bounds``."""
        low, high = self.fit.bounds(level, comparisons)
        return (np.sqrt(low), np.sqrt(high)) if self.root else (low, high)

    def beyond(self, comparisons: int = 1) -> NDArray[np.bool_]:
        """Return which figures (q,) are beyond the tolerance with their whole intervals."""
        low, high = self.bounds(BEYOND_LEVEL, comparisons)
        return np.asarray(((low > self.tolerance) | (high < -self.tolerance)) & self.judged)

    def within(self) -> NDArray[np.bool_]:
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

    def excess(self, chosen: NDArray[np.bool_]) -> int:
        """Return the chosen figure that is most certainly beyond the tolerance, or else nearest to it."""
        low, high = self.bounds()
        least = np.where(self.estimate < 0, -high, low)
        least = np.where(np.isfinite(least), least, -np.inf)
        ranked = np.where(chosen, least, -np.inf)
        ties = np.where(ranked == ranked.max(), np.nan_to_num(np.abs(self.estimate)), -1.0)
        return int(np.where(chosen, ties, -2.0).argmax())

    def decision(self, chosen: NDArray[np.bool_]) -> Decision:
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
        half = np.where(self.estimate < 0, np.where(size > self.tolerance, high, low), 0.0)
        half = np.where(self.estimate < 0, half, np.where(size > self.tolerance, low, high))
        reach = np.abs(half - self.estimate)
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


def _decisions(chosen: Iterable[tuple[Evidence, NDArray[np.bool_]]]) -> tuple[Decision, ...]:
    """Return the decision of each question that has chosen figures."""
    return tuple(item.decision(which) for item, which in chosen if which.any())
