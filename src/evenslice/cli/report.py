"""evenslice report: rebuild a report from its results."""

from pathlib import Path
from typing import Annotated

import typer

from evenslice.cli import options
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import show_audits, show_study, show_survey


@grouped
def report(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a study, a survey, or audits.")],
    json: options.Json = False,
) -> None:
    """Rebuild the report of a study, a survey, or all audits in DIR and its immediate subfolders."""
    from evenslice._core import ConfigError, staged_folder
    from evenslice.auditing import Survey, load_audits
    from evenslice.cli.comparison import AUDITS
    from evenslice.report import AUDIT_FILES, write_audit_report, write_study_report
    from evenslice.results import is_study, is_survey, load_study

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name one that evenslice audit, study or survey wrote")
    if is_study(folder):
        results = load_study(folder)
        write_study_report(results, folder / "report.html")
        show_study(results.summary, folder, json=json)
    elif is_survey(folder):
        found = Survey.load(folder)
        found.save(folder, force=True)
        show_survey(found, folder, json=json)
    else:
        audits = load_audits(folder)
        documents = (*AUDITS, *(f"*/{pattern}" for pattern in AUDITS))
        with staged_folder(folder, AUDIT_FILES, documents=documents, force=True) as staged:
            write_audit_report(audits, staged)
        show_audits(audits, folder, json=json)
