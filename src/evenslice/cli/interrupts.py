"""How commands end that were interrupted and can go on where they were."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from evenslice._core import Terminated
from evenslice.cli.exit_statuses import INTERRUPTED
from evenslice.cli.printing import tell

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["resumable"]


@contextmanager
def resumable(remedy: str) -> Iterator[None]:
    """Say in one line how to go on if the block is interrupted, and end with the status that shells expect.

    Args:
        remedy: how to go on, as the end of the line.

    Raises:
        typer.Exit: it was interrupted; the status is 130 for Ctrl-C and 143 for SIGTERM.
    """
    from evenslice.training import TrainingInterrupted, is_first_process

    try:
        yield
    except TrainingInterrupted as error:
        if is_first_process():
            tell(f"{error}; {remedy}")
        raise typer.Exit(error.status) from None
    except Terminated as error:
        tell(f"terminated; {remedy}")
        raise typer.Exit(error.status) from None
    except KeyboardInterrupt:
        tell(f"interrupted; {remedy}")
        raise typer.Exit(INTERRUPTED) from None
