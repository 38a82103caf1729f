"""What this machine leaves to the process: cores, memory kept for the next tensor, threads that wait, and packages."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections import deque
from concurrent.futures import Future, wait
from contextlib import suppress
from importlib import metadata
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable


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
THREAD = "evenslice reading ahead"


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
    with suppress(OSError, ValueError):  # no such file, or one that says "max"
        quota, period = map(int, (CONTROL_GROUP / "cpu.max").read_text().split())
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


Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = 1.0  # seconds that the end waits for what is in progress: a server may take a minute


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result]:
    """Apply a function to items in threads, and yield the results in the order of the items.

    For work that waits for a server or a disk. Items are taken in the thread of the caller, at most ``ahead`` of them beyond
    the one whose result it has. When it stops, or an item raises, those that wait are left and those in progress end
    unheard: a pool of ``concurrent.futures`` would do them all before an interrupt ends the program.

    Args:
        function: what to apply; safe to use from several threads.
        items: what to apply it to.
        threads: number of items in progress at once.
        ahead: number of items that are begun early; 0 works through all in the thread of the caller.

    Raises:
        Exception: that which the function raised for the item whose result is due.

    Example:
        >>> list(map_ahead(abs, [-1, 2, -3], threads=2, ahead=2))
        [1, 2, 3]
    """
    if ahead < 1:
        yield from map(function, items)
        return
    items, started = iter(items), 0
    due: deque[Future[Result]] = deque()
    tasks: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()
    try:
        while True:
            for item in islice(items, ahead + 1 - len(due)):
                due.append(Future())
                tasks.put((due[-1], item))
                if started < threads:
                    threading.Thread(target=_work, args=(function, tasks), name=THREAD, daemon=True).start()
                    started += 1
            if not due:
                return
            yield due.popleft().result()
    finally:
        for _ in range(started):
            tasks.put(None)
        wait([future for future in due if not future.cancel()], PATIENCE)


def _work(function: Callable[[Item], Result], tasks: SimpleQueue[tuple[Future[Result], Item] | None]) -> None:
    while (task := tasks.get()) is not None:
        future, item = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits for the result
                future.set_exception(error)
        del future, item, task  # while waiting for the next, hold no result of the last
