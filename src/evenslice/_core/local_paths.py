"""Paths of this machine, where an address (URL) or nothing would be taken for the name of a folder."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core.errors import ConfigError, OutputError, reason
from evenslice._core.words import PROTOCOLS

if TYPE_CHECKING:
    from evenslice._core.errors import EvensliceError

__all__ = ["EMPTY_PATH", "local_path", "path_text"]

EMPTY_PATH = "is empty; name a file or folder, or . for the current folder"

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
        raise error(f"the path {EMPTY_PATH}")
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
