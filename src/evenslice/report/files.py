"""Results to one HTML page, to figures and to tables.

    write_report(audits, "report.html")    # one self-contained page; it asks nothing of any network
    write_figures(audits, "figures")       # every figure of the page, as PNG and SVG
    write_tables(audits, "tables")         # every figure as a number, every window, and what was run, as CSV
    write_study_report(results, "report.html")    # the page of a study, its figures and tables beside it
    write_survey_report(survey, "report.html")    # the page of a survey

Several audits (before and after, several strategies or methods) stand side by side in the same figures and tables, each
in one colour throughout. They may have different numbers of slices.
"""

from __future__ import annotations

from glob import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, needs_extra, staged_file, staged_folder
from evenslice.report.audit.tables import csv_tables
from evenslice.report.base.wording import verdict_sentence
from evenslice.report.study.tables import TABLES as STUDY_TABLES
from evenslice.report.study.tables import csv_tables as study_csv_tables
from evenslice.report.survey.tables import survey_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from evenslice.report.base.drawing import Drawing
    from evenslice.results import AuditResult, StudyResults, SurveyResult

__all__ = [
    "FIGURES",
    "TABLES",
    "need_drawing",
    "survey_csv",
    "verdict_sentence",
    "write_figures",
    "write_report",
    "write_study_report",
    "write_survey_figures",
    "write_survey_report",
    "write_tables",
]

FIGURES = tuple(
    f"{name}.{kind}"
    for name in ("shares", "biases", "course", "kernels-*", "example-*")
    for kind in ("png", "svg")
)
"""Patterns of everything that ``write_figures`` writes."""

TABLES = ("figures.csv", "windows.csv", "run.csv")
"""Names of everything that ``write_tables`` writes."""

STUDY_RESULTS = (
    *(
        f"figures/{name}.{kind}"
        for name in ("forest", "learning", "trajectories", "saliency", "example-*")
        for kind in ("png", "svg")
    ),
    *(f"tables/{name}" for name in STUDY_TABLES),
)
"""Patterns of everything that ``write_study_report`` writes beside the page."""


def write_report(audits: Sequence[AuditResult], path: str | os.PathLike[str]) -> Path:
    """Write the report of some audits as one self-contained HTML file.

    The page needs no network, no other file and, but for the slider through the examples, no JavaScript.

    Args:
        audits: one audit or more; they keep their order.
        path: the file to write; a file of that name is replaced.

    Returns:
        The path of the file.

    Raises:
        ConfigError: there is no audit.
        OutputError: the file cannot be written.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    _need_audits(audits)
    with needs_extra("report", "writing a report"):
        from evenslice.report.audit.page import render
    text = render(audits)
    with staged_file(path, force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def write_figures(audits: Sequence[AuditResult], folder: str | os.PathLike[str]) -> list[Path]:
    """Write every figure of the report as ``NAME.png`` (150 dots per inch) and ``NAME.svg``.

    Args:
        audits: one audit or more.
        folder: where to write; it is made if need be, and the figures of an earlier report that it holds are replaced.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: there is no audit.
        OutputError: the files cannot be written.
        MissingExtraError: Matplotlib is not installed.
    """
    _need_audits(audits)
    with needs_extra("report", "drawing figures"):
        from evenslice.report.audit.figures import draw
        from evenslice.report.base.style import settings
    with settings():
        drawings = draw(audits)
        with staged_folder(folder, FIGURES, force=True) as beside:
            _save_figures(drawings, beside)
    return [Path(folder) / f"{drawing.name}{suffix}" for drawing in drawings for suffix in (".png", ".svg")]


def write_tables(audits: Sequence[AuditResult], folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``figures.csv``, ``windows.csv`` and ``run.csv``.

    ``figures.csv`` has a row for every figure of every audit (audit, figure, offset, estimate, low, high),
    ``windows.csv`` a row for every window, ``run.csv`` a row for every setting and a column for every audit. What does
    not exist is left empty.

    Args:
        audits: one audit or more.
        folder: where to write; it is made if need be, and the tables of an earlier report that it holds are replaced.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: there is no audit.
        OutputError: the files cannot be written.
    """
    _need_audits(audits)
    tables = csv_tables(audits)
    with staged_folder(folder, list(tables), force=True) as beside:
        for name, text in tables.items():
            (beside / name).write_text(text, encoding="utf-8", newline="")
    return [Path(folder) / name for name in tables]


