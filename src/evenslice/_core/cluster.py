"""One function applied to many items, in this process or on the workers of a Dask cluster.

    with open_cluster(workers=4) as client:
        for item, outcome in map_as_finished(function, items, client):
            ...

Without workers or a scheduler there is no client, and this process works through the items one by one. With a client, a
Dask cluster does: one started on this machine or one that is already running. Functions and items must then pickle.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections import deque
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from evenslice._core.errors import (
    ConfigError,
    EvensliceError,
    needs_extra,
    option,
    reason,
    whole_number,
)
from evenslice._core.local_workers import local_client
from evenslice._core.words import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

__all__ = ["check_sendable", "map_as_finished", "map_in_order", "open_cluster", "refuse_killed"]

_CLIENT_LOGGER = logging.getLogger("distributed.client")

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10
MOST_WORKERS = 1024
PATROL_SECONDS = 30  # between looks whether there still are workers
AHEAD = 2  # items sent to each worker, including the one in progress
_LOADING = threading.Lock()
START_AGAIN = "start the command again (a segmentation or study keeps what is finished)"


@contextmanager
def open_cluster(workers: int | None = None, scheduler: str | None = None) -> Iterator[Any]:
    """Yield a Dask client, or None if neither workers nor a scheduler is given.

    Args:
        workers: number of processes to start on this machine; they share its cores.
        scheduler: address of a running scheduler, such as ``tcp://host:8786``.

    Raises:
        ConfigError: both are given, ``workers`` is not a whole number of at least 1, or the scheduler does not answer.
        EvensliceError: the worker processes on this machine do not start.
        MissingExtraError: Dask is not installed.

    Example:
        >>> with open_cluster() as client:
        ...     list(map_as_finished(abs, [-1, 2], client))
        [(-1, 1), (2, 2)]
    """
    if workers is not None and scheduler is not None:
        raise ConfigError(
            f"{option('workers')} starts workers here, {option('scheduler')} uses those of a cluster; give "
            "one of the two"
        )
    if workers is not None:
        workers = whole_number("workers", workers, least=1)
        if workers > MOST_WORKERS:
            raise ConfigError(
                f"{option('workers', workers)}: each is a process on this machine, of which it starts at most "
                f"{MOST_WORKERS}; for more machines, give {option('scheduler')}"
            )
    try:
        if workers is not None:
            with local_client(workers) as client:
                yield client
        elif scheduler is not None:
            with needs_extra("cluster", "working in several processes"):
                from distributed import Client
            with _connect(Client, scheduler) as client:
                yield client
        else:
            yield None
    finally:
        if _CLIENT_LOGGER.level == logging.CRITICAL:  # since the scheduler was lost
            _CLIENT_LOGGER.setLevel(logging.WARNING)  # as Dask sets it


def _connect(connect: Callable[..., Any], scheduler: str) -> Any:
    try:
        return connect(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:  # a timeout is an OSError
        raise ConfigError(
            f"{option('scheduler', scheduler)}: does not answer ({error}); give the address that `dask scheduler` printed"
        ) from error


def check_sendable(item: Any, what: str) -> None:
    """Check that an object can be sent to workers.

    Args:
        item: the object, such as a function.
        what: how the message calls it.

    Raises:
        ConfigError: it cannot be pickled.
        MissingExtraError: Dask is not installed.

    Example:
        >>> check_sendable(abs, "the function abs")
    """
    with needs_extra("cluster", "working in several processes"):
        from distributed.protocol.pickle import dumps
    try:
        dumps(item)
    except Exception as error:  # __reduce__ may raise anything
        raise ConfigError(
            f"{what} cannot be sent to workers ({type(error).__name__}: {reason(error)}); define it, and what it uses, "
            f"at the top level of a module, or leave {option('workers')} and {option('scheduler')} out"
        ) from error


def map_as_finished(
    function: Callable[..., Result],
    items: Iterable[Item],
    client: Any = None,
    *,
    common: Any = None,
    needs: Callable[[Item], Item | None] = lambda _: None,
    meanwhile: Callable[[Item], object] = lambda _: None,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Apply a function to items and yield each with its result, in the order in which they finish.

    On a cluster, items begin in their order, as far as what they need allows: a few are submitted at a time, for among many
    the scheduler chooses as it likes. If a worker dies, another one takes its items.

    Args:
        function: what to apply; on a cluster it may run more than once for an item.
        items: what to apply it to.
        client: client of a Dask cluster, or None for this process.
        common: second argument of the function, unless None; sent to each worker once.
        needs: returns for an item the one that has to be finished before it begins, or None; that one (the same
            object) comes earlier in ``items``, or is not among them.
        meanwhile: on a cluster, called with each item that a worker has when none has finished for ``PATROL_SECONDS``.

    Yields:
        An item and its result; on a cluster, the exception if there is no result, as when several workers died with it
        or with what it needs.

    Raises:
        EvensliceError: all worker processes on this machine were lost, and none came back; or the scheduler was lost.
    """
    rest = () if common is None else (common,)
    if client is None:
        for item in items:
            yield item, function(item, *rest)
        return
    from distributed import wait

    patrol = _Patrol(client)
    rest, items = _send(patrol, rest), iter(items)
    futures: dict[Any, Item] = {}
    sent: dict[int, Any] = {}  # futures of items, and exceptions of those that have failed
    while True:
        taken = False
        for item in islice(items, max(0, patrol.capacity() - len(futures))):
            taken = True
            before = sent.get(id(needs(item)))
            if isinstance(before, Exception):
                yield item, before
                continue
            future = patrol.submit(_after, before, function, item, *rest)
            futures[future], sent[id(item)] = item, future
        if not futures:
            if taken:
                continue  # all of them need what has failed
            return
        with patrol.unless_lost():
            wait(list(futures), timeout=PATROL_SECONDS, return_when="FIRST_COMPLETED")
        finished = [future for future in futures if future.done()]
        for item in () if finished else futures.values():
            meanwhile(item)
        for future in finished:
            item = futures.pop(future)
            with _noticing_loss(client):
                error = future.exception()
                outcome = future.result() if error is None else error
            sent[id(item)] = error
            yield item, outcome
            future.release()


