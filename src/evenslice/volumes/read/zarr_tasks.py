"""Zarr's tasks, which go on after one of them has failed."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["settle", "settled_after_errors"]

_PATIENCE = 3
"""Seconds that are waited for reads that nobody needs any more."""

_WAITING = "evenslice: waits for the others"
"""Name of tasks that wait here, which do not wait for each other."""


def settle(seconds: float | None = None) -> None:
    """Wait for whatever Zarr reads and writes, after a chunk has failed.

    Args:
        seconds: how long at most; by default until all is done.
    """
    from zarr.core.sync import sync

    sync(_all_others(seconds))


async def _all_others(seconds: float | None) -> None:
    own = asyncio.current_task()
    if own is not None:
        own.set_name(_WAITING)
    if others := {task for task in asyncio.all_tasks() if task.get_name() != _WAITING}:
        done, _ = await asyncio.wait(others, timeout=seconds)
        for task in done:
            if not task.cancelled():
                task.exception()  # else asyncio reports it, with its traceback


@contextmanager
def settled_after_errors() -> Iterator[None]:
    """After an error in a block that reads, wait for its other chunks: what fails in them later would be printed."""
    try:
        yield
    except Exception:
        settle(_PATIENCE)
        raise
