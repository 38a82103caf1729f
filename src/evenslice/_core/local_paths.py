"""Paths of this machine, where an address (URL) or nothing would be taken for the name of a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core.errors import OutputError
from evenslice._core.words import PROTOCOLS

if TYPE_CHECKING:
    from evenslice._core.errors import EvensliceError

__all__ = ["EMPTY_PATH", "local_path"]

EMPTY_PATH = "is empty; name a file or folder, or . for the current folder"

_ADDRESS = re.compile(rf"[a-z][a-z0-9+.-]+://|(?:{PROTOCOLS}):/", re.IGNORECASE)  # pathlib leaves one slash


def local_path(path: str | os.PathLike[str], error: type[EvensliceError] = OutputError) -> Path:
    """Return the path of a file or folder of this machine.

    Raises:
        EvensliceError: of the type given, if it is an address, or empty, as a variable is that a script has not set.

    Example:
        >>> local_path("s3://bucket/results")
        Traceback (most recent call last):
        ...
        evenslice.OutputError: s3://bucket/results: is an address, which is not supported here; name a path of this machine
    """
    text = os.fspath(path)
    if not text:
        raise error(f"the path {EMPTY_PATH}")
    if _ADDRESS.match(text):
        raise error(f"{text}: is an address, which is not supported here; name a path of this machine")
    return Path(path)
