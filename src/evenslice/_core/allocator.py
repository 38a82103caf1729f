"""Memory that this process frees stays with it, to be used again.

A layer of a network takes tensors of many megabytes, which it frees for the next one. By default, the C library of Linux
returns such memory to the system each time, which has to clear every page of it for the next tensor.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

__all__ = ["KEPT", "keep_freed_memory"]

LARGEST_KEPT = 2**30  # bytes at once; more, such as a whole volume, is returned
KEPT = {
    "MALLOC_MMAP_THRESHOLD_": LARGEST_KEPT,
    "MALLOC_TRIM_THRESHOLD_": 2**40,  # of memory that is free
    "MALLOC_ARENA_MAX": 1,  # those of threads hold little
}
"""Environment variables by which a process does so from its start."""

# From malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, unless the user's environment says what to do with it.

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
