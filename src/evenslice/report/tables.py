"""Tables: one model of rows for pages, the terminal, notebooks and the documentation, and CSV files.

A cell is text; what follows " [" is the interval of a figure, and what follows a line break is a remark, which a page sets
in small type. A line of a cell that begins with a verdict (``TONES``) is coloured by it wherever there are colours.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

TONES: Final = {
    "good": ("symmetric", "balanced", "within", "not inferior", "superior"),
    "bad": ("biased", "beyond", "inferior"),
    "open": ("inconclusive", "open", "not settled"),
}
"""The words that a verdict begins with, by how good it is."""


@dataclass(frozen=True)
class Row:
    """A row: its label, its cells, and the index of its colour (``style.audit_colour``), if it has one."""

    label: str
    cells: tuple[str, ...]
    colour: int | None = None


@dataclass(frozen=True)
class Group:
    """Related rows of a table, with an explanation."""

    title: str
    meaning: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: its title.
        columns: the headings; the first is that of the labels.
        groups: its rows, in one or more groups; one without a title has no heading.
        note: a caption.
        colours: the index of the colour of each column of cells; empty if they have none.
    """

    title: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    note: str = ""
    colours: tuple[int, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return [row for group in self.groups for row in group.rows]


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Row], note: str = "") -> Table:
    """Return a table whose rows are in one group."""
    return Table(title, tuple(columns), (Group("", "", tuple(rows)),), note)


def run_table(names: Sequence[str], settings: Sequence[Mapping[str, str]]) -> Table:
    """Return what was run: known settings by dotted name, the command first, one column for each audit or the like."""
    keys = dict.fromkeys(key for found in settings for key in found)
    rows = [
        Row(key, tuple(found.get(key, "") for found in settings))
        for key in sorted(keys, key=lambda key: key not in ("command", "created"))
    ]
    return plain_table("What was run", ("Setting", *names), [row for row in rows if any(row.cells)])


def tone(line: str) -> str:
    """Return how good the verdict is that a line begins with; empty without one.

    Example:
        >>> tone("biased"), tone("within 0.05"), tone("0.012")
        ('bad', 'good', '')
    """
    return next((name for name, words in TONES.items() if line.startswith(words)), "")


def html_table(table: Table) -> str:
    """Return a table as plain HTML with escaped text, for notebooks and labels of Qt; nothing if it has no rows.

    Example:
        >>> html_table(plain_table("", ["x"], [Row("<1", ())]))
        '<table><tr><th align=left>x&nbsp;&nbsp;</th></tr><tr><td>&lt;1&nbsp;&nbsp;</td></tr></table>'
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        opened = f"{tag} align=left" if tag == "th" else tag
        return f"<tr>{''.join(f'<{opened}>{escape(text)}&nbsp;&nbsp;</{tag}>' for text in cells)}</tr>"

    lines = [line("td", (row.label, *row.cells)) for row in table.rows]
    return f"<table>{line('th', table.columns)}{''.join(lines)}</table>" if lines else ""


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


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as pairs of dotted name and text; a list of plain values is one setting.

    Example:
        >>> dict(flatten({"scaling": {"mean": [0.5, 0.4]}, "volumes": [{"path": "a"}], "seed": None}))
        {'scaling.mean': '0.5, 0.4', 'volumes.1.path': 'a', 'seed': ''}
    """
    nested = isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value)
    if isinstance(value, dict) or nested:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value, start=1):
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        yield prefix, ", ".join("" if item is None else str(item) for item in value)
    else:
        yield prefix, "" if value is None else str(value)
