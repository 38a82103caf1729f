"""An audit in short as HTML, for notebooks and for labels of Qt, which knows a part of HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from evenslice.report.audit.answers import four_answers
from evenslice.report.audit.sentences import (
    advice_sentence,
    extent_sentence,
    setting_lines,
    verdict_sentence,
)
from evenslice.report.base.tables import html_table

if TYPE_CHECKING:
    from evenslice.results import AuditResult

COLOURS = {"symmetric": "#3fae5a", "balanced": "#3fae5a", "biased": "#e8543f", "inconclusive": "#d9a21b"}
OTHER = "#8a8f98"


def audit_html(audit: AuditResult) -> str:
    """Return the verdict in a word and in a sentence, the four answers, and what to do."""
    style = f"font-size: x-large; font-weight: bold; color: {COLOURS.get(audit.verdict, OTHER)}"
    rows = [(item.name, item.verdict, item.value) for item in four_answers(audit)]
    sentences = [extent_sentence(audit), advice_sentence(audit), *setting_lines([audit])]
    return "".join(
        [
            f'<p><span style="{style}">{escape(audit.verdict)}</span></p>',
            f"<p>{escape(verdict_sentence(audit))}</p>",
            html_table(["question", "found", "figure [95 %]"], rows),
            *(f"<p>{escape(text)}</p>" for text in sentences if text),
        ]
    )
