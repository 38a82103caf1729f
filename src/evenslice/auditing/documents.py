"""Audits and surveys as a user holds them: what ``evenslice.results`` keeps of them, and their pages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, staged_file, staged_folder
from evenslice.report import survey_csv, write_report, write_survey_figures, write_survey_report
from evenslice.results import SURVEY_FILES, AuditResult, SurveyResult

if TYPE_CHECKING:
    import os

__all__ = ["Audit", "Survey", "load_audits"]


class Audit(AuditResult):
    """What an audit found, with its page.

    The figures are at hand as attributes (``audit.verdict``, ``audit.directional_bias.low``); ``save`` and ``load``
    keep them in files, ``to_html`` writes the report. See ``evenslice.results.AuditResult`` for the attributes.
    """

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report of this one audit as a self-contained HTML file and return its path."""
        return write_report([self], path)


class Survey(SurveyResult):
    """What a survey found, with its table and page. See ``evenslice.results.SurveyResult`` for the attributes."""

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row a network as a CSV file, which is replaced if it is there, and return its path.

        ``energy_1`` .. ``energy_C`` belong to the channels in their order, which is red, green and blue for a network
        of photographs; ``share_-1`` and ``pair_1`` to offsets. What does not exist is left empty.
        """
        with staged_file(path, force=True) as beside:
            beside.write_text(survey_csv(self), encoding="utf-8", newline="")
        return Path(path)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as a self-contained HTML file, which is replaced if it is there, and return its path."""
        return write_survey_report(self, path)

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write ``survey.json``, ``survey.csv``, ``report.html`` and its figure as files into a folder.

        Args:
            folder: it is made where it does not exist.
            force: replace such files that the folder holds.

        Raises:
            OutputError: the folder holds such files and ``force`` is not given, or it cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        with staged_folder(folder, SURVEY_FILES, force=force) as beside:
            self.write(beside)

    def write(self, folder: Path) -> None:
        """Write the files of ``save`` into a folder that exists."""
        (folder / "survey.json").write_text(self.to_json(), encoding="utf-8")
        self.to_csv(folder / "survey.csv")
        self.to_html(folder / "report.html")
        write_survey_figures(self, folder / "figures")


def load_audits(folder: str | os.PathLike[str]) -> list[Audit]:
    """Read every audit kept in a folder and in the folders right below it, oldest first.

    Audits of the same name are told apart by the folder they lie in.

    Raises:
        ConfigError: there is no audit, or one that cannot be read.
    """
    folder = Path(folder)
    paths = sorted([*folder.glob("audit*.json"), *folder.glob("*/audit*.json")])
    if not paths:
        raise ConfigError(f"{folder}: holds no audit; name a folder that `evenslice audit --out` wrote")
    audits = [(path, Audit.load(path)) for path in paths]
    count = Counter(audit.name for _, audit in audits)
    named = [
        audit.renamed(f"{path.parent.name}: {audit.name}") if count[audit.name] > 1 else audit
        for path, audit in audits
    ]
    return sorted(named, key=lambda audit: str(audit.run.get("created", "")))
