"""Tables: one model of rows for pages, the terminal, notebooks and the documentation, and CSV files; figures as text.

A cell is text; what follows " [" is the interval of a figure, and what follows a line break is a remark, which a page sets
in small type. A line of a cell that begins with a verdict (``TONES``) is coloured by it wherever there are colours.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from evenslice.results import Interval

TONES: Final = {
    "good": ("symmetric", "balanced", "within", "non-inferior", "superior"),
    "bad": ("biased", "beyond", "inferior"),
    "open": ("inconclusive", "open"),
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
        shared: whether a page shows equal cells of a row once, across all columns.
    """

    title: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    note: str = ""
    colours: tuple[int, ...] = ()
    shared: bool = False

    @staticmethod
    def tone(line: str) -> str:
        """Return how good the verdict is that a line begins with; empty without one.

        Example:
            >>> Table.tone("biased"), Table.tone("within 0.05"), Table.tone("0.012")
            ('bad', 'good', '')
        """
        return next((name for name, words in TONES.items() if line.startswith(words)), "")

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
    stated = Group("", "", tuple(row for row in rows if any(row.cells)))
    return Table("What was run", ("Setting", *names), (stated,), shared=True)


def html_table(table: Table) -> str:
    """Return a table as plain HTML with escaped text, for notebooks and labels of Qt; nothing if it has no rows.

    Example:
        >>> html_table(plain_table("", ["x"], [Row("<1", ())]))
        '<table><tr><th align=left>x&nbsp;&nbsp;</th></tr><tr><td>&lt;1&nbsp;&nbsp;</td></tr></table>'
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        opened = f"{tag} align=left" if tag == "th" else tag
        return f"<tr>{''.join(f'<{opened}>{escape(text)}&nbsp;&nbsp;</{tag}>' for text in cells)}</tr>"

    if not table.rows:
        return ""
    title, note = (f"<p>{escape(text)}</p>" if text else "" for text in (table.title, table.note))
    lines = [line("td", (row.label, *row.cells)) for row in table.rows]
    return f"{title}<table>{line('th', table.columns)}{''.join(lines)}</table>{note}"


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


# Numbers, intervals and names as text.

NOTHING = "\N{EN DASH}"
"""Replaces an undefined value."""

MINUS = "\N{MINUS SIGN}"
"""Precedes negative numbers; a hyphen is shorter and allows a line break."""

SPACE = "\N{NO-BREAK SPACE}"
DECIMALS = (3, 4, 5, 6)
ROUNDING = 1e-6  # of shares, most of which were computed in single precision
LEVELS = (0.025, 0.05)  # below these, a one-sided and a two-sided p is significant


def decimals(values: Iterable[float], limits: Iterable[float]) -> int:
    """Return how many decimals show on which side of limits values lie: three, or up to six where those would hide it.

    Example:
        >>> decimals([-0.0096, -0.0054], limits=[0, -0.02]), decimals([-0.0096, -0.0054], limits=[0, -0.01])
        (3, 4)
    """

    def side(value: float, limit: float) -> int:
        return (value > limit) - (value < limit)

    found = DECIMALS[0]
    for value, limit in product(values, limits):
        enough = (n for n in DECIMALS if side(round(value, n), limit) == side(value, limit))
        found = max(found, next(enough, DECIMALS[0]))  # what is less than a millionth away lies at the limit
    return found


def number(value: float, places: int = 3) -> str:
    """Format a number with three decimals, or other ``places``, or as a power of ten if those would all be 0.

    Example:
        >>> [number(value).replace(MINUS, "-") for value in (-0.2346, 2e-6, 0.0, float("inf"))]
        ['-0.235', '2.0e-6', '0', '∞']
    """
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    if abs(value) >= 0.5 / 10**places:
        return f"{value:.{places}f}".replace("-", MINUS)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def interval(value: Interval | None, *limits: float) -> str:
    """Format an estimate with its interval so that it shows which limits that excludes.

    Example:
        >>> from evenslice.results import Interval
        >>> interval(Interval(0.0506, 0.0503, 0.0509), 0.05), interval(Interval(0.0506, 0.0503, 0.0509))
        ('0.0506 [0.0503, 0.0509]', '0.051 [0.050, 0.051]')
    """
    if value is None or math.isnan(value.estimate):
        return NOTHING
    places = decimals((value.low, value.high), limits)
    if math.isnan(value.low) or math.isnan(value.high):
        return number(value.estimate)
    return f"{number(value.estimate, places)} [{number(value.low, places)}, {number(value.high, places)}]"


def difference(value: Interval, *limits: float) -> str:
    """Format a difference with its interval, with a plus sign if positive.

    It has three decimals, or more where three would not show on which side of 0, or of other limits, an end of the
    interval lies.

    Example:
        >>> from evenslice.results import Interval
        >>> for ends in ((-0.0024, 0.0066), (-0.0003, 0.0066)):
        ...     print(difference(Interval(0.0021, *ends)).replace(MINUS, "-"))
        +0.002 [-0.002, 0.007]
        +0.0021 [-0.0003, 0.0066]
    """
    if math.isnan(value.estimate):
        return NOTHING
    ends = (value.low, value.high)
    places = decimals(ends, (0.0, *limits))
    estimate, low, high = (f"{part:z.{places}f}".replace("-", MINUS) for part in (value.estimate, *ends))
    estimate = f"+{estimate}" if estimate.strip("0.") and value.estimate > 0 else estimate
    return estimate if math.isnan(value.low) or math.isnan(value.high) else f"{estimate} [{low}, {high}]"


def p_value(p: float) -> str:
    """Format the p of a test.

    Example:
        >>> p_value(0.0312), p_value(2e-5), p_value(0.0496)
        ('p = 0.031', 'p < 0.001', 'p = 0.0496')
    """
    if math.isnan(p):
        return NOTHING
    return "p < 0.001" if p < 0.001 else f"p = {number(p, decimals([p], LEVELS))}"


def percent(share: float) -> str:
    """Format a share in whole percent, or with one decimal below one percent; no line break before the sign.

    Example:
        >>> [percent(share).replace("\N{NO-BREAK SPACE}", " ") for share in (0.562, 0.004, 2e-6, 0.0, 0.996)]
        ['56 %', '0.4 %', 'less than 0.1 %', '0 %', 'more than 99 %']
    """
    if math.isnan(share):
        return NOTHING
    if 0.995 <= share < 1 - ROUNDING:
        return f"more than 99{SPACE}%"
    if share == 0 or share >= 0.01:
        return f"{100 * share:.0f}{SPACE}%"
    return f"less than 0.1{SPACE}%" if share < 0.001 else f"{100 * share:.1f}{SPACE}%"


def threshold(share: float) -> str:
    """Format a share that is a limit, in percent with three digits; no line break before the sign.

    Example:
        >>> [threshold(share).replace("\N{NO-BREAK SPACE}", " ") for share in (0.02, 0.02 * 2 / 3, 0.0008)]
        ['2 %', '1.33 %', '0.08 %']
    """
    return f"{100 * share:.3g}{SPACE}%"


def signed(offset: int) -> str:
    """Format an offset with its sign; 0 has none."""
    return f"{offset:+d}".replace("-", MINUS) if offset else "0"


def counted(count: int, name: str) -> str:
    """Put a count before a name: ``"1 fold"``, ``"3 folds"``."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def listed(names: Sequence[str]) -> str:
    """Join names: ``"a, b and c"``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def short_path(path: str) -> str:
    """Leave out the folders of a path or an address, but not those inside a file.

    Example:
        >>> short_path("/data/a.nii.gz"), short_path("/data/em.h5:/raw/0"), short_path("https://host/b/c.zarr")
        ('a.nii.gz', 'em.h5:/raw/0', 'c.zarr')
    """
    file, colon, inside = path.partition(":/")
    if not colon or inside.startswith("/"):  # no part of a file, or an address
        return path.rstrip("/").rpartition("/")[2] or "an array"
    return f"{file.rpartition('/')[2]}:/{inside}"


def one_line(text: str, longest: int = 28) -> str:
    """Make any text fit a label: one line of printable characters, cut at ``longest``."""
    text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def few_lines(text: str, width: int = 28, lines: int = 2) -> str:
    """Make any text fit a label of a few lines, broken between words.

    Example:
        >>> print(few_lines("symmetrized at the encoder with missing slices"))
        symmetrized at the encoder
        with missing slices
    """
    return textwrap.fill(
        one_line(text, 2 * lines * width), width, max_lines=lines, placeholder="…", break_on_hyphens=False
    )
