"""A study in short as HTML, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from evenslice.report.base.tables import html_table
from evenslice.report.base.wording import NOTHING
from evenslice.report.study.wording import difference_text, judgement, metric_text
from evenslice.results import read_comparisons, read_pooled, score_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import ArmSummary, PooledArm, StudySummary


def study_html(summary: StudySummary) -> str:
    """Return how many runs are done, and each arm's score and its difference to the baseline's, pooled and one by one."""
    failed = f", {len(summary['failed'])} failed" if summary["failed"] else ""
    parts = [f"<p><b>{summary['finished']} of {summary['planned']} runs finished{failed}</b></p>"]
    for pooled in read_pooled(dict(summary)):
        if len(pooled.datasets) > 1:
            parts += _part(pooled.title, pooled.arms, summary["baseline"])
    for item in read_comparisons(dict(summary)):
        parts += _part(f"{item.dataset}, {item.architecture}", item.arms, summary["baseline"])
    return "".join(parts)


def _part(title: str, arms: Sequence[ArmSummary | PooledArm], baseline: str) -> list[str]:
    rows = [
        (
            arm.arm,
            metric_text(arm.score, arm),
            difference_text(arm.score, arm) if arm.differences else NOTHING,
            judgement(arm) if arm.differences else NOTHING,
        )
        for arm in arms
    ]
    score = score_title(arms[0].score, first=True)
    headings = ["arm", f"{score} [95 %]", f"minus {baseline}", "not inferior?"]
    return [f"<p>{escape(title)}</p>", html_table(headings, rows)]
