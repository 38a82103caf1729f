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
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from evenslice._core.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType


FIRST_LINE, LINE_EVERY = 10.0, 30.0  # seconds


Listener: TypeAlias = "Callable[[str, int, int, str], None]"
"""Takes a title, the number of steps that are done, how many there are at most, and their name in the plural."""

Advance: TypeAlias = "Callable[..., None]"
"""Advances a bar by a number of steps, with a note on how things are."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def progress_to(listener: Listener) -> Iterator[None]:
    """Send all progress in the block to a listener, where ``progress`` is not set; only in this thread.

    Args:
        listener: is called when a piece of work begins, and whenever it advances: with its title, the number of steps that
            are done, how many there are at most, and their name in the plural. It may raise to end the work; an
            exception that is no ``Exception`` passes by all that handles errors, as ``KeyboardInterrupt`` does.

    Example:
        >>> from evenslice._core import progress_bar
        >>> with progress_to(lambda title, done, total, unit: print(f"{title}: {done} of {total} {unit}")):
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
        yield _reports(told, title, total, unit, done)
        return
    console = Console(stderr=True)
    if show is None and not console.is_terminal:
        yield _lines(title, total, unit, remaining=remaining, before=done, first_line=first_line)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn() if remaining else TimeElapsedColumn(),
    )
    with _NotedProgress(*columns, console=console, transient=True, disable=show is False) as progress:
        task = progress.add_task(printable(title), total=total, completed=done, note="")

        def advance(count: int, note: str = "") -> None:
            progress.update(task, advance=count, note=printable(note))

        yield advance


class _NotedProgress(Progress):
    """A bar with a line for the note below it."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(task.fields["note"]) for task in self.tasks if task.fields["note"])


def _reports(told: Listener, title: str, total: int, unit: str, done: int) -> Advance:
    """Tell a listener how far the work is."""

    def advance(count: int, note: str = "") -> None:  # noqa: ARG001  # a listener has no use for it
        nonlocal done
        done += count
        told(title, done, total, unit)

    advance(0)
    return advance


def _lines(title: str, total: int, unit: str, *, remaining: bool, before: int, first_line: float) -> Advance:
    """Print how far the work is, if the last line is old enough; a reader who has gone does not end the work."""
    began, done, printed = time.monotonic(), before, False
    due = began + first_line

    def advance(count: int, note: str = "") -> None:
        nonlocal done, printed, due
        ended = done < total <= done + count
        done, now = done + count, time.monotonic()
        if now < due and not (ended and printed):
            return
        due, printed = now + LINE_EVERY, True
        passed = now - began
        if not remaining:
            left = f"{_clock(passed)} elapsed"
        else:
            left = (
                f"{_clock(passed / (done - before) * max(0, total - done))} remaining"
                if done > before
                else ""
            )
        with suppress(OSError):
            sys.stderr.write(
                printable(", ".join(filter(None, [f"{title}: {done}/{total} {unit}", note, left]))) + "\n"
            )
            sys.stderr.flush()

    return advance


def _clock(seconds: float) -> str:
    return str(dt.timedelta(seconds=round(seconds)))
