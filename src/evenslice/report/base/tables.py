"""Rows of results as CSV files, and nested settings as rows."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Group(Generic[RowT]):
    """Related rows of a table, with an explanation."""

    title: str
    meaning: str
    rows: tuple[RowT, ...]


SHARES: Final = (
    "Shares of the saliency",
    "Mean part of the total absolute attribution that falls on each slice of the window; they sum to 1.",
)
"""Title and meaning of a group."""

EFFECT: Final = (
    "Effect on the result",
    (
        ("answer_change", "C, answer change"),
        ("mirror_mismatch", "E, mirror mismatch"),
        ("mirror_error", "Mirror error"),
        ("mirror_disagreement", "Mirror disagreement"),
    ),
    (
        "What reversing a window changes. Answer change: of a class, the pixels that one of the two answers alone puts into "
        "it, over those that either does, in the class where that is largest; of scores, or where one class alone is "
        "predicted, the size of the change, which is 1 for unrelated outputs. Mirror mismatch: the part of the attribution "
        "of the outer slices that is not used in the same way, place by place. Mirror error: largest change of the output, "
        "relative to the largest output. Mirror disagreement: the share of all pixels whose predicted class changes."
    ),
)
"""Title, rows and meaning of a group."""


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Return lines as the text of a CSV file that is safe to open in a spreadsheet."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_cell(value) for value in line] for line in lines)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """Return a value for a cell: NaN is empty, and text that a spreadsheet would read as a formula is quoted."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a plain table as HTML with escaped text; nothing if it has no rows.

    Example:
        >>> html_table(["x"], [["<1"]])
        '<table><tr><th align=left>x&nbsp;&nbsp;</th></tr><tr><td>&lt;1&nbsp;&nbsp;</td></tr></table>'
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        opened = f"{tag} align=left" if tag == "th" else tag
        return f"<tr>{''.join(f'<{opened}>{escape(text)}&nbsp;&nbsp;</{tag}>' for text in cells)}</tr>"

    lines = [line("td", row) for row in rows]
    return f"<table>{line('th', headings)}{''.join(lines)}</table>" if lines else ""


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as pairs of dotted name and text; a list of plain values is one setting."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        for index, item in enumerate(value, start=1):
            yield from flatten(item, f"{prefix}.{index}")
    elif isinstance(value, list | tuple):
        yield prefix, ", ".join(_leaf(item) for item in value)
    else:
        yield prefix, _leaf(value)


def _leaf(value: Any) -> str:
    return "" if value is None else str(value)
