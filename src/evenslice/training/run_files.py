"""Reading the files of a run, which may be damaged or come from anyone: bounded, checked, and refused in one line."""

from __future__ import annotations

import csv
import io
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evenslice._core import UNREADABLE, ConfigError, read_bounded, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["read_json", "read_rows", "reading"]

MOST_BYTES = 2**26
"""Largest size of a file; a log with ten values at each of 100,000 steps has a third of it."""


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn an error in the block into one line about a file of a run.

    Args:
        path: the file.
        remedy: what to do, as the end of the message.

    Raises:
        ConfigError: the block raised an error that means that the file is damaged.
    """
    try:
        yield
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read as part of a run ({reason(error)}); {remedy}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    document = json.loads(read_bounded(path, MOST_BYTES))
    if not isinstance(document, dict):
        raise TypeError("it is not a JSON object")
    return document


def read_rows(path: Path, remedy: str) -> list[dict[str, str]]:
    """Return the rows of a log by column; a last row without a line break was cut short and is left out.

    Args:
        path: the file.
        remedy: what to do if it is damaged, as the end of the message.

    Raises:
        ConfigError: it is damaged.
    """
    with reading(path, remedy):
        text = read_bounded(path, MOST_BYTES).decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
        steps = [int(row["step"]) for row in rows]
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("its rows differ in length")
        if steps != sorted(set(steps)):
            raise ValueError("its steps do not increase")
        for row in rows:
            for value in row.values():
                float(value or 0)
    return rows
