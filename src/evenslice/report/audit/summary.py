"""An audit in short as HTML, for notebooks and for labels of Qt, which knows a part of HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from evenslice.report.audit.agreement import methods_sentence
from evenslice.report.audit.questions import three_questions
from evenslice.report.audit.wording import verdict_sentence
from evenslice.report.base.tables import html_table
from evenslice.report.base.wording import counted, interval, signed

if TYPE_CHECKING:
    from evenslice.results import AuditResult

COLOURS = {"symmetric": "#3fae5a", "balanced": "#3fae5a", "biased": "#e8543f", "inconclusive": "#d9a21b"}
OTHER = "#8a8f98"


def audit_html(audit: AuditResult) -> str:
    """Return the verdict, what decided it or is open, whether the methods agree, and the figures."""
    decision = audit.statistics.decided_by
    what = "open" if audit.verdict == "inconclusive" else "decided by"
    decided = "" if decision is None else f"<br>{what}: {_decision(audit)}"
    style = f"font-size: x-large; font-weight: bold; color: {COLOURS.get(audit.verdict, OTHER)}"
    sentences = [verdict_sentence(audit), methods_sentence([audit])]
    parts = [
        f'<p><span style="{style}">{escape(audit.verdict)}</span>{decided}</p>',
        *(f"<p>{escape(sentence)}</p>" for sentence in sentences if sentence),
        html_table(
            ["slice", "share of the attention [95 %]"],
            [(signed(k), interval(share)) for k, share in zip(audit.offsets, audit.shares, strict=True)],
        ),
        html_table(["question", "found", "figures [95 %]"], _questions(audit)),
        f"<p>{escape(_extent(audit))}</p>",
    ]
    return "".join(parts)


def _extent(audit: AuditResult) -> str:
    """Return the number of windows, and how long they took and why there are no more, as far as it is known."""
    seconds, stopped = audit.run.seconds, audit.run.stopped
    text = counted(len(audit.measurements.volume), "window")
    text += "" if seconds is None else f" in {seconds:.0f} s"
    return f"{text}; {stopped}" if stopped else text


def _decision(audit: AuditResult) -> str:
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


def _questions(audit: AuditResult) -> list[tuple[str, str, str]]:
    """Return a row for each figure; the first of a question says what its figures together show."""
    rows = []
    for question in three_questions(audit):
        name, found = question.name, question.found
        for figure in question.figures:
            rows.append(
                (name, found, f"{figure.label} {interval(figure.value, figure.tolerance, -figure.tolerance)}")
            )
            name = found = ""
    return rows
