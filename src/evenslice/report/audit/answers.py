"""What an audit found on each of its four questions: one figure, where it was found, and a state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenslice.report.base.wording import interval, signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import AuditResult, Decision, Figure

ASKS = {
    "saliency": "Would a map favour a side?",
    "reliance": "Is one side missed more?",
    "answer": "Does the order change the answer?",
    "use": "Are opposite slices used alike, place by place?",
}
SYMBOLS = {"saliency": "B", "reliance": "B", "answer": "C", "use": "E"}
WORST = ("beyond", "open", "unknown", "within")


@dataclass(frozen=True)
class Found:
    """A figure, and the class and the pair ±k that it is about; None stands for all."""

    figure: Figure
    class_number: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to one of the four questions, of an audit, a class or a volume.

    Attributes:
        question: which.
        tolerance: the largest absolute figure that counts as fair.
        found: the figure that decided the verdict, else the judged one that is farthest beyond the tolerance or nearest to
            it; None if the question was not asked.
        state: of all judged figures, "within", "beyond" or "open"; "not judged", "not asked", or "unknown".
        decided: whether it decided the verdict or, of an inconclusive one, is open.
        about: the class and the pair of the figure, as far as it is not about all.
        figures: all that are known.
    """

    question: str
    tolerance: float
    found: Found | None
    state: str
    decided: bool
    about: str
    figures: tuple[Found, ...]

    @property
    def symbol(self) -> str:
        """The letter of the figure: B, C or E."""
        return SYMBOLS[self.question]

    @property
    def asks(self) -> str:
        """The question in words."""
        return ASKS[self.question]

    @property
    def name(self) -> str:
        """The question, with the class and the pair."""
        return f"{self.question} ({self.about})" if self.about else self.question

    @property
    def value(self) -> str:
        """The figure with its 95 % interval in brackets."""
        return interval(self.found.figure if self.found else None, self.tolerance, -self.tolerance)

    @property
    def verdict(self) -> str:
        """The state with the tolerance."""
        if self.state not in ("within", "beyond", "open"):
            return {"unknown": "as in version 0.2"}.get(self.state, self.state)
        edge = f"{'±' if self.symbol == 'B' else ''}{self.tolerance:g}"
        return f"open ({edge})" if self.state == "open" else f"{self.state} {edge}"


def four_answers(audit: AuditResult) -> tuple[Answer, ...]:
    """Return the answers on saliency, reliance, answer and use; none for a window of one slice."""
    decisions = {item.question: item for item in audit.statistics.decided_by}
    return tuple(
        _answer(audit, question, _figures(audit, question), decisions.get(question))
        for question in ASKS
        if audit.pairs
    )


def answers_of_part(audit: AuditResult, part: Any) -> tuple[Answer, ...]:
    """Return the same of one of its ``ClassFigures`` or ``VolumeFigures``."""
    return tuple(_answer(audit, question, _of_part(part, question)) for question in ASKS)


def tolerance_of(audit: AuditResult, question: str) -> float:
    """Return the largest absolute figure that counts as fair."""
    found = audit.statistics
    return {"answer": found.answer_tolerance, "use": found.mismatch_tolerance}.get(question, found.tolerance)


def side(found: Found) -> str:
    """Name the favoured slice of a pair, as ``z+1``."""
    k = found.offset or 1
    return f"z{signed(k if found.figure.estimate > 0 else -k)}"


def _answer(
    audit: AuditResult, question: str, figures: Sequence[Found], decision: Decision | None = None
) -> Answer:
    known = [found for found in figures if not math.isnan(found.figure.estimate)]
    key = None if decision is None else (decision.class_number, decision.offset)
    deciding = [found for found in known if (found.class_number, found.offset) == key]
    judged = [found for found in known if getattr(found.figure, "judged", True)]
    states = {getattr(found.figure, "state", "unknown") for found in judged}
    state = next((state for state in WORST if state in states), "not judged" if known else "not asked")
    if decision is not None and state == "within":
        state = "open"  # a pair of a class decided, whose figure is not kept
    chosen = deciding[0] if deciding else max(judged or known, key=_excess, default=None)
    about = []
    if chosen is not None and chosen.class_number is not None:
        about.append(f"class {chosen.class_number}")
    if chosen is not None and chosen.offset is not None and len(audit.pairs) > 1:
        about.append(f"slices ±{chosen.offset}")
    return Answer(
        question=question,
        tolerance=tolerance_of(audit, question),
        found=chosen,
        state=state,
        decided=decision is not None,
        about=", ".join(about),
        figures=tuple(known),
    )


def _excess(found: Found) -> tuple[float, float]:
    """Sort figures by how certainly they are far from 0."""
    figure = found.figure
    least = -figure.high if figure.estimate < 0 else figure.low
    return least if math.isfinite(least) else -math.inf, abs(figure.estimate)


def _figures(audit: AuditResult, question: str) -> list[Found]:
    """List the figures on a question: of all predicted pixels, and of each judged class."""
    of_classes = [
        Found(found.figure, item.class_number, found.offset)
        for item in audit.statistics.classes
        for found in _of_part(item, question)
    ]
    if question != "answer":
        return _of_part(audit.statistics, question) + of_classes
    if any(not math.isnan(found.figure.estimate) for found in of_classes):
        return of_classes  # of which that of the audit is the largest
    return [Found(audit.answer, audit.answer.class_number)]


def _of_part(part: Any, question: str) -> list[Found]:
    """List the figures on a question of all pixels, of a class, or of a volume."""
    if question == "answer":
        return [Found(part.answer_change)]
    of_use = getattr(part.mirror_mismatch, "pairs", ())
    pairs = {"saliency": part.pairs, "reliance": part.reliance}.get(question, of_use)
    found = [Found(pair, offset=k) for k, pair in enumerate(pairs, start=1)]
    return [Found(part.mirror_mismatch), *found] if question == "use" else found
