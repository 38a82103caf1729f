"""One function applied to many items in a few threads, for work that waits: for a server, or for a disk.

    for window in map_ahead(read, places, threads=8, ahead=16):
        ...                             # the next 16 are being read meanwhile

A pool of ``concurrent.futures`` would do all that it was given before an interrupt ends the program, and Python waits for its
threads at the end. These threads leave what has not begun, nobody waits long for them, and they end when nothing is left to do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

__all__ = ["map_ahead"]

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = 1.0  # seconds that the end waits for what is in progress: a server may take a minute


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result]:
    """Apply a function to items in threads, and yield the results in the order of the items.

    Items are taken in the thread of the caller, at most ``ahead`` of them beyond the one whose result it has. When it stops,
    or an item raises, those that wait are left and those in progress end unheard.

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
    items, workers = iter(items), _Threads(function, threads)
    due: deque[Future[Result]] = deque()
    try:
        while True:
            due.extend(workers.submit(item) for item in islice(items, ahead + 1 - len(due)))
            if not due:
                return
            yield due.popleft().result()
    finally:
        workers.stop()


class _Threads(Generic[Item, Result]):
    """Threads that apply a function to what is submitted, in that order; each ends when nothing waits.

    Args:
        function: what to apply.
        most: number of threads.
    """

    def __init__(self, function: Callable[[Item], Result], most: int) -> None:
        self._function, self._most = function, most
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._running: set[threading.Thread] = set()
        self._failed = False

    def submit(self, item: Item) -> Future[Result]:
        """Return the future of an item; it begins when a thread is free."""
        future: Future[Result] = Future()
        with self._lock:
            self._waiting.append((item, future))
            if len(self._running) < self._most and not self._failed:
                thread = threading.Thread(target=self._work, name="evenslice reading ahead", daemon=True)
                thread.start()
                self._running.add(thread)
        return future

    def stop(self) -> None:
        """Leave what waits, and wait for what is in progress, but not long."""
        with self._lock:
            self._waiting.clear()
            running = list(self._running)
        until = time.monotonic() + PATIENCE
        for thread in running:
            thread.join(max(until - time.monotonic(), 0))

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._failed or not self._waiting:
                    self._running.discard(threading.current_thread())
                    return
                item, future = self._waiting.popleft()
            try:
                future.set_result(self._function(item))
            except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits for the result
                self._failed = True  # the caller comes to this item before those that wait
                future.set_exception(error)
            del item, future  # while waiting for the next, hold no result of the last
