"""The CSV files of a study's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenslice.report.base.tables import csv_text
from evenslice.report.study.pooled import pooled_lines
from evenslice.report.study.tables import TABLE_FILES, arm_lines, curve_lines, saliency_lines

if TYPE_CHECKING:
    from evenslice.results import StudyResults

__all__ = ["csv_tables"]


def csv_tables(results: StudyResults) -> dict[str, str]:
    """Return the text of each CSV file by name."""
    lines = (arm_lines, curve_lines, saliency_lines, pooled_lines)
    return {name: csv_text(write(results)) for name, write in zip(TABLE_FILES, lines, strict=True)}
