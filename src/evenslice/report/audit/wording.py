"""The sentences of an audit's page: verdicts in plain language."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evenslice.report.base.wording import listed, number, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import AuditResult, Interval


def verdict_sentence(audit: AuditResult) -> str:
    """Describe the verdict of an audit in one sentence.

    For a biased network this names the pair bias B that is most certainly too large: the favoured slice of that pair
    gets (1 + |B|) / (1 - |B|) times the attention of the other.
    """
    pairs, tolerance = list(enumerate(audit.pairs, start=1)), f"±{audit.statistics.tolerance:g}"
    if audit.verdict == "not applicable":
        return "Not applicable: a window of one slice has no mirrored pair to compare."
    if audit.verdict == "symmetric":
        largest = max(abs(pair.estimate) for _, pair in pairs)
        return (
            "Symmetric: the slices before and after the middle get the same attention; "
            f"every pair bias lies within {tolerance} (the largest is {_at_most(largest)})."
        )
    if audit.verdict == "biased":
        k, pair = max(pairs, key=lambda item: _known(max(item[1].low, -item[1].high)))
        return f"Biased: {_favour(k, pair.estimate)} ({_spread(pair)}; fair is within {tolerance})."
    k, pair = max(pairs, key=lambda item: _known(max(-item[1].low, item[1].high)))
    if not (math.isfinite(pair.low) and math.isfinite(pair.high)):
        return "Inconclusive: there are too few windows for an interval; audit more windows."
    which = "next to the middle" if k == 1 else f"{k} before and {k} after the middle"
    return (
        f"Inconclusive: whether the network treats the slices {which} alike to within {tolerance} is not settled "
        f"({_spread(pair)}); audit more windows."
    )


def context_sentence(audit: AuditResult) -> str:
    """Describe the middle slice's share, and the effect of reversing a window on the result."""
    slices, statistics = len(audit.shares), audit.statistics
    if slices == 1:
        return "The window is one slice."
    middle = audit.shares[slices // 2].estimate
    text = f"The middle slice gets {percent(middle)} of the attention (an even split gives {percent(1 / slices)})."
    beyond = sum(abs(pair.estimate) > statistics.tolerance for pair in audit.pairs)
    if beyond and len(audit.pairs) > 1:
        text += f" The bias of {beyond} of {len(audit.pairs)} pairs is estimated beyond the tolerance."
    if not math.isnan(statistics.mirror_error.estimate):
        text += f" Reversing a window changes the output by {percent(statistics.mirror_error.estimate)} of its largest value"
        if not math.isnan(statistics.mirror_disagreement.estimate):
            text += f" and the class of {percent(statistics.mirror_disagreement.estimate)} of the pixels"
        text += "."
    return text


def headline(audits: Sequence[AuditResult]) -> str:
    """Count the verdicts: ``"Of 4 audits, 1 is biased and 3 are symmetric."``; empty for one audit."""
    if len(audits) == 1:
        return ""
    verdicts = [audit.verdict for audit in audits]
    known = ("biased", "inconclusive", "symmetric", "not applicable")
    counts = [(verdicts.count(verdict), verdict) for verdict in known if verdict in verdicts]
    clauses = [f"{count} {'is' if count == 1 else 'are'} {verdict}" for count, verdict in counts]
    return f"Of {len(audits)} audits, {listed(clauses)}."


def _known(value: float) -> float:
    """Sort NaN last in a comparison."""
    return -math.inf if math.isnan(value) else value


def _at_most(size: float) -> str:
    return "below 0.001" if size < 0.001 else number(size)


def _spread(pair: Interval) -> str:
    return f"pair bias {number(pair.estimate)}, 95\N{NO-BREAK SPACE}% interval {number(pair.low)} to {number(pair.high)}"


def _favour(k: int, bias: float) -> str:
    """Describe which slice of a pair is favoured, and by how much."""
    place = "the slice" if k == 1 else f"the slice {k}"
    favoured, other = ("before", "after") if bias < 0 else ("after", "before")
    if abs(bias) > 0.99:
        return f"{place} {favoured} the middle gets the attention of its pair and the one {other} it none"
    ratio = (1 + abs(bias)) / (1 - abs(bias))
    times = f"{ratio:.2f}" if ratio < 1.5 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
    return f"{place} {favoured} the middle gets {times} times the attention of the one {other} it"
