"""Results written as a self-contained HTML page, as figures (SVG) and as tables (CSV).

    write_report(audits, "report.html")          # one page
    write_audit_report(audits, folder)           # the page, its figures and its tables
    write_study_report(results, "report.html")   # the page of a study, with its figures and tables beside it
    write_survey_report(survey, "report.html")   # the page of a survey
    write_volume_report(found, folder)           # the page of an audit of whole volumes, with its chart

Several audits (before and after, several strategies or methods) are shown side by side in the same figures and tables,
each in one colour throughout. They may have different numbers of slices.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict
from glob import escape
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, needs_extra, staged_file, staged_folder
from evenslice.report import audit_tables, study_tables, volume_tables
from evenslice.report.tables import Table, flatten, run_table
from evenslice.results import AuditResult, StressSummary, SurveyResult, VolumeAuditResult

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from evenslice.report.style import Drawing
    from evenslice.results import StudyResults

# Versions before 0.3 wrote figures as PNG too, and more of them.
AUDIT_FILES = (
    "report.html",
    *(
        f"figures/{name}.[sp][vn]g"
        for name in ("shares", "biases", "stress", "kernels-[0-9]*", "example-[0-9]*")
    ),
    *(f"tables/{name}.csv" for name in ("figures", "windows", "run")),
)
"""Patterns of the files that ``write_audit_report`` writes, or wrote in earlier versions."""

STUDY_FILES = (
    *(
        f"figures/{name}.[sp][vn]g"
        for name in ("forest", "learning", "trajectories", "saliency", "stress", "example-[0-9]*")
    ),
    *(f"tables/{name}.csv" for name in ("arms", "pooled", "curves", "saliency")),
)
"""Patterns of the files that ``write_study_report`` writes beside the page, or wrote in earlier versions."""


def tables_of(result: Any) -> list[Table]:
    """Return the tables of a result, as commands print them.

    Args:
        result: a survey, the summary of a study as its file holds it, audits, the cost of disturbed slices, or an audit of
            whole volumes.
    """
    if isinstance(result, SurveyResult):
        return audit_tables.tables_of_survey(result)
    if isinstance(result, StressSummary):
        return [audit_tables.stress_table(result)]
    if isinstance(result, VolumeAuditResult):
        return volume_tables.tables_of_volumes(result)
    if isinstance(result, list):
        return audit_tables.tables_of_audits(result)
    return study_tables.tables_of_study(result)


def html_of(result: Any) -> str:
    """Return an audit, a survey or the summary of a study in short as HTML, for notebooks and for labels of Qt."""
    if isinstance(result, SurveyResult):
        return audit_tables.survey_html(result)
    if isinstance(result, AuditResult):
        return audit_tables.audit_html(result)
    if isinstance(result, VolumeAuditResult):
        return volume_tables.volumes_html(result)
    return study_tables.study_html(result)


def write_report(audits: Sequence[AuditResult], path: str | os.PathLike[str]) -> Path:
    """Write the report of one or more audits as a self-contained HTML file.

    The page needs no network and no other file; JavaScript is used only to step through the examples.

    Args:
        audits: one or more, shown in this order.
        path: the file to write; an existing file is replaced.

    Returns:
        The path of the file.

    Raises:
        ConfigError: there is no audit.
        OutputError: the file cannot be written.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    return _write_page(_draw_audits(audits)[0], path)


def write_audit_report(audits: Sequence[AuditResult], folder: Path) -> None:
    """Write ``report.html``, ``figures`` with its charts and ``tables`` (see ``audit_tables.csv_tables``) into a folder.

    Raises:
        ConfigError: there is no audit.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    page, charts = _draw_audits(audits)
    _write_folder(folder, "report.html", page, charts, audit_tables.csv_tables(audits))


def _draw_audits(audits: Sequence[AuditResult]) -> tuple[str, list[Drawing]]:
    """Return the page of audits, and its charts."""
    if not audits:
        raise ConfigError("the report needs one or more audits, got none")
    need_report_extra("writing a report")
    from evenslice.report.charts import audit_charts
    from evenslice.report.pictures import image_names, window_panels
    from evenslice.report.style import settings

    script, panels = _template("audit.js"), window_panels(audits)
    with settings():
        charts = audit_charts(audits)
        page = _render(
            "audit",
            charts,
            audits=audits,
            found=audit_tables,
            tables=[
                *audit_tables.stress_tables(audits),
                audit_tables.statistics_table(audits),
                audit_tables.settings_table(audits),
            ],
            panels=panels,
            images=image_names(panels),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        )
    return page, charts


def write_study_report(results: StudyResults, path: str | os.PathLike[str]) -> Path:
    """Write the page of a study as a self-contained HTML file, with the folders ``figures`` and ``tables`` beside it.

    The page needs no network, no other file and no JavaScript. ``figures`` holds its charts as SVG. ``tables``
    holds ``arms.csv`` (a row for every mean and paired difference of every arm) and ``pooled.csv`` (the same over all data
    sets).

    Args:
        results: the results of the study; see ``StudyResults.load``.
        path: the file to write; the files of an earlier call are replaced.

    Returns:
        The path of the file.

    Raises:
        OutputError: the files cannot be written.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    path = Path(path)
    need_report_extra("the page of a study")
    from evenslice.report.charts import study_charts
    from evenslice.report.pictures import image_names, outlined_panels
    from evenslice.report.style import settings

    patterns = (escape(path.name), *STUDY_FILES)
    with settings(), staged_folder(path.parent, patterns, documents=("summary.json",), force=True) as beside:
        charts, panels = study_charts(results), outlined_panels(results)
        page = _render(
            "study",
            charts,
            headline=study_tables.headline(results),
            findings=study_tables.findings(results),
            arms=study_tables.arm_tables(results),
            panels=panels,
            images=image_names(panels),
            tables=study_tables.statistics_tables(results),
            failed=study_tables.failed_table(results),
            run=study_tables.settings_table(results),
            config=results.config,
        )
        _write_folder(beside, path.name, page, charts, study_tables.csv_tables(results))
    return path


