"""The pages of audits, studies and surveys, as self-contained HTML."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from evenslice.report import audit_answers, audit_tables, study_tables, style, survey_tables
from evenslice.report.audit_charts import audit_charts
from evenslice.report.pictures import image_names, outlined_panels, window_panels
from evenslice.report.stress_tables import stress_table, stressed
from evenslice.report.survey_chart import balance_figure
from evenslice.report.tables import flatten, run_table, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.report.style import Drawing
    from evenslice.results import AuditResult, StudyResults, SurveyResult


def audit_page(audits: Sequence[AuditResult]) -> str:
    """Return the page of one or more audits; call it inside ``style.settings()``."""
    script, panels = _template("audit.js"), window_panels(audits)
    losses = [stress_table(stress, name if len(audits) > 1 else "") for _, name, stress in stressed(audits)]
    return _render(
        "audit",
        audit_charts(audits),
        audits=audits,
        words=audit_answers,
        parts=audit_tables.part_tables(audits),
        panels=panels,
        images=image_names(panels),
        tables=[*losses, audit_tables.statistics_table(audits), audit_tables.settings_table(audits)],
        script=Markup(script),  # noqa: S704 - the package's own text
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def study_page(results: StudyResults, drawings: Sequence[Drawing]) -> str:
    """Return the page of a study with its charts; call it inside ``style.settings()``."""
    panels = outlined_panels(results)
    return _render(
        "study",
        drawings,
        headline=study_tables.headline(results),
        arms=study_tables.arm_tables(results.summary),
        panels=panels,
        images=image_names(panels),
        tables=study_tables.statistics_tables(results),
        failed=study_tables.failed_table(results.summary),
        run=study_tables.settings_table(results),
        config=results.config,
    )


def survey_page(survey: SurveyResult) -> str:
    """Return the page of a survey; call it inside ``style.settings()``."""
    return _render(
        "survey",
        [balance_figure(survey)],
        headline=survey_tables.headline(survey),
        reading=survey_tables.READING,
        networks=survey_tables.survey_table(survey),
        failed=survey_tables.failed_networks(survey),
        run=run_table(["Value"], [dict(flatten(asdict(survey.run)))]),
    )


def _render(name: str, drawings: Sequence[Drawing], **values: Any) -> str:
    """Fill a template of the package, which has a style sheet of its name; all inserted text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evenslice.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheet = _themes() + _template("base.css") + _template(f"{name}.css")
    return environment.get_template(f"{name}.html").render(
        sheet=Markup(sheet),  # noqa: S704 - the package's own text
        colour=style.colour_variable,
        tone=tone,
        charts=[
            (drawing, style.inline_svg(drawing, "The numbers are in the tables below."))
            for drawing in drawings
        ],
        **values,
    )


def _template(name: str) -> str:
    return (files("evenslice.report") / "templates" / name).read_text(encoding="utf-8")


def _themes() -> str:
    """Return the colours of the figures as variables of the page, for light and dark backgrounds."""
    light, dark = (
        "".join(f"--{name}:{colours[ground]};" for name, colours in style.THEME.items()) for ground in (0, 1)
    )
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
