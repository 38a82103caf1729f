"""A survey in short as HTML, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from evenslice.report.base.tables import html_table
from evenslice.report.base.wording import interval

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


def headline(survey: SurveyResult) -> str:
    """Count the networks and verdicts of a survey in one sentence."""
    verdicts = [item.verdict for item in survey.measured]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts))]
    failed = [f"{len(survey.failed)} failed"] if survey.failed else []
    plural = "" if len(survey.networks) == 1 else "s"
    return f"{len(survey.networks)} network{plural}: {', '.join(counts + failed)}."
