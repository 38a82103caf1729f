"""Progress that a program follows, such as a graphical interface, in place of a bar on standard error.

    with progress_to(show):
        evenslice.audit(model, volume)

The listener is called in the thread that works. What it raises ends the work there, as Ctrl-C does on the command line:
nothing half-done is left under a final name.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ProgressReport", "listener", "progress_to"]


@dataclass(frozen=True)
class ProgressReport:
    """How far a piece of work is.

    Attributes:
        title: what is in progress.
        done: steps that are done.
        total: number of steps, at most.
        unit: name of the steps, in the plural.
    """

    title: str
    done: int
    total: int
    unit: str


_listener: ContextVar[Callable[[ProgressReport], None] | None] = ContextVar("listener", default=None)


@contextmanager
def progress_to(listener: Callable[[ProgressReport], None]) -> Iterator[None]:
    """Send all progress in the block to a listener, where ``progress`` is not set; only in this thread.

    Args:
        listener: is called when a piece of work begins, and whenever it advances. It may raise to end the work; an
            exception that is no ``Exception`` passes by all that handles errors, as ``KeyboardInterrupt`` does.

    Example:
        >>> from evenslice._core import progress_bar
        >>> with progress_to(lambda report: print(f"{report.title}: {report.done} of {report.total} {report.unit}")):
        ...     with progress_bar("audit", 8, "windows", show=None) as advance:
        ...         advance(4)
        audit: 0 of 8 windows
        audit: 4 of 8 windows
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def listener() -> Callable[[ProgressReport], None] | None:
    """Return the listener of this thread, if any."""
    return _listener.get()
