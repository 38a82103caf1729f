"""A survey in short as HTML, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from evenslice.report.base.tables import html_table
from evenslice.report.base.wording import interval
from evenslice.report.survey.page import headline

if TYPE_CHECKING:
    from evenslice.results import SurveyResult


def survey_html(survey: SurveyResult) -> str:
    """Return how many networks are biased, and the figures of each."""
    table = html_table(
        ["network", "verdict", "shares", "directional bias [95 %]"],
        [
            (
                item.spec,
                item.verdict,
                " ".join(f"{share.estimate:.3f}" for share in item.shares),
                interval(item.directional_bias),
            )
            for item in survey.measured
        ],
    )
    failed = [(item.spec, item.error) for item in survey.failed]
    return f"<p><b>{escape(headline(survey))}</b></p>{table}{html_table(['network', 'failed'], failed)}"
