"""The verdict of an audit as a small page for a label of Qt, which knows a part of HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from evenslice.report import interval, methods_sentence, signed, three_questions, verdict_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.auditing import Audit

__all__ = ["verdict_page"]

COLOURS = {"symmetric": "#3fae5a", "balanced": "#3fae5a", "biased": "#e8543f", "inconclusive": "#d9a21b"}
OTHER = "#8a8f98"


def verdict_page(audit: Audit) -> str:
    """Return the verdict, what decided it, whether the methods agree, and the figures, as rich text."""
    decision = audit.statistics.decided_by
    decided = "" if decision is None else f"<br>decided by: {_decision(audit)}"
    style = f"font-size: x-large; font-weight: bold; color: {COLOURS.get(audit.verdict, OTHER)}"
    sentences = [verdict_sentence(audit), methods_sentence([audit])]
    parts = [
        f'<p><span style="{style}">{escape(audit.verdict)}</span>{decided}</p>',
        *(f"<p>{escape(sentence)}</p>" for sentence in sentences if sentence),
        _table(
            ["slice", "share of the attention [95 %]"],
            [(signed(k), interval(share)) for k, share in zip(audit.offsets, audit.shares, strict=True)],
        ),
        _table(["question", "found", ""], _questions(audit)),
        f"<p>{len(audit.measurements.volume)} windows in {audit.run.seconds or 0:.0f} s; {escape(audit.run.stopped)}</p>",
    ]
    return "".join(parts)


def _decision(audit: Audit) -> str:
    found = audit.statistics.decided_by
    if found is None:
        return ""
    parts: list[str] = [found.question]
    if found.method:
        parts.append(f"by {found.method.replace('_', ' ')}")
    if found.class_number is not None:
        parts.append(f"of class {found.class_number}")
    if found.offset is not None:
        parts.append(f"slices ±{found.offset}")
    return escape(", ".join(parts))


def _questions(audit: Audit) -> list[tuple[str, str, str]]:
    return [
        (question.name, interval(figure.value), f"{figure.label}, {question.found}")
        for question in three_questions(audit)
        for figure in question.figures
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [
        *[f"<tr>{''.join(f'<th align=left>{escape(text)}&nbsp;&nbsp;</th>' for text in headings)}</tr>"],
        *(f"<tr>{''.join(f'<td>{escape(text)}&nbsp;&nbsp;</td>' for text in row)}</tr>" for row in rows),
    ]
    return f"<table>{''.join(cells)}</table>" if rows else ""
