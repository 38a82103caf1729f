"""Files and folders written beside their final name and renamed at the end: old results are lost only to whole new ones.

Locks tell a second process that a first one works on the same result; the system releases those of a killed one.

Which files of a folder evenslice wrote is in a list kept beside them, so that nothing else is ever replaced or removed. In a
folder without a list, a result document is recognised by its beginning, and files that are named like documents are then
taken for results; pages, figures and tables, whose names may be the user's, never are. Links are never followed, removed or
replaced, whatever a list says: a folder and the list in it may come from anyone.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from evenslice._core.errors import UNREADABLE, OutputError, option
from evenslice._core.files import local_path, open_regular, read_bounded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

__all__ = [
    "is_locked",
    "is_staging",
    "locked",
    "locked_folder",
    "mark_staging",
    "remove_leftovers",
    "reporting_write_errors",
    "staged_file",
    "staged_folder",
    "staged_tree",
]

_MARKER = ".evenslice-staging"
"""A file in each staging folder, without which none is removed that another process left: names alone may be the user's.

In those of ``staged_folder`` it is a lock: the system releases it when its process ends, however."""

_RETIRED = ".old"
"""The folder in a staging folder to which ``staged_folder`` moves old results until all new ones are in place."""

MANIFEST = ".evenslice-files.json"
"""Name of the list."""

MOST_BYTES = 2**20
DOCUMENT_START = b'{\n  "format": '  # of every result document that evenslice writes, see ``json_text``

LONGEST_PREFIX = 200  # bytes of the name of a staging folder, which may have 255 on most file systems


def mark_staging(folder: Path) -> None:
    """Mark a folder as one that only holds unfinished work of evenslice, which ``is_staging`` recognizes."""
    (folder / _MARKER).touch()


def is_staging(folder: Path) -> bool:
    """Return whether a path is a folder, not a link to one, that was made for unfinished work of evenslice."""
    return not folder.is_symlink() and (folder / _MARKER).is_file()


@contextmanager
def staged_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield a path to write to; the file takes its final name when the block ends without an error.

    Args:
        path: the final name.
        force: replace an existing file.

    Raises:
        OutputError: the name exists, before or after the block, and ``force`` is not given; it is an address, or it
            cannot be written.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with staged_file(folder / "a.txt") as beside:
        ...     _ = beside.write_text("whole")
        >>> (folder / "a.txt").read_text(), len(list(folder.iterdir()))
        ('whole', 1)
    """
    path = local_path(path)
    _check_free(path, force=force)
    with reporting_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = _make_beside(path)
    try:
        with _room_for(path):
            yield folder / path.name
        _check_free(path, force=force)  # another process may have put a file there meanwhile
        with reporting_write_errors(path):
            (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_free(path: Path, *, force: bool) -> None:
    """Raise OutputError if a file must not take a name."""
    _refuse_device(path)
    if path.is_dir() or (path.exists() and not force):
        hint = (
            "name a file" if path.is_dir() else f"choose another name, or replace it with {option('force')}"
        )
        raise OutputError(f"{path}: exists; {hint}")


def _refuse_device(path: Path) -> None:
    """Raise OutputError for a device, such as /dev/null: a file that takes its name would remove it."""
    if path.is_char_device() or path.is_block_device():
        raise OutputError(f"{path}: is a device; name a file")


def _make_beside(path: Path) -> Path:
    """Make a folder beside a path and named after it, as far as the file system allows."""
    prefix = os.fsdecode(os.fsencode(f".{path.name}")[:LONGEST_PREFIX])
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}.", dir=path.parent))
    try:
        mark_staging(folder)
    except BaseException:
        folder.rmdir()
        raise
    return folder


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
    _refuse_device(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = _make_beside(path)
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
    path: str | os.PathLike[str],
    results: Sequence[str],
    *,
    documents: Sequence[str] | None = None,
    force: bool = False,
) -> Iterator[Path]:
    """Yield an empty folder for results, which move to their final folder when the block ends without an error.

    Other files in the final folder stay as they are, and no link in it is followed.

    Args:
        path: the final folder, created if missing.
        results: glob patterns of the files that make up a result of this kind; folders are never removed.
        documents: given for a folder in which others keep files too: a list of the files that were written is kept in
            it, and only what is on the list is replaced or removed. These are glob patterns of the result's documents;
            where one of them is JSON of an earlier version, the folder needs no list.
        force: replace existing results of this kind.

    Raises:
        OutputError: the folder holds such results and ``force`` is not given, or files of such names that are not
            results, or links; or it is an address, or cannot be written.
    """
    path = local_path(path)
    made = not path.exists()
    with reporting_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        old = old_results(path, results, documents)
    if old and not force:
        raise OutputError(
            f"{path}: holds another result ({old[0].name}); choose another folder, or replace it with {option('force')}"
        )
    with reporting_write_errors(path):
        _remove_abandoned(path)
        folder = Path(tempfile.mkdtemp(prefix=".unfinished.", dir=path))
    alive = FileLock(folder / _MARKER, thread_local=False)
    try:
        with _room_for(path):
            alive.acquire()
            yield folder
        with reporting_write_errors(path):
            written = (item for item in sorted(folder.rglob("*")) if item.is_file() and item.name != _MARKER)
            new = [item.relative_to(folder) for item in written]
            if documents is not None:
                text = manifest_text(path, [item.as_posix() for item in new], documents)
                (folder / MANIFEST).write_text(text, encoding="utf-8")
            _exchange(old, new, folder, path)
    except BaseException:
        if not _holds_retired(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if made:
            with suppress(OSError):  # another process may have put a file there meanwhile
                path.rmdir()
        raise
    finally:
        alive.release()
    shutil.rmtree(folder, ignore_errors=True)
    _remove_abandoned(path, results)


def _remove_abandoned(path: Path, replaced: Sequence[str] = ()) -> None:
    """Remove the staging folders of killed processes from a folder of results, unless old results are in them.

    Args:
        path: the folder of results.
        replaced: glob patterns of results that whole new ones have replaced, so that old ones may go.
    """
    for item in path.glob(".unfinished.*"):
        if not is_staging(item) or _holds_retired(item, (MANIFEST, *replaced)):
            continue
        lock = FileLock(item / _MARKER)
        with suppress(Timeout, OSError), lock.acquire(timeout=0):
            shutil.rmtree(item, ignore_errors=True)


def _holds_retired(folder: Path, replaced: Sequence[str] = ()) -> bool:
    """Say whether old results are in a staging folder, because an exchange, or its undoing, was cut short.

    Args:
        folder: the staging folder.
        replaced: glob patterns of results that do not count.
    """
    retired = folder / _RETIRED
    settled = {item for pattern in replaced for item in retired.glob(pattern)}
    return any(item.is_file() and item not in settled for item in retired.rglob("*"))


def _exchange(old: Sequence[Path], new: Sequence[Path], folder: Path, path: Path) -> None:
    """Replace old files by those of a staging folder; undo everything if that fails."""
    refuse_links(path, [(path / item).parent for item in new])
    retired = folder / _RETIRED
    moves = [(item, retired / item.relative_to(path)) for item in old]
    moves += [(folder / item, path / item) for item in new]
    if (folder / MANIFEST).exists():  # first, so that what a killed process leaves is known to be its own
        listed = path / MANIFEST
        moves = [
            *([(listed, retired / MANIFEST)] if listed.exists() else []),
            (folder / MANIFEST, listed),
            *moves,
        ]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            done.append((source, target))  # before it is done: an interrupt may come right after
            source.replace(target)
    except BaseException:
        for source, target in reversed(done):
            if target.exists() and not source.exists():
                target.replace(source)
        raise
    if retired.exists():
        retired.rename(folder / "replaced")  # by whole new results: it may go now


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
        if file := _file_instead(Path(label), error):
            raise OutputError(f"{file}: is a file; name a folder") from error
        raise OutputError(
            f"{label}: cannot be written ({cause}); make room, or choose a place where you may write"
        ) from error


def _file_instead(path: Path, error: OSError) -> Path | None:
    """Return the file that stands where an output needs a folder, if that is what the error is about."""
    if not isinstance(error, FileExistsError | NotADirectoryError):
        return None
    return next((item for item in (path, *path.parents) if item.is_file()), None)


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


_STAGING = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # as `staged_file` and `staged_folder` name theirs


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what processes that were killed while they wrote some files left beside these, and nothing of the user's.

    Call it only while no other process can write them.

    Args:
        folder: where the files are; it may be missing.
        names: their final names, or "unfinished" for those of ``staged_folder``.

    Example:
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


LOCK = ".evenslice-lock"
"""Name of the lock file in a folder of results, which is removed at the end: no file of the user's has it."""

WAIT_SECONDS = 1.0  # for a process that is just ending


@contextmanager
def locked(path: str | os.PathLike[str], busy: str) -> Iterator[None]:
    """Hold a lock file while the block runs; it is created if missing, with its folder, and removed at the end.

    Args:
        path: the lock file, which is used for nothing else.
        busy: the message if another process holds it: what it works on, and what to do.

    Raises:
        OutputError: another process, or another thread of this one, holds it; or it cannot be created.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> with locked(path, "out: another process writes it"), locked(path, "out: another process writes it"):
        ...     pass
        Traceback (most recent call last):
        ...
        evenslice.OutputError: out: another process writes it
    """
    path = Path(path)
    with reporting_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=WAIT_SECONDS, thread_local=False)
        try:
            lock.acquire()
        except (Timeout, FileNotFoundError):  # the process that held it has just removed its folder
            raise OutputError(busy) from None
    try:
        yield
    finally:
        # Removed while it is held: filelock discards a lock on a file that has no name any more, so nobody is misled.
        with suppress(OSError):  # Windows does not remove what is open
            path.unlink()
        lock.release()


@contextmanager
def locked_folder(folder: Path, busy: str) -> Iterator[None]:
    """Hold a lock on a folder of results; it is created if missing, and removed if it is empty at the end.

    Args:
        folder: the folder.
        busy: the message if another process holds it.

    Raises:
        OutputError: another process, or another thread of this one, holds it; or it cannot be written.
    """
    made = [item for item in (folder, *folder.parents) if not item.exists()]
    try:
        with locked(folder / LOCK, busy):
            yield
    finally:
        for item in made:
            with suppress(OSError):  # it is not empty
                item.rmdir()


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder of results, or was killed while it did.

    Where this process sees other files by the same path than the one that holds the lock, it sees none.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked_folder(folder, "another process works in it"):
        ...     print(is_locked(folder))
        True
        >>> is_locked(folder)
        False
    """
    return (folder / LOCK).exists()


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
