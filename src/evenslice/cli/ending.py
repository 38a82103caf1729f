"""How commands end early: refused by the operating system, or interrupted."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["INTERRUPTED", "TERMINATED", "discard_stdout", "refusal", "resumable"]

INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses of commands that were ended by a signal, as shells expect them."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = "choose a place where you may read and write"
_FULL = "make room, or choose another place"

HINTS = {
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EROFS: "nothing can be written there; choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the link leads back to itself; name a file or a folder",
    **dict.fromkeys(FULL, _FULL),
}
"""What would be right, for each error that is the user's; any other is a defect of the program."""


def refusal(error: BaseException) -> str | None:
    """Return one line about an error of the operating system that is the user's; None for any other error.

    Paths are looked at in many places, and any of them can fail so; commands therefore leave these errors to the end.

    Example:
        >>> refusal(PermissionError(errno.EACCES, "Permission denied", "there/a.npy"))
        'there/a.npy: Permission denied; choose a place where you may read and write'
        >>> refusal(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npy")) is None
        True
    """
    if isinstance(error, RuntimeError):  # by which pathlib reports a loop of links before Python 3.13
        error = error.__context__ or error
        if not isinstance(error, OSError) or error.errno != errno.ELOOP:
            return None
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOENT and not _is_here():
        return "the working directory: was removed; change to a folder that exists"
    if error.filename is not None and error.errno in HINTS:
        return f"{os.fsdecode(error.filename)}: {error.strerror}; {HINTS[error.errno]}"
    if error.errno in FULL:  # of an open file, such as standard output, for which the system gives no name
        discard_stdout()
        return f"output: cannot be written ({error.strerror}); {_FULL}"
    return None


def discard_stdout() -> None:
    """Send nowhere what standard output still holds, on which Python would fail when it ends."""
    with suppress(OSError, ValueError, AttributeError):  # it is no file of the system, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_here() -> bool:
    """Return whether the working directory exists."""
    try:
        Path.cwd()
    except OSError:
        return False
    return True


@contextmanager
def resumable(remedy: str | Callable[[], str | None]) -> Iterator[None]:
    """Say in one line how to go on if the block is interrupted, and end with the status that shells expect.

    Args:
        remedy: how to go on, as the end of the line; or what returns it, or None if there is nothing to go on with.

    Raises:
        typer.Exit: it was interrupted; the status is 130 for Ctrl-C and 143 for SIGTERM.
        KeyboardInterrupt: likewise, and there is nothing to go on with.
    """
    import typer

    from evenslice._core import Terminated
    from evenslice.cli.printing import tell

    try:
        yield
    except KeyboardInterrupt as error:
        how = remedy if isinstance(remedy, str) else remedy()
        if how is None:
            raise
        what = str(error) or ("terminated" if isinstance(error, Terminated) else "interrupted")
        if _is_first_process():
            tell(f"{what}; {how}")
        raise typer.Exit(getattr(error, "status", INTERRUPTED)) from None


def _is_first_process() -> bool:
    if "evenslice.training" not in sys.modules:  # whose packages may be missing
        return True
    from evenslice.training import is_first_process

    return is_first_process()
