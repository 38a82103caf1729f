"""How many cores of the processor this process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["available_cores"]

CONTROL_GROUP = Path("/sys/fs/cgroup")
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Files of version 2 and 1 of control groups that hold the time of the processor in each period, and the period."""


def available_cores() -> int:
    """Return the number of cores that this process may use: those that SLURM, a container or ``taskset`` leave it.

    Example:
        >>> 1 <= available_cores() <= os.cpu_count()
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _container_cores() or cores)


def _container_cores() -> int | None:
    """Return the number of cores, rounded up, whose time a container has; None if it is not limited."""
    for names in QUOTAS:
        with suppress(OSError, ValueError):  # no such file, or one that says "max"
            quota, period = (
                int(word) for name in names for word in (CONTROL_GROUP / name).read_text().split()
            )
            if quota > 0 and period > 0:
                return -(-quota // period)
    return None
