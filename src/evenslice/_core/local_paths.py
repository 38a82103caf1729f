"""Paths of this machine, where an address (URL) would be taken for the name of a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core.errors import OutputError
from evenslice._core.words import PROTOCOLS

if TYPE_CHECKING:
    from evenslice._core.errors import EvensliceError

__all__ = ["local_path"]

_ADDRESS = re.compile(rf"[a-z][a-z0-9+.-]+://|(?:{PROTOCOLS}):/", re.IGNORECASE)  # pathlib leaves one slash


def local_path(path: str | os.PathLike[str], error: type[EvensliceError] = OutputError) -> Path:
    """Return the path of a file or folder of this machine.

    Raises:
        EvensliceError: of the type given, if it is an address.

    Example:
        >>> local_path("s3://bucket/results")
        Traceback (most recent call last):
        ...
        evenslice.OutputError: s3://bucket/results: is an address, which is not supported here; name a path of this machine
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise error(f"{text}: is an address, which is not supported here; name a path of this machine")
    return Path(path)
