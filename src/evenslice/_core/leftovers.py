"""Staging folders that killed processes left beside their results."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from evenslice._core.staging import is_staging

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["remove_leftovers"]

_STAGING = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # as `staged_file` and `staged_folder` name theirs


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what processes that were killed while they wrote some files left beside these, and nothing of the user's.

    Call it only while no other process can write them.

    Args:
        folder: where the files are; it may be missing.
        names: their final names, or "unfinished" for those of ``staged_folder``.

    Example:
        >>> import tempfile; from pathlib import Path
        >>> from evenslice._core.staging import mark_staging
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in (".run.json.k2_x7a0b", ".run.json.original"):
        ...     (folder / name).mkdir()
        >>> mark_staging(folder / ".run.json.k2_x7a0b")
        >>> remove_leftovers(folder, ["run.json"])
        >>> [item.name for item in folder.iterdir()]
        ['.run.json.original']
    """
    for item in folder.glob(".*"):
        found = _STAGING.fullmatch(item.name)
        if found and found[1] in names and is_staging(item):
            shutil.rmtree(item, ignore_errors=True)
