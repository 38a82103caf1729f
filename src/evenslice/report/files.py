"""Results written as a self-contained HTML page, as figures (SVG) and as tables (CSV).

    write_report(audits, "report.html")          # one page, of audits or of a survey
    write_report_files(found, folder)            # the page of any result, its figures and its tables
    write_study_report(results, "report.html")   # the same for a study, in place of those of an earlier call

Several audits (before and after, several strategies or methods) are shown side by side in the same figures and tables,
each in one colour throughout. They may have different numbers of slices.
"""

from __future__ import annotations

import base64
import glob
import hashlib
from html import escape
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, needs_extra, staged_file, staged_folder
from evenslice.report import audit_tables, study_tables, volume_tables
from evenslice.report.tables import Table, html_table
from evenslice.results import AuditResult, StressSummary, SurveyResult, VolumeAuditResult

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from types import ModuleType
    from typing import TypeAlias

    from evenslice.report.pictures import Panel
    from evenslice.report.style import Drawing
    from evenslice.results import StudyResults

    Drawn: TypeAlias = tuple[str, list[Drawing], dict[str, str]]

# Versions before 0.3 wrote figures as PNG too, and more of them.
AUDIT_FILES = (
    "report.html",
    *(
        f"figures/{name}.[sp][vn]g"
        for name in ("shares", "biases", "stress", "kernels-[0-9]*", "example-[0-9]*")
    ),
    *(f"tables/{name}.csv" for name in ("figures", "windows", "run")),
)
"""Patterns of the files that ``write_report_files`` writes of audits, or wrote in earlier versions."""

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
    """Return an audit, a survey, the summary of a study or an audit of whole volumes in short as HTML, for notebooks."""
    if isinstance(result, AuditResult):
        return audit_tables.audit_html(result)
    if isinstance(result, SurveyResult):
        sentence = audit_tables.survey_headline(result)
    elif isinstance(result, VolumeAuditResult):
        sentence = volume_tables.volume_sentence(result)
    else:
        sentence = study_tables.headline(result)
    return f"<p><b>{escape(sentence)}</b></p>{''.join(map(html_table, tables_of(result)))}"


def write_report(result: Sequence[AuditResult] | SurveyResult, path: str | os.PathLike[str]) -> Path:
    """Write the report of one or more audits, or of a survey, as a self-contained HTML file.

    The page needs no network and no other file; JavaScript is used only to step through the examples of audits.

    Args:
        result: one or more audits, shown in this order; or a survey of which at least one network was measured.
        path: the file to write; an existing file is replaced.

    Returns:
        The path of the file.

    Raises:
        ConfigError: there is no audit.
        OutputError: the file cannot be written.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    page = _draw(result)[0]
    with staged_file(path, force=True) as beside:
        beside.write_text(page, encoding="utf-8", errors="replace")
    return Path(path)


def write_report_files(
    result: Sequence[AuditResult] | SurveyResult | VolumeAuditResult | StudyResults,
    folder: Path,
    name: str = "report.html",
) -> None:
    """Write the page of a result, ``figures`` with its charts as SVG, and its tables as CSV into an existing folder.

    Raises:
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    page, charts, tables = _draw(result)
    from evenslice.report.style import settings, svg_text

    with settings():
        figures = {f"figures/{drawing.name}.svg": svg_text(drawing.figure) for drawing in charts}
    for file, text in {name: page, **figures, **tables}.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8", errors="replace", newline="")


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
    patterns = (glob.escape(path.name), *STUDY_FILES)
    with staged_folder(path.parent, patterns, documents=("summary.json",), force=True) as beside:
        write_report_files(results, beside, path.name)
    return path


def _draw(result: Any) -> Drawn:
    """Return the page of a result, its charts, and the texts of its tables by the names of their files."""
    need_report_extra("writing a report")
    from evenslice.report import charts, pictures, style

    with style.settings():
        if isinstance(result, SurveyResult):
            drawings = [charts.balance_figure(result)]
            page = _render("survey", audit_tables, result, drawings)
            return page, drawings, {"survey.csv": audit_tables.survey_csv(result)}
        if isinstance(result, VolumeAuditResult):
            drawings = [charts.profile_figure(result)]
            page = _render("volumes", volume_tables, result, drawings, pictures.slice_panels(result))
            return page, drawings, {}
        if isinstance(result, list | tuple):
            if not result:
                raise ConfigError("the report needs one or more audits, got none")
            drawings = charts.audit_charts(result)
            page = _render("audit", audit_tables, result, drawings, pictures.window_panels(result))
            return page, drawings, audit_tables.csv_tables(result)
        drawings = charts.study_charts(result)
        page = _render("study", study_tables, result, drawings, pictures.outlined_panels(result))
        return page, drawings, study_tables.csv_tables(result)


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


def _render(
    name: str, found: ModuleType, result: Any, drawings: Sequence[Drawing], panels: Sequence[Panel] = ()
) -> str:
    """Fill a template of the package, which calls what a module found of the result; all inserted text is escaped."""
    import jinja2

    from evenslice.report import pictures, style

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evenslice.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (files("evenslice.report") / "templates" / "audit.js").read_text(encoding="utf-8")
    return environment.get_template(f"{name}.html").render(
        found=found,
        result=result,
        theme=style.theme_sheet(),
        colour=style.colour_variable,
        tone=Table.tone,
        charts=[(drawing, style.inline_svg(drawing)) for drawing in drawings],
        panels=panels,
        images=pictures.image_names(panels),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