def write_survey_report(
    survey: SurveyResult, path: str | os.PathLike[str], *, figures: Path | None = None
) -> Path:
    """Write the page of a survey as a self-contained HTML file.

    The page needs no network, no other file and no JavaScript.

    Args:
        survey: the result of the survey; at least one network was measured.
        path: the file to write; an existing file is replaced.
        figures: a folder to make for its chart, ``balance.svg``.

    Returns:
        The path of the file.

    Raises:
        OutputError: the file cannot be written.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    need_report_extra("the page of a survey")
    from evenslice.report.charts import balance_figure
    from evenslice.report.style import settings

    with settings():
        charts = [balance_figure(survey)]
        page = _render(
            "survey",
            charts,
            headline=audit_tables.survey_headline(survey),
            reading=audit_tables.SURVEY_READING,
            networks=audit_tables.networks_table(survey),
            failed=audit_tables.failed_networks_table(survey),
            run=run_table(["Value"], [dict(flatten(asdict(survey.run)))]),
        )
    if figures is not None:
        _write_figures(figures, charts)
    return _write_page(page, path)


def write_volume_report(result: VolumeAuditResult, folder: Path) -> None:
    """Write ``report.html`` and its chart, ``figures/profile.svg``, of an audit of whole volumes into a folder.

    Raises:
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    need_report_extra("the page of an audit of whole volumes")
    from evenslice.report.charts import profile_figure
    from evenslice.report.pictures import image_names, slice_panels
    from evenslice.report.style import settings

    panels = slice_panels(result)
    with settings():
        charts = [profile_figure(result)]
        page = _render(
            "volumes",
            charts,
            result=result,
            sentence=volume_tables.volume_sentence(result),
            context=volume_tables.method_and_volumes(result),
            tables=volume_tables.tables_of_volumes(result),
            panels=panels,
            images=image_names(panels),
            run=run_table(
                ["Value"],
                [{name: text for name, text in flatten(result.to_dict()) if not name.startswith("axes")}],
            ),
        )
    _write_texts(folder, {"report.html": page})
    _write_figures(folder / "figures", charts)


def need_report_extra(what: str) -> None:
    """Check that pages and figures can be made; call it before long work that ends with one.

    Args:
        what: the task that needs it, as it should read in the message.

    Raises:
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    with needs_extra("report", what):
        for name in ("jinja2", "matplotlib"):
            import_module(name)


def _render(name: str, drawings: Sequence[Drawing], **values: Any) -> str:
    """Fill a template of the package, which has a style sheet of its name; all inserted text is escaped."""
    import jinja2

    from evenslice.report import style

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evenslice.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html").render(
        sheet=style.theme_sheet() + _template("base.css") + _template(f"{name}.css"),
        colour=style.colour_variable,
        tone=Table.tone,
        charts=[(drawing, style.inline_svg(drawing)) for drawing in drawings],
        **values,
    )


def _template(name: str) -> str:
    return (files("evenslice.report") / "templates" / name).read_text(encoding="utf-8")


def _write_page(text: str, path: str | os.PathLike[str]) -> Path:
    with staged_file(path, force=True) as beside:
        beside.write_text(text, encoding="utf-8", errors="replace")
    return Path(path)


def _write_folder(
    folder: Path, name: str, page: str, charts: Sequence[Drawing], tables: Mapping[str, str]
) -> None:
    _write_texts(folder, {name: page})
    _write_figures(folder / "figures", charts)
    _write_texts(folder / "tables", tables)


def _write_figures(folder: Path, charts: Sequence[Drawing]) -> None:
    from evenslice.report.style import settings, svg_text

    with settings():
        _write_texts(folder, {f"{drawing.name}.svg": svg_text(drawing.figure) for drawing in charts})


def _write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", errors="replace", newline="")
