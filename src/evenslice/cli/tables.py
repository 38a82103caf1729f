"""The tables that commands print for people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table as RichTable
from rich.text import Text

from evenslice._core import printable
from evenslice.report import Table, audit_lines, tables_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from evenslice import Audit

TONE_STYLES = {"good": "green", "bad": "red", "open": "yellow", "": ""}


def rich_table(table: Table, *, breaks: bool = True) -> RichTable:
    """Return a table for the terminal, coloured by the verdicts in it.

    Args:
        table: as on pages.
        breaks: whether intervals stand below their figures, or beside them in one line.
    """
    shown = new_table(table.title, table.columns)
    for row in table.rows:
        cells = [cell.replace(" [", "\n[") if breaks else cell for cell in row.cells]
        shown.add_row(
            row.label, *(Text.assemble(*map(_line, cell.splitlines(keepends=True))) for cell in cells)
        )
    for column in shown.columns:
        column.no_wrap = not breaks and any(" [" in str(cell) for cell in column.cells)
    shown.caption, shown.caption_justify = table.note or None, "left"
    return shown


def _line(line: str) -> tuple[str, str]:
    """Return a line of a cell and its style; figures lose their zeros."""
    shown = re.sub(r"\b0\.", ".", line) if re.match(r"[-+\[\d\N{MINUS SIGN}]", line) else line
    return printable(shown), TONE_STYLES[Table.tone(line)]


def audit_parts(audits: Sequence[Audit]) -> Iterator[Text | RichTable | str]:
    """Yield how audits were made, for each its verdict with what decided it and its extent, the tables, and what to type next."""
    above, below = audit_lines(audits)
    for name, verdict, text, tone in above:
        yield Text.assemble(printable(name), (verdict, f"bold {TONE_STYLES[tone]}"), printable(text))
    yield from (rich_table(table, breaks=False) for table in tables_of([*audits]))
    yield from below


def new_table(title: str, columns: Sequence[str], *rows: Sequence[str]) -> RichTable:
    """Return a table with a row for each of the sequences of cells."""
    table = RichTable(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def facts(title: str, rows: Mapping[str, str | None]) -> RichTable:
    """Return a table of what is known about one thing: its names, and what they are; None is left out."""
    table = RichTable(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value)
    return table


def info_table(info: Mapping[str, Any]) -> RichTable:
    """Return the properties of a volume, one in each row."""
    bounds = ", ".join(f"{start}:{stop}" for start, stop in info["region"] or ())
    low, high = (
        str(value) if isinstance(value, int) else f"{value:g}" for value in (info["minimum"], info["maximum"])
    )
    gaps = info["missing_numbers"]
    rows = {
        "data set": info["part"],
        "format": info["format"],
        "shape": f"{_by_axis(info['shape'])} voxels (z, y, x)",
        "region": f"{bounds} of the file (z, y, x)" if bounds else None,
        "missing slices": f"{', '.join(map(str, gaps[:9]))}{' …' * (len(gaps) > 9)}, by the file names"
        if gaps
        else None,
        "type": info["dtype"],
        "spacing": info["spacing"] and f"{_by_axis(info['spacing'])} {info['unit'] or '(no unit)'} (z, y, x)",
        "chunks": "not stated" if info["chunks"] is None else _by_axis(info["chunks"]),
        "orientation": info["orientation"] and f"{info['orientation']} (directions of x, y, z)",
        "size on disk": "unknown" if info["bytes_on_disk"] is None else decimal(info["bytes_on_disk"]),
        "size in memory": decimal(info["bytes_in_memory"]),
        "intensities": f"{low} to {high} in a sample of {info['sampled']} voxels",
        "percentiles": ", ".join(f"{percent:g} %: {value:g}" for percent, value in info["percentiles"]),
        "NaN or infinite": f"{info['nonfinite']} voxels in the sample" if info["nonfinite"] else None,
        "classes": ", ".join(f"{value}: {share:.2%}" for value, share in info["classes"] or ()) or None,
    }
    return facts(info["path"], rows)


def _by_axis(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