def write_study_report(results: StudyResults, path: str | os.PathLike[str]) -> Path:
    """Write the page of a study as one self-contained HTML file, and beside it the folders ``figures`` and ``tables``.

    The page needs no network, no other file and no JavaScript. ``figures`` gets every figure of it as PNG and SVG.
    ``tables`` gets ``arms.csv`` (a row for every mean and paired difference of every arm), ``curves.csv`` (a row for
    every step that a run logged) and ``saliency.csv`` (percentiles by run and slice).

    Args:
        results: what the study found; see ``study_results.load_study``.
        path: the file to write; what an earlier call wrote is replaced.

    Returns:
        The path of the file.

    Raises:
        OutputError: the files cannot be written.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    path = Path(path)
    need_drawing("the page of a study")
    from evenslice.report.base.style import settings
    from evenslice.report.study.page import draw_charts, draw_examples, render

    with settings(), staged_folder(path.parent, (escape(path.name), *STUDY_RESULTS), force=True) as beside:
        charts = draw_charts(results)
        (beside / path.name).write_text(render(results, charts), encoding="utf-8")
        (beside / "figures").mkdir()
        _save_figures([*charts, *draw_examples(results)], beside / "figures")
        (beside / "tables").mkdir()
        for name, text in study_csv_tables(results).items():
            (beside / "tables" / name).write_text(text, encoding="utf-8", newline="")
    return path


def write_survey_report(survey: SurveyResult, path: str | os.PathLike[str]) -> Path:
    """Write the page of a survey as one self-contained HTML file.

    The page needs no network, no other file and no JavaScript.

    Args:
        survey: what it found; at least one network was measured.
        path: the file to write; a file of that name is replaced.

    Returns:
        The path of the file.

    Raises:
        OutputError: the file cannot be written.
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    need_drawing("the page of a survey")
    from evenslice.report.survey.page import render_survey

    text = render_survey(survey)
    with staged_file(path, force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def write_survey_figures(survey: SurveyResult, folder: str | os.PathLike[str]) -> None:
    """Write the figures of a survey as ``NAME.png`` and ``NAME.svg`` into a folder, which is made if need be.

    Raises:
        OutputError: the files cannot be written.
        MissingExtraError: Matplotlib is not installed.
    """
    need_drawing("the figures of a survey")
    from evenslice.report.base.style import settings
    from evenslice.report.survey.page import draw_charts

    with settings():
        drawings = draw_charts(survey)
        names = [f"{drawing.name}{suffix}" for drawing in drawings for suffix in (".png", ".svg")]
        with staged_folder(folder, names, force=True) as beside:
            _save_figures(drawings, beside)


def need_drawing(what: str) -> None:
    """Make sure that pages and figures can be made, before a long work that ends with one.

    Args:
        what: the thing that needs it, as it should read in the message.

    Raises:
        MissingExtraError: Jinja2 or Matplotlib is not installed.
    """
    with needs_extra("report", what):
        for name in ("jinja2", "matplotlib"):
            import_module(name)


def _save_figures(drawings: Iterable[Drawing], folder: Path) -> None:
    from evenslice.report.base.style import NO_METADATA

    for drawing in drawings:
        drawing.figure.savefig(folder / f"{drawing.name}.png", dpi=150, metadata={"Software": None})
        drawing.figure.savefig(folder / f"{drawing.name}.svg", metadata=NO_METADATA)


def _need_audits(audits: Sequence[AuditResult]) -> None:
    if not audits:
        raise ConfigError("the report: got no audit; give one or more")
