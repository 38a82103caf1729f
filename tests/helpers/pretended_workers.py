"""Workers whose tasks run in this process, as soon as they are submitted or when they are waited for."""

from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial

from evenslice import EvensliceError


class PretendedWorkers:
    """Workers whose tasks run in this process.

    Args:
        counts: numbers of workers, one for each time that somebody asks; the last one stays.

    Attributes:
        items: what was submitted, in order.
    """

    def __init__(self, *counts):
        self.counts, self.items = counts or (1,), []

    def capacity(self):
        count, *rest = self.counts
        self.counts = rest or self.counts
        return 2 * count

    @contextmanager
    def sharing(self, shared):
        yield partial(self.submit, () if shared is None else (shared.load(),))

    def submit(self, rest, function, item):
        self.items.append(item)
        future = Future()
        try:
            future.set_result(function(item, *rest))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future

    def lost(self):
        return EvensliceError("lost")
