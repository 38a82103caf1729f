"""What an audit found about its three questions, as the page and the terminal show it.

Attention, answer and use each have figures, a tolerance, and a state: whether the figures are within the tolerance with
their whole intervals. The states never contradict the verdict, which rests on other intervals than those that are shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from evenslice.report.base.wording import rounded
from evenslice.results import FEW_SLICES, Thresholds, answer_evidence, count_attended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import AuditResult, Interval, PairBias

State = Literal["within", "beyond", "open", "few", "unjudged", "unknown"]


@dataclass(frozen=True)
class Attention:
    """The pair biases by one method, of the whole output or of one class.

    Attributes:
        method: of attribution, with spaces for underscores.
        class_number: the class; None for the whole output.
        pairs: K pair biases, k = 1..K.
    """

    method: str
    class_number: int | None
    pairs: tuple[PairBias, ...]

    @property
    def label(self) -> str:
        """The method and the class."""
        return self.method if self.class_number is None else f"class {self.class_number}, {self.method}"


@dataclass(frozen=True)
class Figure:
    """A figure with what it belongs to, and the largest one that counts as fair."""

    label: str
    value: Interval
    tolerance: float

    @property
    def estimate(self) -> str:
        """Its estimate."""
        return rounded(self.value, self.tolerance, -self.tolerance)[0]

    @property
    def interval(self) -> str:
        """Its 95 % interval; empty if unknown."""
        if math.isnan(self.value.low) or math.isnan(self.value.high):
            return ""
        return between(self.value, self.tolerance)


@dataclass(frozen=True)
class Question:
    """One of the three questions about one network.

    Attributes:
        name: "attention", "answer" or "use".
        asks: the question in words.
        figures: those that answer it; empty if it was not measured.
        state: whether they are within the tolerance.
        found: the state in words.
        decided: whether this question decided the verdict.
    """

    name: str
    asks: str
    figures: tuple[Figure, ...]
    state: State
    found: str
    decided: bool


def method_name(method: str) -> str:
    """Return the name of a method as it is read.

    Example:
        >>> method_name("integrated_gradients")
        'integrated gradients'
    """
    return method.replace("_", " ")


def is_older(audit: AuditResult) -> bool:
    """Return whether an audit was made by a version that measured attention alone."""
    return bool(audit.pairs) and audit.statistics.decided_by is None


def attentions(audit: AuditResult) -> list[Attention]:
    """List the attention of an audit: of the whole output by each method, and of each class."""
    first, second = method_name(audit.run.method), audit.statistics.second_opinion
    return [
        Attention(first, None, audit.pairs),
        *([] if second is None else [Attention(method_name(second.method), None, second.pairs)]),
        *(Attention(first, item.class_number, item.pairs) for item in audit.statistics.classes),
    ]


def decisive(audit: AuditResult) -> tuple[Attention, int]:
    """Return the attention and the pair k that decided the verdict; where no pair did, the one farthest from fair."""
    parts, decision = attentions(audit), audit.statistics.decided_by
    chosen = parts[0]
    if decision is not None and decision.question == "attention":
        key = method_name(decision.method or ""), decision.class_number
        chosen = next((part for part in parts if (part.method, part.class_number) == key), parts[0])
        if decision.offset is not None and 1 <= decision.offset <= len(chosen.pairs):
            return chosen, decision.offset
    return chosen, farthest(chosen.pairs)


def farthest(pairs: Sequence[PairBias]) -> int:
    """Return k of the judged pair whose whole interval is farthest from 0, of all pairs if none is judged."""
    judged = [k for k, pair in enumerate(pairs, start=1) if pair.judged]
    return max(
        judged or range(1, len(pairs) + 1),
        key=lambda k: (_known(max(pairs[k - 1].low, -pairs[k - 1].high)), _known(abs(pairs[k - 1].estimate))),
    )


def slices_told(audit: AuditResult) -> int:
    """Count the distinct slices behind the answer: of an output with classes, those with foreground."""
    found = answer_evidence(audit.measurements, Thresholds())
    return 0 if found is None else found.slices


def slices_seen(audit: AuditResult, part: Attention) -> int:
    """Count the distinct slices behind an attention."""
    second = part.method != method_name(audit.run.method)
    return count_attended(audit.measurements, audit.subset, second=second, class_number=part.class_number)


def three_questions(audit: AuditResult) -> tuple[Question, ...]:
    """Return attention, answer and use; empty for a window of one slice."""
    return () if not audit.pairs else (_attention(audit), _answer(audit), _use(audit))


def state_of(value: Interval, tolerance: float) -> State:
    """Return where an interval lies: "within" the tolerance, "beyond" it, "open" if across its edge, or "unknown".

    Example:
        >>> from evenslice.results import Interval
        >>> [state_of(Interval(0.06, low, 0.07), 0.05) for low in (0.055, 0.02)]
        ['beyond', 'open']
    """
    if math.isnan(value.estimate):
        return "unknown"
    if math.isnan(value.low) or math.isnan(value.high):  # infinite, as a file does not hold it
        return "open"
    if max(abs(value.low), abs(value.high)) <= tolerance:
        return "within"
    return "beyond" if value.low > tolerance or value.high < -tolerance else "open"


def attention_state(audit: AuditResult) -> State:
    """Return the state of all judged pairs, of every method and class: that of the worst; "unjudged" without any."""
    tolerance = audit.statistics.tolerance
    states = [state_of(pair, tolerance) for part in attentions(audit) for pair in part.pairs if pair.judged]
    if not states:
        return "unjudged"
    worst: tuple[State, ...] = ("beyond", "open", "unknown")
    return _settled(audit, next((state for state in worst if state in states), "within"), "attention")


def _attention(audit: AuditResult) -> Question:
    parts, (decided, _) = attentions(audit), decisive(audit)
    shown = [part for part in parts if part.class_number is None]
    if decided not in shown:
        shown.append(decided)
    several = len(audit.pairs) > 1
    figures = []
    for part in shown:
        k = decisive(audit)[1] if part == decided else farthest(part.pairs)
        label = part.label + (f", k\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{k}" if several else "")
        figures.append(Figure(label, part.pairs[k - 1], audit.statistics.tolerance))
    return _question(
        audit,
        "attention",
        "Do opposite slices get equal attention?",
        tuple(figures),
        attention_state(audit),
        f"±{audit.statistics.tolerance:g}",
    )


def _answer(audit: AuditResult) -> Question:
    statistics = audit.statistics
    state = _settled(audit, state_of(audit.answer, statistics.answer_tolerance), "answer")
    return _question(
        audit,
        "answer",
        "Does their order change the answer?",
        (Figure("answer change", audit.answer, statistics.answer_tolerance),),
        state,
        f"{statistics.answer_tolerance:g}",
    )


def _use(audit: AuditResult) -> Question:
    statistics = audit.statistics
    state = _settled(audit, state_of(audit.mismatch, statistics.mismatch_tolerance), "use")
    return _question(
        audit,
        "use",
        "Are they used in the same way, place by place?",
        (Figure("mirror mismatch", audit.mismatch, statistics.mismatch_tolerance),),
        state,
        f"{statistics.mismatch_tolerance:g}",
    )


def _question(
    audit: AuditResult, name: str, asks: str, figures: tuple[Figure, ...], state: State, edge: str
) -> Question:
    found = {
        "within": f"within {edge}",
        "beyond": f"beyond {edge}",
        "open": f"not settled: {edge}",
        "few": f"fewer than {FEW_SLICES} slices",
        "unjudged": "not judged",
        "unknown": "not measured",
    }[state]
    decision = audit.statistics.decided_by
    return Question(
        name,
        asks,
        () if state == "unknown" and math.isnan(figures[0].value.estimate) else figures,
        state,
        found,
        decision is not None and decision.question == name,
    )


def _settled(audit: AuditResult, state: State, question: str) -> State:
    """Adapt a state to the verdict, whose intervals hold together, are narrower where all tests have to agree, or wider."""
    fair = {"symmetric": ("answer", "use"), "balanced": ("attention", "answer")}
    if state == "open" and not is_older(audit) and question in fair.get(audit.verdict, ()):
        return "within"
    decision = audit.statistics.decided_by
    if decision is None:
        return state
    if question == "use":  # a balanced network would be symmetric if it were
        return "open" if state == "within" and audit.verdict == "balanced" else state
    seen = slices_told(audit) if question == "answer" else slices_seen(audit, decisive(audit)[0])
    few = seen < FEW_SLICES
    if audit.verdict != "inconclusive":
        return "few" if few and state == "beyond" and decision.question != question else state
    if decision.question == question:
        return "few" if few else "open"
    return "open" if state == "beyond" else state


def _known(value: float) -> float:
    """Sort NaN last in a comparison."""
    return -math.inf if math.isnan(value) else value


def between(value: Interval, tolerance: float) -> str:
    """Return the ends of an interval, so that they show whether it lies within a tolerance."""
    _, low, high = rounded(value, tolerance, -tolerance)
    return f"{low} to {high}"


def spread(what: str, value: Interval, tolerance: float) -> str:
    """Return a figure with its interval in words, so that they show whether it lies within a tolerance."""
    estimate = rounded(value, tolerance, -tolerance)[0]
    return f"{what} {estimate}, 95\N{NO-BREAK SPACE}% interval {between(value, tolerance)}"
