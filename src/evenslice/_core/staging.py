"""Files and folders written beside their final name and renamed at the end: old results are lost only to whole new ones.

Locks tell a second process that a first one works on the same result; the system releases those of a killed one.

Which files of a folder evenslice wrote is in a list kept beside them, so that nothing else is ever replaced or removed, but
for result documents, which are recognised by their beginning. Links are never followed, removed or replaced, whatever a list
says: a folder and the list in it may come from anyone.
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


_MARKER = ".evenslice-staging"
"""A file in each staging folder, without which none is removed that another process left: names alone may be the user's.

In those of ``staged_folder`` it is a lock: the system releases it when its process ends, however."""

_RETIRED = ".old"
"""The folder in a staging folder to which old results are moved until all new ones are in place."""

MANIFEST = ".evenslice-files.json"
"""Name of the list."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MOST_BYTES = 2**20
DOCUMENT_START = b'{\n  "format": '  # of every result document that evenslice writes, see ``json_text``

LONGEST_PREFIX = 200  # bytes of the name of a staging folder, which may have 255 on most file systems


@contextmanager
def staged_file(path: str | os.PathLike[str], *, force: bool = False, folder: bool = False) -> Iterator[Path]:
    """Yield a path to write to; the file takes its final name when the block ends without an error.

    Args:
        path: the final name.
        force: replace an existing file, which is kept if anything fails.
        folder: it is a folder, for the block to make, and replaced as a whole.

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
    _check_free(path, force=force, folder=folder)
    with reporting_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = _make_beside(path)
    new, old = beside / path.name, beside / _RETIRED
    try:
        with reporting_write_errors(path, only=FULL):
            yield new
        _check_free(path, force=force, folder=folder)  # another process may have put a file there meanwhile
        with reporting_write_errors(path):
            if path.is_dir():  # which nothing replaces in one step
                path.replace(old)
            new.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(beside, ignore_errors=True)


def _check_free(path: Path, *, force: bool, folder: bool) -> None:
    """Raise OutputError if an output must not take a name, as that of a device, which a file would remove."""
    if path.is_char_device() or path.is_block_device():
        raise OutputError(f"{path}: is a device; name a file")
    if path.is_dir() and not folder:
        raise OutputError(f"{path}: exists; name a file")
    if path.exists() and not (force and path.is_dir() == folder):
        raise OutputError(f"{path}: exists; choose another name, or replace it with {option('force')}")


def _make_beside(path: Path) -> Path:
    """Make a folder beside a path and named after it, as far as the file system allows."""
    prefix = os.fsdecode(os.fsencode(f".{path.name}")[:LONGEST_PREFIX])
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}.", dir=path.parent))
    try:
        (folder / _MARKER).touch()
    except BaseException:
        folder.rmdir()
        raise
    return folder


@contextmanager
def staged_folder(
    path: str | os.PathLike[str], results: Sequence[str], *, documents: Sequence[str], force: bool = False
) -> Iterator[Path]:
    """Yield an empty folder for results, which move to their final folder when the block ends without an error.

    Others keep files in the final folder, too: a list of those that were written is kept in it, and only what is on the
    list is replaced or removed. No link in it is followed.

    Args:
        path: the final folder, created if missing.
        results: glob patterns of the files that make up a result of this kind; folders are never removed.
        documents: those of the result's documents, which are known without the list.
        force: replace existing results of this kind.

    Raises:
        OutputError: the folder holds such results and ``force`` is not given, or files of such names that are not
            results, or links; or it is an address, or cannot be written.
    """
    path = local_path(path)
    made = not path.exists()
    with reporting_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        old = _old_results(path, results, documents)
    if old and not force:
        raise OutputError(
            f"{path}: holds another result ({old[0].name}); choose another folder, or replace it with {option('force')}"
        )
    with reporting_write_errors(path):
        _remove_abandoned(path)
        folder = Path(tempfile.mkdtemp(prefix=".unfinished.", dir=path))
    alive = FileLock(folder / _MARKER, thread_local=False)
    try:
        with reporting_write_errors(path, only=FULL):
            alive.acquire()
            yield folder
        with reporting_write_errors(path):
            written = (item for item in sorted(folder.rglob("*")) if item.is_file() and item.name != _MARKER)
            new = [item.relative_to(folder) for item in written]
            text = _manifest(path, [item.as_posix() for item in new])
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


def _is_staging(folder: Path) -> bool:
    """Return whether a path is a folder, not a link to one, that was made for unfinished work of evenslice."""
    return not folder.is_symlink() and (folder / _MARKER).is_file()


def _remove_abandoned(path: Path) -> None:
    """Remove the staging folders of killed processes from a folder of results, unless old results are in them."""
    for item in path.glob(".unfinished.*"):
        if _is_staging(item) and not _holds_retired(item):
            lock = FileLock(item / _MARKER)
            with suppress(Timeout, OSError), lock.acquire(timeout=0):
                shutil.rmtree(item, ignore_errors=True)


def _holds_retired(folder: Path) -> bool:
    """Say whether old results are in a staging folder, because an exchange, or its undoing, was cut short."""
    return any(item.is_file() and item.name != MANIFEST for item in (folder / _RETIRED).rglob("*"))


def _exchange(old: Sequence[Path], new: Sequence[Path], folder: Path, path: Path) -> None:
    """Replace old files by those of a staging folder; undo everything if that fails."""
    _refuse_links(path, [(path / item).parent for item in new])
    retired = folder / _RETIRED
    listed = path / MANIFEST
    moves = [
        *([(listed, retired / MANIFEST)] if listed.exists() else []),
        (folder / MANIFEST, listed),  # first, so that what a killed process leaves is known to be its own
        *((item, retired / item.relative_to(path)) for item in old),
        *((folder / item, path / item) for item in new),
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
def reporting_write_errors(label: str | os.PathLike[str], only: Collection[int] = ()) -> Iterator[None]:
    """Turn an error of the operating system into one line about the output.

    Args:
        label: the output, as the user named it.
        only: the numbers of the errors to turn, where others may be about something else; by default all.

    Raises:
        OutputError: the block raised an OSError; reading a volume raises a VolumeError instead.
    """
    try:
        yield
    except OSError as error:
        if only and error.errno not in only:
            raise
        cause = " ".join((error.strerror or str(error)).split())
        if isinstance(error, FileExistsError | NotADirectoryError):
            cause += f": {error.filename} is, or lies in, a file"
        raise OutputError(
            f"{label}: cannot be written ({cause}); make room, or choose a place where you may write"
        ) from error


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
        >>> (folder / ".run.json.k2_x7a0b" / ".evenslice-staging").touch()
        >>> remove_leftovers(folder, ["run.json"])
        >>> [item.name for item in folder.iterdir()]
        ['.run.json.original']
    """
    for item in folder.glob(".*"):
        found = _STAGING.fullmatch(item.name)
        if found and found[1] in names and _is_staging(item):
            shutil.rmtree(item, ignore_errors=True)


