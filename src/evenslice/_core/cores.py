"""How many cores of the processor this process may use."""

from __future__ import annotations

import os

__all__ = ["available_cores"]


def available_cores() -> int:
    """Return the number of cores that this process may use: those that SLURM, a container or ``taskset`` leave it.

    Example:
        >>> 1 <= available_cores() <= os.cpu_count()
        True
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
