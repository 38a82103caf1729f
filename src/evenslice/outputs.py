"""Results are written beside their final name and renamed at the end: nothing is lost, nothing half-written."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice.errors import OutputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

__all__ = ["json_text", "staged_file", "staged_folder"]


def json_text(value: Any) -> str:
    """Return plain values as an indented JSON document; NaN and infinity, which JSON does not know, become null.

    Example:
        >>> json_text([1.5, float("nan")]).split()
        ['[', '1.5,', 'null', ']']
    """
    return json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def staged_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield a path to write to; what was written takes the final name when the block ends without an error.

    Args:
        path: the final name.
        force: replace a file that is there.

    Raises:
        OutputError: something stands under that name and ``force`` is not given, or it cannot be written.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with staged_file(folder / "a.txt") as beside:
        ...     _ = beside.write_text("whole")
        >>> (folder / "a.txt").read_text(), len(list(folder.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not force):
        hint = "name a file" if path.is_dir() else "choose another name, or replace it with --force"
        raise OutputError(f"{path}: exists; {hint}")
    with _written_as(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder / path.name
        with _written_as(path):
            (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_folder(
    path: str | os.PathLike[str], results: Sequence[str], *, force: bool = False
) -> Iterator[Path]:
    """Yield an empty folder to write results to; they move to their final folder when the block ends without an error.

    Files in the final folder that are no results of this kind stay where they are.

    Args:
        path: the final folder; it is made where it does not exist.
        results: name patterns of everything that this kind of result consists of.
        force: replace the results that the folder holds.

    Raises:
        OutputError: the folder holds such results and ``force`` is not given, or it cannot be written.
    """
    path = Path(path)
    with _written_as(path):
        path.mkdir(parents=True, exist_ok=True)
        old = [item for pattern in results for item in path.glob(pattern)]
    if old and not force:
        raise OutputError(
            f"{path}: holds another result ({old[0].name}); choose another folder, or replace it with --force"
        )
    with _written_as(path):
        folder = Path(tempfile.mkdtemp(prefix=".unfinished.", dir=path))
    try:
        yield folder
        with _written_as(path):
            _move_results(folder, path, old)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_results(folder: Path, path: Path, old: Sequence[Path]) -> None:
    for item in old:
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    for item in folder.iterdir():
        item.replace(path / item.name)


@contextmanager
def _written_as(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason}); choose a place where you may write"
        ) from error
