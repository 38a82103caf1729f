"""How commands end that were interrupted and can go on where they were."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from evenslice._core import Terminated
from evenslice.cli.exit_statuses import INTERRUPTED
from evenslice.cli.printing import tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["resumable"]


@contextmanager
def resumable(remedy: str | Callable[[], str | None]) -> Iterator[None]:
    """Say in one line how to go on if the block is interrupted, and end with the status that shells expect.

    Args:
        remedy: how to go on, as the end of the line; or what returns it, or None if there is nothing to go on with.

    Raises:
        typer.Exit: it was interrupted; the status is 130 for Ctrl-C and 143 for SIGTERM.
        KeyboardInterrupt: likewise, and there is nothing to go on with.
    """
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
