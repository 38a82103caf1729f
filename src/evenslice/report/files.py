"""Results written as an HTML page, figures and tables.

    write_report(audits, "report.html")          # one self-contained page
    write_figures(audits, "figures")             # the charts of the page, as SVG
    write_tables(audits, "tables")               # statistics, windows and settings, as CSV
    write_study_report(results, "report.html")   # the page of a study, with its figures and tables beside it
    write_survey_report(survey, "report.html")   # the page of a survey

Several audits (before and after, several strategies or methods) are shown side by side in the same figures and tables,
each in one colour throughout. They may have different numbers of slices.
"""

from __future__ import annotations

from glob import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, needs_extra, staged_file, staged_folder
from evenslice.report.audit_tables import TABLE_FILES, csv_tables
from evenslice.report.study_tables import TABLE_FILES as STUDY_TABLE_FILES, csv_tables as study_csv_tables

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from evenslice.report.style import Drawing
    from evenslice.results import AuditResult, StudyResults, SurveyResult

__all__ = [
    "FIGURE_FILES",
    "need_report_extra",
    "write_figures",
    "write_report",
    "write_study_report",
    "write_survey_figures",
    "write_survey_report",
    "write_tables",
]

_NUMBERS = ("[0-9]", "[0-9][0-9]", "[0-9][0-9][0-9]")
_EARLIER = (".svg", ".png")  # earlier versions wrote both, and examples too


def _figure_files(*names: str) -> tuple[str, ...]:
    numbered = [f"{name[:-1]}{number}" for name in names if name.endswith("*") for number in _NUMBERS]
    plain = [name for name in names if not name.endswith("*")]
    return tuple(f"{name}{suffix}" for name in (*plain, *numbered) for suffix in _EARLIER)


FIGURE_FILES = _figure_files("shares", "biases", "stress", "kernels-*", "example-*")
"""Patterns of the files that ``write_figures`` writes, or wrote in earlier versions."""

STUDY_FILES = (
    *(
        f"figures/{name}"
        for name in _figure_files("forest", "learning", "trajectories", "saliency", "stress", "example-*")
    ),
    *(f"tables/{name}" for name in (*STUDY_TABLE_FILES, "curves.csv", "saliency.csv")),
)
"""Patterns of the files that ``write_study_report`` writes beside the page, or wrote in earlier versions."""


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
    _check_not_empty(audits)
    need_report_extra("writing a report")
    from evenslice.report.pages import audit_page
    from evenslice.report.style import settings

    with settings():
        return _write_page(audit_page(audits), path)


def write_figures(audits: Sequence[AuditResult], folder: str | os.PathLike[str]) -> list[Path]:
    """Write every chart of the report as ``NAME.svg``.

    Args:
        audits: one or more.
        folder: where to write; it is created if missing, and figures of an earlier report in it are replaced.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: there is no audit.
        OutputError: the files cannot be written.
        MissingExtraError: Matplotlib is not installed.
    """
    _check_not_empty(audits)
    need_report_extra("drawing figures")
    from evenslice.report.audit_charts import audit_charts
    from evenslice.report.style import settings

    with settings(), staged_folder(folder, FIGURE_FILES, force=True) as beside:
        return [Path(folder) / name for name in _save_figures(audit_charts(audits), beside)]


def write_tables(audits: Sequence[AuditResult], folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``figures.csv``, ``windows.csv`` and ``run.csv``.

    ``figures.csv`` has a row for every statistic of every audit (audit, figure, offset, estimate, low, high, judged,
    state, class, volume), those of each judged class and each volume too; ``windows.csv`` a row for every window, with its
    place and what was measured, by offset (``share_-1``, ``reliance_-1``, ``mismatch_1``); ``run.csv`` a row for every
    setting and a column for every audit. Undefined values are left empty.

    Args:
        audits: one or more.
        folder: where to write; it is created if missing, and tables of an earlier report in it are replaced.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: there is no audit.
        OutputError: the files cannot be written.
    """
    _check_not_empty(audits)
    with staged_folder(folder, TABLE_FILES, force=True) as beside:
        _save_tables(csv_tables(audits), beside)
    return [Path(folder) / name for name in TABLE_FILES]


def write_study_report(results: StudyResults, path: str | os.PathLike[str]) -> Path:
    """Write the page of a study as a self-contained HTML file, with the folders ``figures`` and ``tables`` beside it.

    The page needs no network, no other file and no JavaScript. ``figures`` holds its charts as SVG. ``tables``
    holds ``arms.csv`` (a row for every mean and paired difference of every arm) and ``pooled.csv`` (the same over all data
    sets).

    Args:
        results: the results of the study; see ``load_study``.
        path: the file to write; the files of an earlier call are replaced.

    Returns:
        The path of the file.

    Raises:
        OutputError: the files cannot be written.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    path = Path(path)
    need_report_extra("the page of a study")
    from evenslice.report.pages import study_page
    from evenslice.report.study_charts import study_charts
    from evenslice.report.style import settings

    patterns = (escape(path.name), *STUDY_FILES)
    with settings(), staged_folder(path.parent, patterns, documents=("summary.json",), force=True) as beside:
        charts = study_charts(results)
        (beside / path.name).write_text(study_page(results, charts), encoding="utf-8", errors="replace")
        for name in ("figures", "tables"):
            (beside / name).mkdir()
        _save_figures(charts, beside / "figures")
        _save_tables(study_csv_tables(results), beside / "tables")
    return path


def write_survey_report(survey: SurveyResult, path: str | os.PathLike[str]) -> Path:
    """Write the page of a survey as a self-contained HTML file.

    The page needs no network, no other file and no JavaScript.

    Args:
        survey: the result of the survey; at least one network was measured.
        path: the file to write; an existing file is replaced.

    Returns:
        The path of the file.

    Raises:
        OutputError: the file cannot be written.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    need_report_extra("the page of a survey")
    from evenslice.report.pages import survey_page
    from evenslice.report.style import settings

    with settings():
        return _write_page(survey_page(survey), path)


def write_survey_figures(survey: SurveyResult, folder: str | os.PathLike[str]) -> None:
    """Write the chart of a survey as ``balance.svg`` into a folder, which is created if missing.

    Raises:
        OutputError: the files cannot be written.
        MissingExtraError: Matplotlib is not installed.
    """
    need_report_extra("the figures of a survey")
    from evenslice.report.style import settings
    from evenslice.report.survey_chart import balance_figure

    with settings(), staged_folder(folder, _figure_files("balance"), force=True) as beside:
        _save_figures([balance_figure(survey)], beside)


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


def _write_page(text: str, path: str | os.PathLike[str]) -> Path:
    with staged_file(path, force=True) as beside:
        beside.write_text(text, encoding="utf-8", errors="replace")
    return Path(path)


def _save_figures(drawings: Sequence[Drawing], folder: Path) -> list[str]:
    """Save charts and return the names of the files."""
    from evenslice.report.style import svg_text

    for drawing in drawings:
        (folder / f"{drawing.name}.svg").write_text(svg_text(drawing.figure), encoding="utf-8")
    return [f"{drawing.name}.svg" for drawing in drawings]


def _save_tables(tables: Mapping[str, str], folder: Path) -> None:
    for name, text in tables.items():
        (folder / name).write_text(text, encoding="utf-8", errors="replace", newline="")


def _check_not_empty(audits: Sequence[AuditResult]) -> None:
    if not audits:
        raise ConfigError("the report needs one or more audits, got none")
