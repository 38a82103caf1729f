"""Paths of this machine, and files that may be anything: only regular ones are read, and never more bytes than agreed.

All errors of the readers of results are of the kinds ``UNREADABLE``, which ``reading`` turns into one line that names the
file.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core.errors import PROTOCOLS, UNREADABLE, ConfigError, OutputError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from evenslice._core.errors import EvensliceError


_ADDRESS = re.compile(rf"[a-z][a-z0-9+.-]+://|(?:{PROTOCOLS}):/", re.IGNORECASE)  # pathlib leaves one slash


def local_path(path: str | os.PathLike[str], error: type[EvensliceError] = OutputError) -> Path:
    """Return the path of a file or folder of this machine.

    Raises:
        ConfigError: it is not a path.
        EvensliceError: of the type given, if it is an address, or empty, as a variable is that a script has not set; or it
            cannot be the name of a file.

    Example:
        >>> local_path("s3://bucket/results")
        Traceback (most recent call last):
        ...
        evenslice.OutputError: s3://bucket/results: is an address, which is not supported here; name a path of this machine
    """
    text = path_text(path, "a path")
    if not text:
        raise error("the path is empty; name a file or folder, or . for the current folder")
    if _ADDRESS.match(text):
        raise error(f"{text}: is an address, which is not supported here; name a path of this machine")
    try:
        os.lstat(text)
    except ValueError as found:  # of a null, or half a character
        raise error(
            f"{text!r:.80}: cannot be the name of a file ({reason(found)}); choose another"
        ) from found
    except OSError as found:
        if found.errno == errno.ENAMETOOLONG:  # else there may just be no such file
            raise error(f"{text}: {found.strerror}; choose a shorter name") from found
    return Path(text)


def path_text(path: object, what: str) -> str:
    """Return a path as text.

    Args:
        path: what the user gave.
        what: how the message calls it.

    Raises:
        ConfigError: it is not a path.

    Example:
        >>> path_text(Path("a.tif"), "a volume")
        'a.tif'
        >>> path_text(5, "a volume")
        Traceback (most recent call last):
        evenslice.ConfigError: a volume is given as text or as a pathlib.Path, not as int
    """
    if isinstance(path, str | os.PathLike):
        text = os.fspath(path)
        if isinstance(text, str):
            return text
    raise ConfigError(f"{what} is given as text or as a pathlib.Path, not as {type(path).__name__}")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; never waits, as opening a pipe would.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.

    Example:
        >>> open_regular(os.devnull)
        Traceback (most recent call last):
        ...
        OSError: is not a regular file
    """
    # Windows has no such flag, and no such pipes.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("is not a regular file")
    return file


MOST_BYTES = 2**24
"""Largest size of a document or a table, whose values take many times as much memory."""

MOST_LOGGED = 2**26
"""Largest size of a log in bytes; one with ten values at each of 100,000 steps has a third of it."""


def read_bounded(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file that has at most ``most`` bytes.

    Args:
        path: the file.
        most: its largest size in bytes.

    Raises:
        OSError: it is larger, or not a regular file, or cannot be read.

    Example:
        >>> import tempfile; from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> _ = path.write_bytes(b"abc")
        >>> read_bounded(path, 3)
        b'abc'
        >>> read_bounded(path, 2)
        Traceback (most recent call last):
        ...
        OSError: has 3 bytes where at most 2 are read
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(f"has {size:,} bytes where at most {most:,} are read")
        return file.read(size)


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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    document = json.loads(read_bounded(path))
    if not isinstance(document, dict):
        raise TypeError("it is not a JSON object")
    return document


def read_log(path: Path) -> list[dict[str, str]]:
    """Return the rows of a log by column: steps that increase, and numbers or nothing.

    A last row without a line break was cut short and is left out.
    """
    text = read_bounded(path, MOST_LOGGED).decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""), restval=""))
    steps = [int(row["step"]) for row in rows]
    if steps != sorted(set(steps)) or min(steps, default=0) < 0:
        raise ValueError("its steps do not increase from 0")
    for row in rows:
        for value in row.values():
            float(value or 0)
    return rows


# What can steer a terminal, or is no text: JSON escapes only the first 32 characters by itself.
_INVISIBLE = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def json_text(value: Any) -> str:
    """Return plain values as an indented JSON document; NaN and infinity, which JSON lacks, become null.

    Invisible characters, and bytes of names that are not UTF-8, are escaped.

    Example:
        >>> json_text([1.5, float("nan")]).split()
        ['[', '1.5,', 'null', ']']
    """
    text = json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if hasattr(value, "dtype") and hasattr(value, "item"):  # a number of NumPy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