def map_in_order(
    function: Callable[..., Result], items: Iterable[Item], client: Any = None, *, common: Any = None
) -> Generator[Result]:
    """Apply a function to items one after another, or on a cluster a few at a time, and yield the results in order.

    Items are submitted as results are consumed: those not yet sent to a worker when the caller stops are never run.

    Args:
        function: what to apply.
        items: what to apply it to; consumed as workers become free.
        client: client of a Dask cluster, or None for this process.
        common: second argument of the function, unless None; sent to each worker once.

    Raises:
        EvensliceError: as for ``map_as_finished``; or an item killed every worker that took it.

    Example:
        >>> list(map_in_order(pow, [2, 3], common=2))
        [4, 9]
    """
    rest = () if common is None else (common,)
    if client is None:
        for item in items:
            yield function(item, *rest)
        return
    patrol = _Patrol(client)
    rest, items = _send(patrol, rest), iter(items)
    waiting: deque[Any] = deque()
    while True:
        for item in islice(items, max(0, patrol.capacity() - len(waiting))):
            waiting.append(patrol.submit(_after, None, function, item, *rest))
        if not waiting:
            return
        try:
            found = patrol.result(waiting.popleft())
        except Exception as error:
            refuse_killed(error, "the same task")
            raise
        yield found


def refuse_killed(error: Exception, what: str, more: str = "") -> None:
    """Raise EvensliceError if an exception that takes the place of a result says that all workers with the item died.

    Args:
        error: the exception.
        what: how the message calls what they worked on.
        more: what else to do, as the end of the message.
    """
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        raise EvensliceError(
            f"every worker that took {what} died, probably for lack of memory; give workers more memory, or fewer windows "
            f"at once with {option('batch', 1)}{more}"
        ) from error


@contextmanager
def _noticing_loss(client: Any) -> Iterator[None]:
    """Let the loss of the scheduler, for which Dask raises exceptions of many types, be one error.

    Raises:
        EvensliceError: the scheduler was lost.
    """
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        if not isinstance(error, CancelledError | OSError) and client.status == "running":
            raise
        # Closing the client would print tracebacks.
        _CLIENT_LOGGER.setLevel(logging.CRITICAL)
        raise EvensliceError(f"the scheduler was lost; {START_AGAIN}") from error


