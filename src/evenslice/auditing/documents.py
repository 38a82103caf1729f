"""Audits and surveys as the user gets them, with their reports."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from evenslice._core import ConfigError, local_path, staged_file, staged_folder
from evenslice.report import (
    html_of,
    survey_csv,
    write_report,
    write_survey_report,
)
from evenslice.results import AuditResult, SurveyResult

if TYPE_CHECKING:
    import os

MOST_AUDITS = 200  # in one report


class Audit(AuditResult):
    """The result of an audit.

    The main statistics are attributes (``audit.verdict``, ``audit.reliance[0].low``); ``save`` writes the result to files,
    ``load`` reads it and ``to_html`` writes the report. See ``evenslice.results.AuditResult`` for the attributes.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import torch
        >>> import evenslice
        >>> volume = np.random.default_rng(0).random((16, 32, 32))
        >>> found = evenslice.audit(torch.nn.Conv2d(3, 2, 1), volume, sampling=evenslice.Sampling(max_windows=8))
        >>> path = f"{tempfile.mkdtemp()}/audit.json"
        >>> found.save(path)
        >>> Audit.load(path).verdict == found.verdict
        True
    """

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report of this audit as a self-contained HTML file, replacing an existing one, and return its path.

        Raises:
            OutputError: the file cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        return write_report([self], path)

    def _repr_html_(self) -> str:  # in a notebook
        return html_of(self)


class Survey(SurveyResult):
    """The result of a survey. See ``evenslice.results.SurveyResult`` for the attributes.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import evenslice
        >>> volume = np.random.default_rng(0).random((40, 64, 64))
        >>> found = evenslice.survey(["timm:test_resnet"], weights="none", volume=volume, windows=4)
        >>> print(found.to_csv(f"{tempfile.mkdtemp()}/survey.csv").read_text()[:12])
        spec,weights
    """

    FILES: ClassVar = (
        "survey.json",
        "survey.csv",
        "report.html",
        "figures/balance.png",
        "figures/balance.svg",
    )
    """Names of the files that ``save`` writes."""

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row for each network as a CSV file, replacing an existing one, and return its path.

        ``energy_1`` .. ``energy_C`` belong to the channels in their order, which is red, green and blue for a network
        trained on photographs; ``share_-1`` and ``pair_1`` to offsets. Undefined values are left empty.

        Raises:
            OutputError: the file cannot be written.
        """
        with staged_file(path, force=True) as beside:
            beside.write_text(survey_csv(self), encoding="utf-8", errors="replace", newline="")
        return Path(path)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as a self-contained HTML file, replacing an existing one, and return its path.

        Raises:
            OutputError: the file cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        return write_survey_report(self, path)

    def _repr_html_(self) -> str:  # in a notebook
        return html_of(self)

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write ``survey.json``, ``survey.csv``, ``report.html`` and its figure into a folder.

        Args:
            folder: where to write; it is created if missing.
            force: overwrite such files in the folder.

        Raises:
            OutputError: the folder holds such files and ``force`` is not set, or it cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        with staged_folder(folder, self.FILES, documents=("survey.json",), force=force) as beside:
            self.write(beside)

    def write(self, folder: Path) -> None:
        """Write the files of ``save`` into an existing folder."""
        (folder / "survey.json").write_text(self.to_json(), encoding="utf-8")
        self.to_csv(folder / "survey.csv")
        write_survey_report(self, folder / "report.html", figures=folder / "figures")


def load_audits(folder: str | os.PathLike[str]) -> list[Audit]:
    """Read all audits in a folder and its immediate subfolders, oldest first.

    Audits of the same name get the name of their folder as a prefix.

    Raises:
        ConfigError: there is no audit, one that cannot be read, or more than a report shows, 200.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import torch
        >>> import evenslice
        >>> volume = np.random.default_rng(0).random((16, 32, 32))
        >>> found = evenslice.audit(torch.nn.Conv2d(3, 2, 1), volume, sampling=evenslice.Sampling(max_windows=8))
        >>> path = f"{tempfile.mkdtemp()}/audit.json"
        >>> found.save(path)
        >>> [audit.name for audit in load_audits(path.rpartition("/")[0])]
        ['audit']
    """
    folder = local_path(folder, ConfigError)
    paths = sorted([*folder.glob("audit*.json"), *folder.glob("*/audit*.json")])
    if not paths:
        raise ConfigError(f"{folder}: holds no audit; name a folder that `evenslice audit --out` wrote")
    if len(paths) > MOST_AUDITS:
        raise ConfigError(
            f"{folder}: holds {len(paths)} audits; a report shows at most {MOST_AUDITS}: name a folder with fewer"
        )
    audits = [(path, Audit.load(path)) for path in paths]
    count = Counter(audit.name for _, audit in audits)
    named = [
        audit.renamed(f"{_name(path.parent)}: {audit.name}") if count[audit.name] > 1 else audit
        for path, audit in audits
    ]
    return sorted(named, key=lambda audit: audit.run.created)


def _name(folder: Path) -> str:
    """Return the name of a folder, also of one that the user calls ``.`` or ``..``."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name