LOCK = ".evenslice-lock"
"""Name of the lock file in a folder of results, which is removed at the end: no file of the user's has it."""

WAIT_SECONDS = 1.0  # for a process that is just ending


@contextmanager
def locked_folder(folder: Path, busy: str) -> Iterator[None]:
    """Hold a lock on a folder of results; it is created if missing, and removed if it is empty at the end.

    Args:
        folder: the folder.
        busy: the message if another process holds it: what it works on, and what to do.

    Raises:
        OutputError: another process, or another thread of this one, holds it; or it cannot be written.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked_folder(folder, "out: another process writes it"), locked_folder(folder, "out: is written"):
        ...     pass
        Traceback (most recent call last):
        ...
        evenslice.OutputError: out: is written
    """
    made = [item for item in (folder, *folder.parents) if not item.exists()]
    path = folder / LOCK
    lock = FileLock(path, timeout=WAIT_SECONDS, thread_local=False)
    try:
        with reporting_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
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


def _old_results(folder: Path, patterns: Sequence[str], documents: Sequence[str]) -> list[Path]:
    """Return the files of an earlier result in a folder, which a new one may replace or remove.

    Raises:
        OutputError: a file has the name of a result, but is not one that evenslice wrote, or is one of another kind of
            result, with which it shares the name, or is a link.
    """
    found = _glob(folder, patterns)
    named = [folder / pattern for pattern in patterns if "*" not in pattern and "[" not in pattern]
    _refuse_links(folder, [*found, *named, *(folder / Path(pattern).parent for pattern in patterns)])
    listed = [folder / name for name in sorted(_listed(folder))]
    for item in found:
        if not (item.is_file() and (item in listed or _is_document(item))):
            raise OutputError(
                f"{item}: has the name of a result, but evenslice did not write it; move it away, or choose "
                "another folder"
            )
    if found and not _glob(folder, documents):
        for item in set(listed).difference(found):
            if item.parent == folder and item.suffix in {".json", ".yaml"} and item.is_file():
                raise OutputError(
                    f"{folder}: holds a result of another kind ({item.name}), to which {found[0].name} belongs; choose "
                    "another folder"
                )
    return found


def _manifest(folder: Path, new: Iterable[str]) -> str:
    """Return the list of a folder that is to get new files, named relative to it, with slashes."""
    kept = {name for name in _listed(folder) if os.path.lexists(folder / name)}
    return json.dumps({"format": 1, "files": sorted(kept | set(new))}, indent=2) + "\n"


def _refuse_links(folder: Path, items: Iterable[Path]) -> None:
    """Raise OutputError if paths in a folder, or what is above them there, are links."""
    for item in items:
        for place in (item, *(folder / above for above in item.relative_to(folder).parents)):
            if place != folder and place.is_symlink():
                raise OutputError(
                    f"{place}: is a link, through which nothing is written; remove it, or choose another folder"
                )


def _listed(folder: Path) -> set[str]:
    """Return the names in the list; none without a list that can be read."""
    try:
        names = json.loads(read_bounded(folder / MANIFEST, MOST_BYTES))["files"]
        return {PurePosixPath(name).as_posix() for name in names}
    except UNREADABLE:
        return set()


def _glob(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [item for pattern in patterns for item in sorted(folder.glob(pattern))]


def _is_document(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(DOCUMENT_START)) == DOCUMENT_START
    except OSError:
        return False
