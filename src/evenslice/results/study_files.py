"""Readers of a study's files that are safe for files of unknown origin.

They read no more of a file than a study writes, unpickle nothing and check every type. All their errors are of the
kinds ``UNREADABLE``, which ``reading`` turns into one line that names the file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import UNREADABLE, ConfigError, open_regular, read_bounded, reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "EXAMPLE_SIZE",
    "count",
    "number",
    "read_json",
    "read_pictures",
    "read_rows",
    "read_text",
    "reading",
    "text",
]

EXAMPLE_SIZE = 256
"""Largest number of pixels along y and x of the example that a run keeps."""

MAX_BYTES = 16 * 2**20
MAX_COLUMNS = 1000
MAX_DEPTH = 50
LARGEST = 1e9  # no metric of a study can be larger


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Yield the path of a file to read in the block.

    Raises:
        ConfigError: the block raised an error that means that the file is damaged.
    """
    try:
        yield path
    except UNREADABLE as error:
        raise ConfigError(
            f"{path}: cannot be read as part of a study ({reason(error)}); remove it and start the study "
            "again, which repeats "
            "only what is missing"
        ) from error


def read_text(path: Path) -> str:
    """Return the text of a file of at most ``MAX_BYTES``."""
    return read_bounded(path, MAX_BYTES).decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; it has at most ``MAX_DEPTH`` levels."""
    document = json.loads(read_text(path))
    if not isinstance(document, dict):
        raise TypeError("it is not a JSON object")
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return document
    raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def read_rows(path: Path, needed: Collection[str], most: int) -> list[dict[str, str]]:
    """Return the rows of a CSV file, each with all columns.

    Args:
        path: the file.
        needed: required columns.
        most: largest number of rows.
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
        raise ValueError("a row is longer than the header")
    return rows


def read_pictures(path: Path, *names: str) -> dict[str, NDArray[np.uint8]]:
    """Return arrays (y, x) of an ``.npz`` file, all of one shape of at most ``EXAMPLE_SIZE`` along y and x."""
    with open_regular(path) as content, zipfile.ZipFile(content) as file:
        pictures = {name: _picture(file, f"{name}.npy") for name in names}
    if len({picture.shape for picture in pictures.values()}) > 1:
        raise ValueError("its arrays differ in shape")
    return pictures


def _picture(file: zipfile.ZipFile, name: str) -> NDArray[np.uint8]:
    most = EXAMPLE_SIZE**2 + 1024  # with its header
    with file.open(name) as member:
        content = member.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name} has more than {EXAMPLE_SIZE} x {EXAMPLE_SIZE} pixels")
    array: NDArray[np.uint8] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != 2 or array.size == 0 or max(array.shape) > EXAMPLE_SIZE:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    return array


def number(value: Any) -> float:
    """Return a number as a float; None is NaN.

    Example:
        >>> number(None), number(2)
        (nan, 2.0)
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is not a number")
    if abs(value) > LARGEST:
        raise ValueError(f"{value:g} is too large for a result of a study")
    return float(value)


def count(value: Any) -> int:
    """Return a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r:.40} is not a whole number of at least 0")
    return value


def text(record: Mapping[str, Any], name: str) -> str:
    """Return an entry of a record that has to be text."""
    value = record[name]
    if not isinstance(value, str):
        raise TypeError(f"{name}: {value!r:.40} is not text")
    return value
