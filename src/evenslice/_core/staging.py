"""Files and folders written beside their final name and renamed at the end: old results are lost only to whole new ones."""

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
    """Return plain values as an indented JSON document; NaN and infinity, which JSON lacks, become null.

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
    """Yield a path to write to; the file takes its final name when the block ends without an error.

    Args:
        path: the final name.
        force: replace an existing file.

    Raises:
        OutputError: the name exists and ``force`` is not given, or it cannot be written.

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
    with reporting_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with _room_for(path):
            yield folder / path.name
        with reporting_write_errors(path):
            (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_tree(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield the path of a folder to make and fill; it takes its final name when the block ends without an error.

    Args:
        path: the final name.
        force: replace an existing folder as a whole; it is kept if anything fails.

    Raises:
        OutputError: the name exists when the block ends, and ``force`` is not given.
        OSError: it cannot be written.

    Example:
        >>> final = Path(tempfile.mkdtemp()) / "volume.zarr"
        >>> with staged_tree(final) as beside:
        ...     beside.mkdir()
        ...     _ = (beside / "zarr.json").write_text("{}")
        >>> [item.name for item in final.iterdir()], len(list(final.parent.iterdir()))
        (['zarr.json'], 1)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = folder / path.name, folder / "replaced"
    try:
        yield new
        if path.exists():
            if not force:
                raise OutputError(
                    f"{path}: exists; choose another name, or replace it with {option('force')}"
                )
            path.replace(old)
        new.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_folder(
    path: str | os.PathLike[str], results: Sequence[str], *, force: bool = False
) -> Iterator[Path]:
    """Yield an empty folder for results, which move to their final folder when the block ends without an error.

    Other files in the final folder stay as they are.

    Args:
        path: the final folder, created if missing.
        results: glob patterns of the files that make up a result of this kind; folders are never removed.
        force: replace existing results of this kind.

    Raises:
        OutputError: the folder holds such results and ``force`` is not given, or it cannot be written.
    """
    path = Path(path)
    made = not path.exists()
    with reporting_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        old = [item for pattern in results for item in path.glob(pattern) if item.is_file()]
    if old and not force:
        raise OutputError(
            f"{path}: holds another result ({old[0].name}); choose another folder, or replace it with {option('force')}"
        )
    with reporting_write_errors(path):
        folder = Path(tempfile.mkdtemp(prefix=".unfinished.", dir=path))
    try:
        with _room_for(path):
            yield folder
        with reporting_write_errors(path):
            _exchange(old, folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if made:
            with suppress(OSError):  # another process may have put a file there meanwhile
                path.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(old: Sequence[Path], folder: Path, path: Path) -> None:
    """Replace old files by those of a staging folder; undo everything if that fails."""
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
def reporting_write_errors(label: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an error of the operating system into one line about the output.

    Args:
        label: the output, as the user named it.

    Raises:
        OutputError: the block raised an OSError; reading a volume raises a VolumeError instead.
    """
    try:
        yield
    except OSError as error:
        cause = " ".join((error.strerror or str(error)).split())
        raise OutputError(
            f"{label}: cannot be written ({cause}); make room, or choose a place where you may write"
        ) from error


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Turn a full disk into an OutputError; other errors inside the block are not about the output."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}); make room or choose another place"
            ) from error
        raise
