"""What this machine leaves to the process: cores, memory, of which some is kept, threads that wait, and packages."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
import time
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
KEPT = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX")
"""Environment variables that say what to do with freed memory."""

# From malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8

CONTROL_GROUP = Path("/sys/fs/cgroup")
THREAD = "evenslice reading ahead"

MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Files of version 2 and 1 of control groups that hold the memory of a container."""
LEAST_LIMIT = 2**32  # bytes; a command with PyTorch reserves more than it takes
MARGIN = 16  # the share of the memory that is left to others
DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # of GPUs, which reserve address space as large as the memory of all
PAUSE = 0.2  # seconds


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


def limit_memory(limit: int | None = None, *, watch: bool | None = None) -> None:
    """Let this process take no more than some memory, which a damaged or hostile file may make it ask for.

    On Linux, its data are limited, so that the allocation that would exceed the limit fails with MemoryError. Elsewhere,
    and where the driver of a GPU is loaded, which reserves much, its resident memory is watched, and a process that
    exceeds the limit ends at once with one line and status 2. It takes effect for all of the process, so it is for a
    program, not for a library, to call.

    Args:
        limit: in bytes, 0 for none; by default what the machine or its container has, less a sixteenth, and at least 4 GiB.
        watch: whether to watch resident memory; by default as said above.

    Example:
        >>> limit_memory(0)
    """
    if limit is None and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for name in MEMORY_LIMITS:
            with suppress(OSError, ValueError):  # no such file, or one that says "max"
                memory = min(memory, int((CONTROL_GROUP / name).read_text()))
        limit = max(memory - memory // MARGIN, LEAST_LIMIT)
    if not limit:
        return
    try:
        import resource  # which Windows lacks, as it lacks sysconf
    except ImportError:
        from evenslice._core.errors import ConfigError, option  # without which the command line begins

        raise ConfigError(
            f"{option('memory_limit')}: this system has no limits of memory; leave it out"
        ) from None
    if watch is None:
        watch = sys.platform != "linux" or any(map(os.path.exists, DRIVERS))
    if watch:
        threading.Thread(target=_watch_memory, args=(limit,), daemon=True).start()
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _watch_memory(limit: int) -> None:
    """End this process once it holds more memory than a limit."""
    import resource

    status = Path("/proc/self/status")
    while True:
        if status.exists():  # without the pages of mapped files
            held = 1024 * int(status.read_text().partition("RssAnon:")[2].split()[0])
        else:
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if held > limit:
            sys.stderr.write(f"error: memory: more than {limit / 2**30:.3g} GiB, the limit, are needed\n")
            sys.stderr.flush()
            os._exit(2)
        time.sleep(PAUSE)


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
