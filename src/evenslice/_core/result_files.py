"""Reading documents and logs of results, which may be damaged or come from anyone: bounded, checked, refused in one line.

All errors of the readers are of the kinds ``UNREADABLE``, which ``reading`` turns into one line that names the file.
"""

from __future__ import annotations

import csv
import io
import json
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from evenslice._core.bounded import read_bounded
from evenslice._core.errors import UNREADABLE, ConfigError, reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

__all__ = ["read_json", "read_log", "read_rows", "read_text", "reading"]

MOST_BYTES = 2**24
"""Largest size of a document or a table, whose values take many times as much memory."""

MOST_LOGGED = 2**26
"""Largest size of a log in bytes; one with ten values at each of 100,000 steps has a third of it."""

MOST_VALUES = 2**22
"""Largest number of values in a table or a log, empty ones included."""

MOST_COLUMNS = 1000
DEEPEST = 50  # levels of a JSON document


@contextmanager
def reading(path: Path, whole: str, remedy: str) -> Iterator[Path]:
    """Yield the path of a file to read in the block.

    Args:
        path: the file.
        whole: what it is part of, such as "a run".
        remedy: what to do if it is damaged, as the end of the message.

    Raises:
        ConfigError: the block raised an error that means that the file is damaged.
    """
    try:
        yield path
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read as part of {whole} ({reason(error)}); {remedy}") from error


def read_text(path: Path) -> str:
    """Return the text of a file of at most ``MOST_BYTES``."""
    return read_bounded(path, MOST_BYTES).decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; it has at most ``DEEPEST`` levels."""
    document = json.loads(read_text(path))
    if not isinstance(document, dict):
        raise TypeError("it is not a JSON object")
    level: list[Any] = [document]
    for _ in range(DEEPEST):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return document
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def read_rows(path: Path, needed: Collection[str], most: int) -> list[dict[str, str]]:
    """Return the rows of a CSV file, each with all columns; those that a row lacks at its end are empty.

    Args:
        path: the file.
        needed: required columns.
        most: largest number of rows.
    """
    return _rows(read_text(path), needed, most)


def read_log(path: Path) -> list[dict[str, str]]:
    """Return the rows of a log by column: steps that increase, and numbers or nothing.

    A last row without a line break was cut short and is left out.
    """
    text = read_bounded(path, MOST_LOGGED).decode("utf-8")
    rows = _rows(text[: text.rfind("\n") + 1], ["step"], MOST_VALUES)
    steps = [int(row["step"]) for row in rows]
    if steps != sorted(set(steps)) or min(steps, default=0) < 0:
        raise ValueError("its steps do not increase from 0")
    for row in rows:
        for value in row.values():
            float(value or 0)
    return rows


def _rows(text: str, needed: Collection[str], most: int) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    columns = reader.fieldnames or ()
    if not 0 < len(columns) <= MOST_COLUMNS:
        raise ValueError(f"it has {len(columns)} columns")
    if missing := set(needed) - set(columns):
        raise ValueError(f"it has no column {min(missing)!r}")
    most = min(most, MOST_VALUES // len(columns))
    rows = list(islice(reader, most + 1))
    if len(rows) > most:
        raise ValueError(f"it has more than {most:,} rows")
    if any(None in row for row in rows):
        raise ValueError("a row is longer than its header")
    return rows
