"""Every figure of the report, each drawn once for the page and for files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenslice.report.audit.charts import biases_figure, course_figure, shares_figure
from evenslice.report.audit.kernels import kernel_figures
from evenslice.report.audit.pictures import example_figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.report.base.drawing import Drawing
    from evenslice.results import AuditResult


def draw(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw everything: the charts, and the example windows that the page shows behind its slider."""
    return draw_charts(audits) + example_figures(audits)


def draw_charts(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw every chart that the audits have something for."""
    charts = [shares_figure(audits)]
    if any(audit.pairs for audit in audits):
        charts += [biases_figure(audits), course_figure(audits)]
    return charts + kernel_figures(audits)
