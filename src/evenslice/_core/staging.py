"""Results are written beside their final name and renamed at the end: nothing is lost, nothing half-written."""

from __future__ import annotations

import errno
import json
import math
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core.errors import OutputError, option

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
        hint = (
            "name a file" if path.is_dir() else f"choose another name, or replace it with {option('force')}"
        )
        raise OutputError(f"{path}: exists; {hint}")
    with _written_as(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with _room_for(path):
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
        results: patterns of the files that this kind of result consists of; folders are never removed.
        force: replace the results that the folder holds.

    Raises:
        OutputError: the folder holds such results and ``force`` is not given, or it cannot be written.
    """
    path = Path(path)
    made = not path.exists()
    with _written_as(path):
        path.mkdir(parents=True, exist_ok=True)
        old = [item for pattern in results for item in path.glob(pattern) if item.is_file()]
    if old and not force:
        raise OutputError(
            f"{path}: holds another result ({old[0].name}); choose another folder, or replace it with {option('force')}"
        )
    with _written_as(path):
        folder = Path(tempfile.mkdtemp(prefix=".unfinished.", dir=path))
    try:
        with _room_for(path):
            yield folder
        with _written_as(path):
            _exchange(old, folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if made:
            with suppress(OSError):  # somebody else may have put a file there meanwhile
                path.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(old: Sequence[Path], folder: Path, path: Path) -> None:
    """Put the files of a staging folder in the place of the old ones; take everything back if that fails."""
    retired = folder / ".old"
    moves = [(item, retired / item.relative_to(path)) for item in old]
    moves += [(item, path / item.relative_to(folder)) for item in sorted(folder.rglob("*")) if item.is_file()]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.replace(source)
        raise


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Say in one line that there is no room; other errors inside the block are not about the output."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}); make room or choose another place"
            ) from error
        raise


@contextmanager
def _written_as(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason}); choose a place where you may write"
        ) from error
