"""The sentences of an audit's page: verdicts in plain language."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evenslice.report.audit.agreement import methods_sentence
from evenslice.report.audit.conclusions import conclusion
from evenslice.report.audit.favour import favour
from evenslice.report.audit.questions import (
    attention_state,
    attentions,
    decisive,
    is_older,
    slices_seen,
    slices_told,
    spread,
    state_of,
)
from evenslice.report.base.wording import beside, listed, number, percent, threshold
from evenslice.results import FEW_SLICES, Thresholds, answer_evidence, are_votes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import AuditResult, Interval, PairBias

LEAST_WIDTH = 1e-6
"""Half-width of the intervals of pair biases that do not vary at all."""

VERDICTS = ("biased", "inconclusive", "balanced", "symmetric", "not applicable")


def verdict_sentence(audit: AuditResult) -> str:
    """Describe the verdict of an audit, and what decided it, in one sentence.

    A pair bias B is told by how much more the favoured slice gets: (1 + |B|) / (1 - |B|) times the attention of the
    other.
    """
    if not audit.pairs or audit.verdict == "not applicable":
        return "Not applicable: a window of one slice has no mirrored pair to compare."
    if audit.verdict == "symmetric":
        return _symmetric_before(audit) if is_older(audit) else _symmetric(audit)
    if audit.verdict == "balanced":
        return _balanced(audit)
    decision = audit.statistics.decided_by
    by_answer = decision is not None and decision.question == "answer"
    if audit.verdict == "biased":
        return _biased_by_answer(audit) if by_answer else _biased_by_attention(audit)
    return _open_answer(audit) if by_answer else _open_attention(audit)


def context_sentence(audit: AuditResult) -> str:
    """Describe the middle slice's share, pairs that are not judged, and what reversing a window does to the result."""
    slices, statistics = len(audit.shares), audit.statistics
    if slices == 1:
        return "The window is one slice."
    middle = audit.shares[slices // 2].estimate
    text = f"The middle slice gets {percent(middle)} of the attention (an even split gives {percent(1 / slices)})."
    judged = [pair for pair in audit.pairs if pair.judged]
    beyond = sum(abs(pair.estimate) > statistics.tolerance for pair in judged)
    if beyond and len(audit.pairs) > 1:
        text += f" The bias of {beyond} of {len(audit.pairs)} pairs is estimated beyond the tolerance."
    ignored = [f"±{k}" for k, pair in enumerate(audit.pairs, start=1) if not pair.judged]
    if ignored:
        text += (
            f" The slices {listed(ignored)} get less than {threshold(statistics.least_attention)} of the attention "
            "and are not judged."
        )
    if not math.isnan(statistics.mirror_error.estimate):
        text += (
            f" Reversing a window changes the output by {percent(statistics.mirror_error.estimate)} of its largest "
            "value"
        )
        if not math.isnan(statistics.mirror_disagreement.estimate):
            text += f" and the class of {percent(statistics.mirror_disagreement.estimate)} of the {_classified(audit)}"
        text += "."
    return text


def headline(audits: Sequence[AuditResult]) -> str:
    """Say whether the methods agree and how many audits have each verdict, or what several methods conclude."""
    concluded = conclusion(audits)
    agree = all(audit.statistics.methods_agree for audit in audits)
    sentences = [concluded] if concluded and agree else [concluded, methods_sentence(audits)]
    if len(audits) > 1 and not concluded:
        verdicts = [audit.verdict for audit in audits]
        counts = [(verdicts.count(verdict), verdict) for verdict in VERDICTS if verdict in verdicts]
        clauses = [f"{count} {'is' if count == 1 else 'are'} {verdict}" for count, verdict in counts]
        sentences.append(f"Of {len(audits)} audits, {listed(clauses)}.")
    return " ".join(filter(None, sentences))


def _symmetric_before(audit: AuditResult) -> str:
    return (
        "Symmetric: the slices before and after the middle get the same attention; every pair bias lies within "
        f"±{audit.statistics.tolerance:g} (the largest is {_largest(audit.pairs, audit.statistics.tolerance)})."
    )


def _symmetric(audit: AuditResult) -> str:
    return (
        "Symmetric: the slices before and after the middle are used in the same way, place by place "
        f"({_mirror_mismatch(audit)}), and their order does not matter to the answer ({_answer_change(audit)})."
    )


def _balanced(audit: AuditResult) -> str:
    statistics = audit.statistics
    parts = attentions(audit)
    judged = [pair for part in parts for pair in part.pairs if pair.judged]
    told = [part.method for part in parts if any(pair.judged for pair in part.pairs)]
    methods = listed([f"by {name}" for name in dict.fromkeys(told)])
    attention = (
        f"the slices before and after the middle get equal attention {methods} (the largest pair bias is "
        f"{_largest(judged, statistics.tolerance)}; tolerance ±{statistics.tolerance:g})"
        if judged
        else f"no opposite slices get {threshold(statistics.least_attention)} of the attention"
    )
    use = {
        "unknown": "how they are used, place by place, was not measured",
        "beyond": "they are not used in the same way place by place",
    }.get(
        state_of(audit.mismatch, statistics.mismatch_tolerance),
        "they are not shown to be used in the same way place by place",
    )
    mismatch = "" if math.isnan(audit.mismatch.estimate) else f" ({_mirror_mismatch(audit)})"
    return (
        f"Balanced: {attention}, and their order hardly changes the answer ({_answer_change(audit)}), but "
        f"{use}{mismatch}."
    )


def _biased_by_attention(audit: AuditResult) -> str:
    part, k = decisive(audit)
    pair, tolerance = part.pairs[k - 1], audit.statistics.tolerance
    where = "" if part.class_number is None else f" in class {part.class_number}"
    method = f"by {part.method}, " if part.method else ""
    return (
        f"Biased{where}: {method}{favour(k, pair.estimate)} ({spread('pair bias', pair, tolerance)}; "
        f"tolerance ±{tolerance:g})."
    )


def _biased_by_answer(audit: AuditResult) -> str:
    value, tolerance = audit.answer, audit.statistics.answer_tolerance
    fair = ", although opposite slices get equal attention" if attention_state(audit) == "within" else ""
    return (
        f"Biased: {_change(audit)}{fair} ({spread('answer change', value, tolerance)}; tolerated up to "
        f"{tolerance:g})."
    )


def _change(audit: AuditResult) -> str:
    """Describe C: pixels or windows whose class changes, or the change of an output without classes."""
    size = percent(audit.answer.estimate)
    if audit.answer.of == "scores" or bool(np.isnan(audit.measurements.foreground).all()):
        return f"reversing a window changes the output by {size} of the difference of unrelated outputs"
    if _classified(audit) == "windows":
        return f"reversing a window changes {size} of the predicted classes"
    return f"reversing a window changes the class of {size} of the foreground pixels"


def _classified(audit: AuditResult) -> str:
    """Return what an output with classes gives one to: "windows", each of which changes wholly or not, or "pixels"."""
    return "windows" if are_votes(audit.measurements) else "pixels"


def _open_answer(audit: AuditResult) -> str:
    value, tolerance = audit.answer, audit.statistics.answer_tolerance
    own_mirror = audit.measurements.own_mirror[~np.isnan(audit.measurements.own_mirror)]
    if len(own_mirror) and bool(own_mirror.all()):
        return (
            "Inconclusive: all windows are their own mirrors, so they do not tell whether the order of the slices changes "
            "the answer; audit another volume."
        )
    if math.isnan(value.estimate):
        return "Inconclusive: whether the order of the slices changes the answer could not be measured."
    seen, found = slices_told(audit), answer_evidence(audit.measurements, Thresholds())
    decides = _deciding(value, tolerance, seen)
    if found is not None and value.high <= tolerance:
        reach = float(found.fit.bounds(found.within_level)[1][0])
        decides = (
            f"; that of {100 * found.within_level:.0f} %, which decides, reaches {beside(reach, tolerance)}"
        )
    return (
        f"Inconclusive: whether reversing a window changes more than {threshold(tolerance)} of the answer is not settled "
        f"({spread('answer change', value, tolerance)}{decides}); {_advice(audit, seen, ' with an answer')}."
    )


def _open_attention(audit: AuditResult) -> str:
    part, _ = decisive(audit)
    asked = audit.statistics.decided_by
    if asked is not None and part.class_number != asked.class_number:
        return (
            f"Inconclusive: class {asked.class_number} covers at least 1 % of the pixels, but its attention has "
            f"not been measured in any window yet; {_advice(audit, FEW_SLICES)}."
        )
    judged = [item for item in enumerate(part.pairs, start=1) if item[1].judged]
    k, pair = max(judged or enumerate(part.pairs, start=1), key=lambda item: _reach(item[1]))
    seen = slices_seen(audit, part)
    if audit.run.windows_without_attribution == len(audit.measurements.volume):
        return (
            "Inconclusive: no window has an attribution in both orders of its slices, so that opposite slices cannot be "
            "compared."
        )
    if not (math.isfinite(pair.low) and math.isfinite(pair.high)) and seen >= FEW_SLICES:
        return "Inconclusive: there are too few windows for an interval; audit more windows."
    place = "next to the middle" if k == 1 else f"{k} before and {k} after the middle"
    where = "" if part.class_number is None else f" in class {part.class_number}"
    method = f" by {part.method}" if part.method else ""
    tolerance = audit.statistics.tolerance
    found = spread("pair bias", pair, tolerance) + _deciding(pair, tolerance, seen)
    return (
        f"Inconclusive: whether the slices {place} get equal attention{where}{method}, to within ±{tolerance:g}, is not "
        f"settled ({found}); {_advice(audit, seen)}."
    )


def _deciding(value: Interval, tolerance: float, seen: int) -> str:
    """Say why a question is open although the interval that is shown lies beyond the tolerance, and slices are enough."""
    if state_of(value, tolerance) != "beyond" or seen < FEW_SLICES:
        return ""
    return "; the one that holds for all tests at once, which decides, is wider"


def _advice(audit: AuditResult, seen: int, what: str = "") -> str:
    """Say what would settle an open question."""
    if seen < FEW_SLICES:
        more = ": audit more windows" if audit.run.stopped == "limit reached" else ""
        slices = "slice was" if seen == 1 else "slices were"
        return f"{seen} distinct {slices} seen{what}, {FEW_SLICES} are needed{more}"
    if audit.run.stopped == "all windows used":
        return "all windows were used, so audit another volume as well"
    if audit.run.stopped != "precision reached":
        return "audit more windows"
    width = max(((pair.high - pair.low) / 2 for pair in audit.pairs if pair.judged), default=0.0)
    if width < LEAST_WIDTH:  # these stop an audit, and no precision that is asked for would
        return "audit another volume as well"
    return f"ask for more precision, below ±{number(width / 2)}"


def _answer_change(audit: AuditResult) -> str:
    tolerance = audit.statistics.answer_tolerance
    return f"answer change {beside(audit.answer.estimate, tolerance)}, tolerated up to {tolerance:g}"


def _mirror_mismatch(audit: AuditResult) -> str:
    tolerance = audit.statistics.mismatch_tolerance
    return f"mirror mismatch {beside(audit.mismatch.estimate, tolerance)}, tolerated up to {tolerance:g}"


def _reach(pair: PairBias) -> float:
    """Return how far the interval of a pair reaches from 0; NaN first."""
    reach = max(-pair.low, pair.high)
    return math.inf if math.isnan(reach) else reach


def _largest(pairs: Sequence[PairBias], tolerance: float) -> str:
    sizes = [abs(pair.estimate) for pair in pairs if not math.isnan(pair.estimate)]
    size = max(sizes, default=math.nan)
    return "below 0.001" if size < 0.001 else beside(size, tolerance)