class _Patrol:
    """Gives work to a cluster, and waits for results as long as there are workers; by itself, Dask waits for ever.

    Args:
        client: client of a cluster. One of other machines may be without workers until a queue lets them start.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._alone = False  # whether there were no workers the last time
        self._told = False  # whether the user knows that there are none yet

    def capacity(self) -> int:
        """Return the number of items that may be with the workers, which come and go."""
        with _noticing_loss(self._client):
            return AHEAD * max(1, len(self._client.nthreads()))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the future of a function of arguments."""
        with _noticing_loss(self._client):
            return self._client.submit(function, *arguments, pure=False)

    @contextmanager
    def unless_lost(self) -> Iterator[None]:
        """Let the block end when it has waited for ``PATROL_SECONDS``.

        Raises:
            EvensliceError: there were no workers on this machine then, nor the time before; or the scheduler was lost.
        """
        with _noticing_loss(self._client):
            try:
                yield
                self._alone = self._told = False
            except TimeoutError:
                alone = not self._client.nthreads()
                if self._client.cluster is None:  # on other machines
                    self._tell(alone=alone)
                elif alone and self._alone:
                    raise EvensliceError(f"all worker processes were lost; {START_AGAIN}") from None
                self._alone = alone

    def _tell(self, *, alone: bool) -> None:
        """Say on standard error that there are no workers, once as long as there are none."""
        told, self._told = self._told, alone
        if alone and not told:
            with suppress(OSError):  # as of lines of progress
                sys.stderr.write(printable(f"waiting for workers of {self._client.scheduler.address}") + "\n")
                sys.stderr.flush()

    def replicate(self, futures: Sequence[Any]) -> None:
        """Copy the results of tasks to every worker."""
        with _noticing_loss(self._client):
            self._client.replicate(futures)

    def wait(self, future: Any) -> None:
        """Wait until a task is done."""
        while not future.done():
            with self.unless_lost():
                future.exception(timeout=PATROL_SECONDS)

    def result(self, future: Any) -> Any:
        """Return the result of a task, or raise its exception."""
        self.wait(future)
        if future.status == "error":  # which may be an OSError of its own
            return future.result()
        with _noticing_loss(self._client):
            return future.result()


class _Sent:
    """An object for workers, as bytes until the first task of a process needs it.

    Dask unpickles messages before it knows whose task they are about: a worker that could not import a module would end
    without a word, and its tasks would wait for another one for ever. A task that cannot do it fails.
    """

    def __init__(self, pickled: bytes, item: Any = None) -> None:
        self._pickled, self._item = pickled, item

    def __reduce__(self) -> tuple[Any, ...]:
        from distributed.protocol.pickle import dumps

        with _LOADING:
            return _Sent, (self._pickled if self._item is None else dumps(self._item),)

    def load(self) -> Any:
        """Return the object, or raise ConfigError if it cannot be unpickled here."""
        from distributed.protocol.pickle import loads

        with _LOADING:
            if self._item is None:
                try:
                    self._item, self._pickled = loads(self._pickled), b""
                except Exception as error:  # unpickling may raise anything
                    raise ConfigError(
                        f"the cluster cannot load what it is sent ({type(error).__name__}: {reason(error)}); your own code "
                        "must be in a module that every worker can import, and they need the same packages as this process"
                    ) from error
            return self._item


def _send(patrol: _Patrol, objects: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy objects to every worker, as results of tasks, which survive the loss of workers that hold them.

    A worker that fetched them only when needed would wait, because busy workers are slow to answer.
    """
    if not objects:
        return ()
    from distributed.protocol.pickle import dumps

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)  # networks are large
        futures = tuple(patrol.submit(_Sent, dumps(item)) for item in objects)
    for future in futures:
        patrol.wait(future)
    patrol.replicate(futures)
    return futures


def _after(_before: Any, function: Callable[..., Result], item: Any, *sent: _Sent) -> Result:
    """Call a function; the scheduler waits for what is finished before."""
    return function(item, *(each.load() for each in sent))
