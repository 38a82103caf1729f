"""Which files of a folder evenslice wrote: a list kept beside them, so that nothing else is ever replaced or removed.

In a folder without a list, a result document is recognised by its beginning, and files that are named like documents are
then taken for results; pages, figures and tables, whose names may be the user's, never are. Links are never followed,
removed or replaced, whatever a list says: a folder and the list in it may come from anyone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from evenslice._core.errors import UNREADABLE, OutputError
from evenslice._core.files import open_regular, read_bounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MANIFEST", "manifest_text", "old_results", "refuse_links"]

MANIFEST = ".evenslice-files.json"
"""Name of the list."""

MOST_BYTES = 2**20
DOCUMENT_START = b'{\n  "format": '  # of every result document that evenslice writes, see ``json_text``


def old_results(folder: Path, patterns: Sequence[str], documents: Sequence[str] | None) -> list[Path]:
    """Return the files of an earlier result in a folder, which a new one may replace or remove.

    Args:
        folder: the folder.
        patterns: glob patterns of the files that make up a result of this kind.
        documents: glob patterns of result documents, which are known without a list if one of them is evenslice's; None:
            there is no list, the names alone decide.

    Raises:
        OutputError: a file has the name of a result, but is not one that evenslice wrote, or is one of another kind of
            result, or is a link.
    """
    found = [item for pattern in patterns for item in sorted(folder.glob(pattern))]
    named = [folder / pattern for pattern in patterns if "*" not in pattern and "[" not in pattern]
    refuse_links(folder, [*found, *named, *(folder / Path(pattern).parent for pattern in patterns)])
    listed = None if documents is None else _listed(folder)
    if documents is None:
        known = set(found)
    elif listed is not None:
        known = {folder / name for name in listed}
    else:
        unlisted = set(_glob(folder, documents))
        known = unlisted if any(map(_is_document, unlisted)) else set()
    for item in found:
        if item not in known or not item.is_file():
            raise OutputError(
                f"{item}: has the name of a result, but evenslice did not write it; move it away, or choose "
                "another folder"
            )
    if found and not _glob(folder, documents or patterns):
        _refuse_others(folder, found, listed or ())
    return found


def _refuse_others(folder: Path, found: Sequence[Path], listed: Iterable[str]) -> None:
    """Check that files are not those of another kind of result; kinds share names such as report.html.

    Raises:
        OutputError: the folder has another result document, in the list.
    """
    for name in sorted(listed):
        path = folder / name
        if (
            path.parent == folder
            and path.suffix in {".json", ".yaml"}
            and path.is_file()
            and path not in found
        ):
            raise OutputError(
                f"{folder}: holds a result of another kind ({name}), to which {found[0].name} belongs; choose another folder"
            )


def manifest_text(folder: Path, new: Iterable[str], documents: Sequence[str]) -> str:
    """Return the list of a folder that is to get new files.

    Args:
        folder: the folder.
        new: names of the new files, relative to the folder, with slashes.
        documents: see ``old_results``; those of an earlier version are listed too.
    """
    listed = _listed(folder)
    if listed is None:
        listed = {item.relative_to(folder).as_posix() for item in _glob(folder, documents)}
    kept = {name for name in listed if os.path.lexists(folder / name)}
    return json.dumps({"format": 1, "files": sorted(kept | set(new))}, indent=2) + "\n"


def refuse_links(folder: Path, items: Iterable[Path]) -> None:
    """Check that neither paths in a folder nor what is above them there are links.

    Raises:
        OutputError: one is.
    """
    for item in items:
        for place in (item, *item.relative_to(folder).parents):
            place = folder / place  # noqa: PLW2901  # the parents are relative
            if place != folder and place.is_symlink():
                raise OutputError(
                    f"{place}: is a link, through which nothing is written; remove it, or choose another folder"
                )


def _listed(folder: Path) -> set[str] | None:
    """Return the names in the list; None without a list that can be read."""
    try:
        names = json.loads(read_bounded(folder / MANIFEST, MOST_BYTES))["files"]
        return {PurePosixPath(name).as_posix() for name in names}
    except UNREADABLE:
        return None


def _glob(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [item for pattern in patterns for item in folder.glob(pattern)]


def _is_document(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(DOCUMENT_START)) == DOCUMENT_START
    except OSError:
        return False
