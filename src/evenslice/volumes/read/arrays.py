"""Arrays that Zarr puts together from chunks, whatever stores these."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.core.sync import sync

from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PATIENCE = 3
"""Seconds that are waited for reads that nobody needs any more."""

_WAITING = "evenslice: waits for the others"
"""Name of tasks that wait for Zarr's tasks, which do not wait for each other."""


class ArrayInChunks(VoxelSource):
    """An array that Zarr puts together."""

    array: Any
    fresh = True

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the chunks under ``key``."""
        try:
            return np.asarray(self.array[key])
        except Exception:
            settle(_PATIENCE)  # what fails in other chunks later would be printed
            raise


def settle(seconds: float | None = None) -> None:
    """Wait for whatever Zarr reads and writes, after a chunk has failed: its other tasks go on.

    Args:
        seconds: how long at most; by default until all is done.
    """
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
