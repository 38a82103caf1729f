"""The words and numbers of the report: verdicts in plain language, figures with their intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import AuditResult, Interval

NOTHING = "\N{EN DASH}"
"""Stands where there is no figure."""

MINUS = "\N{MINUS SIGN}"
"""Stands before what is negative; a hyphen is shorter and may be broken from its number."""


def verdict_sentence(audit: AuditResult) -> str:
    """Say in one sentence, for a practitioner, what an audit found.

    A biased network is told by the pair bias B that is surest to be too large: the favoured slice of that pair gets
    (1 + |B|) / (1 - |B|) times the attention of the other.
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
        return "Inconclusive: there are too few windows for an interval; audit more of them."
    which = "next to the middle" if k == 1 else f"{k} before and {k} after the middle"
    return (
        f"Inconclusive: whether the network treats the slices {which} alike to within {tolerance} is not settled "
        f"({_spread(pair)}); audit more windows."
    )


def context_sentence(audit: AuditResult) -> str:
    """Say what stands beside the verdict: the middle slice's share, and what reversing a window does to the result."""
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
    """Count the verdicts: ``"Of 4 audits, 1 is biased and 3 are symmetric."``; one audit speaks for itself."""
    if len(audits) == 1:
        return ""
    verdicts = [audit.verdict for audit in audits]
    known = ("biased", "inconclusive", "symmetric", "not applicable")
    counts = [(verdicts.count(verdict), verdict) for verdict in known if verdict in verdicts]
    clauses = [f"{count} {'is' if count == 1 else 'are'} {verdict}" for count, verdict in counts]
    listing = " and ".join(filter(None, [", ".join(clauses[:-1]), clauses[-1]]))
    return f"Of {len(audits)} audits, {listing}."


def number(value: float) -> str:
    """Write a figure with three decimals, or in powers of ten where those would all be 0.

    Example:
        >>> [number(value).replace(MINUS, "-") for value in (-0.2346, 2e-6, 0.0, float("inf"))]
        ['-0.235', '2.0e-6', '0', '∞']
    """
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    if abs(value) >= 0.0005:
        return f"{value:.3f}".replace("-", MINUS)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def interval(value: Interval | None) -> str:
    """Write an estimate with its interval: ``"0.562 [0.559, 0.565]"``."""
    if value is None or math.isnan(value.estimate):
        return NOTHING
    if math.isnan(value.low) or math.isnan(value.high):
        return number(value.estimate)
    return f"{number(value.estimate)} [{number(value.low)}, {number(value.high)}]"


def percent(share: float) -> str:
    """Write a share in percent: whole ones, or one digit below one percent; no line breaks before the sign.

    Example:
        >>> [percent(share).replace("\N{NO-BREAK SPACE}", " ") for share in (0.562, 0.004, 2e-6, 0.0)]
        ['56 %', '0.4 %', 'less than 0.1 %', '0 %']
    """
    if math.isnan(share):
        return NOTHING
    space = "\N{NO-BREAK SPACE}"
    if share == 0 or share >= 0.01:
        return f"{100 * share:.0f}{space}%"
    return f"less than 0.1{space}%" if share < 0.001 else f"{100 * share:.1f}{space}%"


def signed(offset: int) -> str:
    """Write an offset with its sign; the middle one, 0, has none."""
    return f"{offset:+d}".replace("-", MINUS) if offset else "0"


def one_line(text: str, longest: int = 28) -> str:
    """Make any text fit a label: one line, printable, cut at ``longest`` characters."""
    text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _known(value: float) -> float:
    """Let what is not known come last in a comparison."""
    return -math.inf if math.isnan(value) else value


def _at_most(size: float) -> str:
    return "below 0.001" if size < 0.001 else number(size)


def _spread(pair: Interval) -> str:
    return f"pair bias {number(pair.estimate)}, 95\N{NO-BREAK SPACE}% interval {number(pair.low)} to {number(pair.high)}"


def _favour(k: int, bias: float) -> str:
    """Say which slice of a pair is favoured, and how much."""
    place = "the slice" if k == 1 else f"the slice {k}"
    favoured, other = ("before", "after") if bias < 0 else ("after", "before")
    if abs(bias) > 0.99:
        return f"{place} {favoured} the middle gets the attention of its pair and the one {other} it none"
    ratio = (1 + abs(bias)) / (1 - abs(bias))
    times = f"{ratio:.2f}" if ratio < 1.5 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
    return f"{place} {favoured} the middle gets {times} times the attention of the one {other} it"
