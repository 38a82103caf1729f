"""What this machine leaves to the process: its cores, memory that is kept for the next tensor, and installed packages."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KEPT", "available_cores", "keep_freed_memory", "package_versions"]

LARGEST_KEPT = 2**30  # bytes at once; more, such as a whole volume, is returned
KEPT = {
    "MALLOC_MMAP_THRESHOLD_": LARGEST_KEPT,
    "MALLOC_TRIM_THRESHOLD_": 2**40,  # of memory that is free
    "MALLOC_ARENA_MAX": 1,  # those of threads hold little
}
"""Environment variables by which a process does so from its start."""

# From malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8

CONTROL_GROUP = Path("/sys/fs/cgroup")
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Files of version 2 and 1 of control groups that hold the time of the processor in each period, and the period."""


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, unless the user's environment says what to do with it.

    A layer of a network takes tensors of many megabytes, which it frees for the next one. By default, the C library of
    Linux returns such memory to the system each time, which has to clear every page of it for the next tensor.
    Only with the C library of GNU; elsewhere this does nothing. It takes effect for all of the process, so it is for a
    program, not for a library, to call.

    Example:
        >>> keep_freed_memory()
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in (*KEPT, "GLIBC_TUNABLES")):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_ARENA_MAX, 1)


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


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, under ``"python"``, and of those packages that are installed.

    Example:
        >>> list(package_versions(["numpy", "no-such-package"]))
        ['python', 'numpy']
    """
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
