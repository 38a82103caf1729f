"""Progress: a bar on a terminal; elsewhere, as in the log of a cluster, a line every now and then.

A program that follows it, such as a graphical interface, listens in place of both:

    with progress_to(show):
        evenslice.audit(model, volume)

The listener is called in the thread that works. What it raises ends the work there, as Ctrl-C does on the command line:
nothing half-done is left under a final name.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evenslice._core.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


FIRST_LINE, LINE_EVERY = 10.0, 30.0  # seconds


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


class Advance(Protocol):
    """Advances a bar by a number of steps, with a note on how things are."""

    def __call__(self, count: int, note: str = "") -> None:
        """Advance."""


@contextmanager
def progress_bar(
    title: str,
    total: int,
    unit: str,
    *,
    show: bool | None,
    remaining: bool = True,
    done: int = 0,
    first_line: float = FIRST_LINE,
) -> Iterator[Advance]:
    """Show progress on standard error; yield a function that advances it by a number of steps.

    On a terminal it is a bar that vanishes at the end; elsewhere a line every half a minute, and nothing for work that
    is done within ``first_line``.

    Args:
        title: what is in progress.
        total: number of steps.
        unit: name of the steps, in the plural.
        show: True for a bar, False for nothing; None for a bar on a terminal and lines elsewhere, or for reports to
            the listener of ``progress_to`` if there is one.
        remaining: show the remaining time, else the elapsed time.
        done: number of steps that were done before.
        first_line: seconds until the first line.

    Example:
        >>> with progress_bar("audit", 8, "windows", show=False) as advance:
        ...     advance(4)
    """
    told = _listener.get()
    if show is None and told is not None:
        yield _Reports(told, ProgressReport(title, done, total, unit))
        return
    console = Console(stderr=True)
    if show is None and not console.is_terminal:
        yield _Lines(title, total, unit, remaining=remaining, done=done, first_line=first_line)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn() if remaining else TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=show is False) as progress:
        task = progress.add_task(printable(title), total=total, completed=done, note="")

        def advance(count: int, note: str = "") -> None:
            progress.update(task, advance=count, note=printable(note))

        yield advance


class _Reports:
    """Tells a listener how far the work is."""

    def __init__(self, told: Callable[[ProgressReport], None], begin: ProgressReport) -> None:
        self._told, self._report = told, begin
        told(begin)

    def __call__(self, count: int, note: str = "") -> None:  # noqa: ARG002  # a listener has no use for the note
        self._report = replace(self._report, done=self._report.done + count)
        self._told(self._report)


class _Lines:
    """Prints how far the work is, if the last line is old enough.

    A reader of standard error that has gone does not end the work.
    """

    def __init__(
        self, title: str, total: int, unit: str, *, remaining: bool, done: int, first_line: float
    ) -> None:
        self._title, self._total, self._unit, self._remaining = title, total, unit, remaining
        self._before = self._done = done
        self._began = time.monotonic()
        self._due = self._began + first_line
        self._printed = self._ended = False

    def __call__(self, count: int, note: str = "") -> None:
        self._done += count
        now = time.monotonic()
        ended = self._done >= self._total and count > 0
        if self._ended or (now < self._due and not (ended and self._printed)):
            return
        self._due, self._printed, self._ended = now + LINE_EVERY, True, ended
        parts = [f"{self._title}: {self._done}/{self._total} {self._unit}", note, self._time(now)]
        with suppress(OSError):
            sys.stderr.write(printable(", ".join(filter(None, parts))) + "\n")
            sys.stderr.flush()

    def _time(self, now: float) -> str:
        seconds, done = now - self._began, self._done - self._before
        if not self._remaining:
            return f"{_clock(seconds)} elapsed"
        left = max(0, self._total - self._done)
        return f"{_clock(seconds / done * left)} remaining" if done else ""


def _clock(seconds: float) -> str:
    return str(dt.timedelta(seconds=round(seconds)))
