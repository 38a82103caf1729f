"""Whether the two methods of each audit agree, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evenslice.report.audit.favour import favour, sides, times
from evenslice.report.audit.questions import between, is_older, method_name, state_of
from evenslice.report.base.wording import listed, one_line, threshold
from evenslice.results import FEW_SLICES, count_attended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import AuditResult, PairBias

__all__ = ["agreement_sentence", "methods_sentence"]

LONGEST_NAME = 60


def agreement_sentence(audit: AuditResult) -> str:
    """Say whether the two methods of an audit agree, and what each finds; empty for a window of one slice."""
    if not audit.pairs:
        return ""
    if is_older(audit):
        return "Answer and use were not measured by the version that made this audit."
    second = audit.statistics.second_opinion
    if second is not None:
        return _two_methods(audit, method_name(second.method), second.pairs)
    if audit.run.method == "occlusion":
        return "Only occlusion can be used on this network; the test of its answer stands beside it."
    return "There is no second opinion: nothing in the windows has an attribution by another method."


def methods_sentence(audits: Sequence[AuditResult]) -> str:
    """Say about which audits the methods agree; of a single audit, what each method finds."""
    if len(audits) == 1:
        return agreement_sentence(audits[0])
    paired = [one for one in audits if one.pairs]
    clauses = (
        ("the methods disagree about {}", [one for one in paired if one.statistics.methods_agree is False]),
        ("the methods agree about {}", [one for one in paired if one.statistics.methods_agree]),
        ("whether the methods agree about {} is not settled", [one for one in paired if _is_unsettled(one)]),
        ("only occlusion can be used on {}", [one for one in paired if _has_one_method(one)]),
        ("there is no second opinion on {}", [one for one in paired if _lacks_opinion(one)]),
        (
            "answer and use were not measured by the version that made {}",
            [one for one in paired if is_older(one)],
        ),
    )
    found: list[str] = []
    for text, chosen in clauses:
        if chosen:
            found.append(
                (text.replace("the methods", "they") if found else text).format(_names(chosen, paired))
            )
    return f"{_capital('; '.join(found))}." if found else ""


def _two_methods(audit: AuditResult, second: str, pairs: Sequence[PairBias]) -> str:
    agree, tolerance = audit.statistics.methods_agree, audit.statistics.tolerance
    k = _pair_to_tell(audit.pairs, pairs, tolerance, agree)
    names = method_name(audit.run.method), second
    one, other = audit.pairs[k - 1], pairs[k - 1]
    which = "" if len(audit.pairs) == 1 else f" about the slices ±{k}"
    states = state_of(one, tolerance), state_of(other, tolerance)
    if not any(pair.judged for pair in (*audit.pairs, *pairs)):
        return (
            f"Opposite slices get less than {threshold(audit.statistics.least_attention)} of the attention by {names[0]} and "
            f"by {names[1]}, too little to be judged."
        )
    both_judged = one.judged and other.judged
    if agree and both_judged and "beyond" not in states:
        return f"The methods agree: by {names[0]} and by {names[1]}, opposite slices get equal attention."
    if agree and both_judged and max(abs(one.estimate), abs(other.estimate)) <= 0.99:
        favoured, rest = sides(k, one.estimate)
        return (
            f"The methods agree: {favoured} gets {times(one.estimate)} times the attention of {rest} by {names[0]}, and "
            f"{times(other.estimate)} times by {names[1]}."
        )
    told = [_told(k, pair, tolerance, audit.statistics.least_attention) for pair in (one, other)]
    found = f"by {names[0]} {told[0]}, by {names[1]} {told[1]}"
    if agree:
        return f"The methods agree: {found}."
    if agree is False:
        return f"The methods disagree{which}: {found}."
    seen = count_attended(audit.measurements, audit.subset, second=True)
    saw = f"{seen} distinct slice{'' if seen == 1 else 's'}"
    few = f" (the second method saw {saw}, {FEW_SLICES} are needed)" if seen < FEW_SLICES else ""
    return f"Whether the methods agree{which} is not settled: {found}{few}."


def _pair_to_tell(
    first: Sequence[PairBias], second: Sequence[PairBias], tolerance: float, agree: bool | None
) -> int:
    """Return k of the largest pair if methods agree, else of the one that they differ about most, or leave open."""
    pairs = list(zip(first, second, strict=True))
    known = [pair for pair in pairs if any(item.judged for item in pair)]
    if not agree:
        apart = [pair for pair in known if not _is_alike(*pair, tolerance)]
        judged = [pair for pair in apart if all(item.judged for item in pair)]
        known = (judged if agree is False else apart) or apart or known

    def size(pair: tuple[PairBias, PairBias]) -> float:
        one, other = (item.estimate for item in pair)
        found = min(abs(one), abs(other)) if agree else abs(one - other)
        return -1.0 if math.isnan(found) else found

    return 1 + pairs.index(max(known or pairs, key=size))


def _is_alike(one: PairBias, other: PairBias, tolerance: float) -> bool:
    """Return whether both biases of a pair are fair, or beyond the tolerance on the same side."""
    states = {state_of(item, tolerance) if item.judged else "within" for item in (one, other)}
    return states == {"within"} or (states == {"beyond"} and one.estimate * other.estimate > 0)


def _told(k: int, pair: PairBias, tolerance: float, least_attention: float) -> str:
    if math.isnan(pair.estimate):
        return "nothing is known"
    if not pair.judged:
        return f"both get less than {threshold(least_attention)} of the attention, too little to be judged"
    is_open = state_of(pair, tolerance) == "open"
    interval = f"pair bias {between(pair, tolerance)}"
    if abs(pair.estimate) > tolerance:
        return f"{favour(k, pair.estimate)}{f' (not certain: {interval})' if is_open else ''}"
    if is_open:
        return f"it is not certain whether both get equal attention ({interval})"
    return "both get equal attention"


def _is_unsettled(audit: AuditResult) -> bool:
    return audit.statistics.methods_agree is None and audit.statistics.second_opinion is not None


def _has_one_method(audit: AuditResult) -> bool:
    return audit.run.method == "occlusion" and _has_none(audit)


def _lacks_opinion(audit: AuditResult) -> bool:
    return audit.run.method != "occlusion" and _has_none(audit)


def _has_none(audit: AuditResult) -> bool:
    return not is_older(audit) and audit.statistics.second_opinion is None


def _names(chosen: Sequence[AuditResult], audits: Sequence[AuditResult]) -> str:
    if len(chosen) == len(audits) > 1:
        return "both audits" if len(audits) == 2 else f"all {len(audits)} audits"
    names = [one_line(audit.name, LONGEST_NAME) for audit in chosen]
    if any("," in name for name in names):  # which would be taken for two
        names = [f"'{name}'" for name in names]
    return listed(names)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
