"""Files of a study, read with care: they may come from others.

No more of a file is read than a study writes, nothing is unpickled, and what is not of the right kind is refused. All
refusals are errors of the ``UNREADABLE`` kinds, which ``reading`` turns into one line that names the file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
import zlib
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "EXAMPLE",
    "figure",
    "read_json",
    "read_pictures",
    "read_rows",
    "read_text",
    "reading",
    "whole",
    "word",
]

EXAMPLE = 256
"""Pixels along y and x of the examples that runs keep, at most."""

MAX_BYTES = 16 * 2**20
MAX_COLUMNS = 1000
LARGEST = 1e9  # figure that a study could find

UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError),
    *(MemoryError, OverflowError, RecursionError, csv.Error, zipfile.BadZipFile, zlib.error),
)
"""What json, csv, zipfile and NumPy raise on damaged or hostile files."""


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Yield a path to read, and what is to be taken from it.

    Raises:
        ConfigError: what the block raised says that the file is not what it should be.
    """
    try:
        yield path
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{path}: cannot be read as part of a study ({reason}); remove it and start the study again, which repeats "
            "nothing else"
        ) from error


def read_text(path: Path) -> str:
    """Return what a file of at most ``MAX_BYTES`` holds."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
    return content.decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the one object of a JSON file."""
    document = json.loads(read_text(path))
    if not isinstance(document, dict):
        raise TypeError("it holds no object")
    return document


def read_rows(path: Path, needed: Collection[str], most: int) -> list[dict[str, str]]:
    """Return the rows of a CSV file, each with all columns.

    Args:
        path: the file.
        needed: columns that it must have.
        most: how many rows it may have.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="")
    columns = reader.fieldnames or ()
    if not 0 < len(columns) <= MAX_COLUMNS:
        raise ValueError(f"it has {len(columns)} columns")
    if missing := set(needed) - set(columns):
        raise ValueError(f"it has no column {min(missing)!r}")
    rows = list(islice(reader, most + 1))
    if len(rows) > most:
        raise ValueError(f"it has more than {most} rows")
    if any(None in row for row in rows):
        raise ValueError("a row is longer than the first")
    return rows


def read_pictures(path: Path, *names: str) -> dict[str, NDArray[np.uint8]]:
    """Return arrays (y, x) of an ``.npz`` file, all of one shape of at most ``EXAMPLE`` along y and x."""
    with zipfile.ZipFile(path) as file:
        pictures = {name: _picture(file, f"{name}.npy") for name in names}
    if len({picture.shape for picture in pictures.values()}) > 1:
        raise ValueError("its arrays differ in shape")
    return pictures


def _picture(file: zipfile.ZipFile, name: str) -> NDArray[np.uint8]:
    most = EXAMPLE**2 + 1024  # with its header
    with file.open(name) as member:
        content = member.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name} has more than {EXAMPLE} x {EXAMPLE} pixels")
    array: NDArray[np.uint8] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != 2 or array.size == 0 or max(array.shape) > EXAMPLE:
        raise ValueError(f"{name} is {array.dtype} of the shape {array.shape}")
    return array


def figure(value: Any) -> float:
    """Return a figure, NaN where there is none.

    Example:
        >>> figure(None), figure(2)
        (nan, 2.0)
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is no number")
    if abs(value) > LARGEST:
        raise ValueError(f"{value:g} is beyond what a study can find")
    return float(value)


def whole(value: Any) -> int:
    """Return a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r:.40} is no whole number of at least 0")
    return value


def word(record: Mapping[str, Any], name: str) -> str:
    """Return the text of a record that has this name."""
    text = record[name]
    if not isinstance(text, str):
        raise TypeError(f"{name}: {text!r:.40} is no text")
    return text
