"""Progress bars."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evenslice._core.words import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    title: str, total: int, unit: str, *, show: bool | None, remaining: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; yield a function that advances it by a number of steps.

    Args:
        title: what is in progress.
        total: number of steps.
        unit: name of the steps, in the plural.
        show: whether to show it; None shows it if standard error is a terminal.
        remaining: show the remaining time, else the elapsed time.

    Example:
        >>> with progress_bar("audit", 8, "windows", show=False) as advance:
        ...     advance(4)
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn() if remaining else TimeElapsedColumn(),
    )
    hidden = not (console.is_terminal if show is None else show)
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(printable(title), total=total)
        yield lambda count: progress.advance(task, count)
