"""Locks that tell a second process that a first one works on the same result; the system releases those of a killed one."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from evenslice._core.errors import OutputError
from evenslice._core.staging import reporting_write_errors

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = ["is_locked", "locked", "locked_folder"]

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
        >>> import tempfile
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
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked_folder(folder, "another process works in it"):
        ...     print(is_locked(folder))
        True
        >>> is_locked(folder)
        False
    """
    return (folder / LOCK).exists()
