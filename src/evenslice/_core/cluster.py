"""One function applied to many items, in this process or on the workers of a Dask cluster.

    with open_cluster(workers=4) as client:
        for item, outcome in map_as_finished(function, items, client):
            ...

Without workers or a scheduler there is no client, and this process works through the items one by one. With a client, a
Dask cluster does: one started on this machine or one that is already running. Functions and items must then pickle.
"""

from __future__ import annotations

import warnings
from collections import deque
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from evenslice._core.errors import ConfigError, EvensliceError, needs_extra, option, reason
from evenslice._core.local_workers import local_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["check_sendable", "map_as_finished", "map_in_order", "open_cluster"]

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10
PATROL_SECONDS = 30  # between looks whether there still are workers
AHEAD = 2  # items sent to each worker, including the one in progress


@contextmanager
def open_cluster(workers: int | None = None, scheduler: str | None = None) -> Iterator[Any]:
    """Yield a Dask client, or None if neither workers nor a scheduler is given.

    Args:
        workers: number of processes to start on this machine; they share its cores.
        scheduler: address of a running scheduler, such as ``tcp://host:8786``.

    Raises:
        ConfigError: both are given, ``workers`` is below 1, or the scheduler does not answer.
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
    if workers is not None and workers < 1:
        raise ConfigError(f"{option('workers', workers)}: must be at least 1")
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

    Yields:
        An item and its result; on a cluster, the exception if there is no result, as when several workers died with it
        or with what it needs.

    Raises:
        EvensliceError: all worker processes on this machine were lost, and none came back.
    """
    rest = () if common is None else (common,)
    if client is None:
        for item in items:
            yield item, function(item, *rest)
        return
    from distributed import wait

    rest, items = _send(client, rest), iter(items)
    futures: dict[Any, Item] = {}
    sent: dict[int, Any] = {}  # futures of items, and exceptions of those that have failed
    patrol = _Patrol(client)
    while True:
        taken = False
        for item in islice(items, max(0, _capacity(client) - len(futures))):
            taken = True
            before = sent.get(id(needs(item)))
            if isinstance(before, Exception):
                yield item, before
                continue
            future = client.submit(_after, before, function, item, *rest, pure=False)
            futures[future], sent[id(item)] = item, future
        if not futures:
            if taken:
                continue  # all of them need what has failed
            return
        with patrol.unless_lost():
            wait(list(futures), timeout=PATROL_SECONDS, return_when="FIRST_COMPLETED")
        for future in [future for future in futures if future.done()]:
            item, error = futures.pop(future), future.exception()
            sent[id(item)] = error
            yield item, future.result() if error is None else error
            future.release()


def map_in_order(
    function: Callable[..., Result], items: Iterable[Item], client: Any = None, *, common: Any = None
) -> Iterator[Result]:
    """Apply a function to items one after another, or on a cluster a few at a time, and yield the results in order.

    Items are submitted as results are consumed: those not yet sent to a worker when the caller stops are never run.

    Args:
        function: what to apply.
        items: what to apply it to; consumed as workers become free.
        client: client of a Dask cluster, or None for this process.
        common: second argument of the function, unless None; sent to each worker once.

    Raises:
        EvensliceError: as for ``map_as_finished``.

    Example:
        >>> list(map_in_order(pow, [2, 3], common=2))
        [4, 9]
    """
    rest = () if common is None else (common,)
    if client is None:
        for item in items:
            yield function(item, *rest)
        return
    rest, items = _send(client, rest), iter(items)
    waiting: deque[Any] = deque()
    patrol = _Patrol(client)
    while True:
        for item in islice(items, max(0, _capacity(client) - len(waiting))):
            waiting.append(client.submit(function, item, *rest, pure=False))
        if not waiting:
            return
        yield patrol.result(waiting.popleft())


def _capacity(client: Any) -> int:
    """Return the number of items that may be with the workers, which come and go."""
    return AHEAD * max(1, len(client.nthreads()))


class _Patrol:
    """Waits for results as long as there are workers; by itself, Dask waits for ever.

    Args:
        client: client of a cluster. One of other machines may be without workers until a queue lets them start.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._alone = False  # whether there were no workers the last time

    @contextmanager
    def unless_lost(self) -> Iterator[None]:
        """Let the block end when it has waited for ``PATROL_SECONDS``.

        Raises:
            EvensliceError: there were no workers then, nor the time before.
        """
        try:
            yield
        except TimeoutError:
            alone = self._client.cluster is not None and not self._client.nthreads()
            if alone and self._alone:
                raise EvensliceError(
                    "all worker processes were lost; start the command again, which keeps what is finished"
                ) from None
            self._alone = alone

    def result(self, future: Any) -> Any:
        """Return the result of a task, or raise its exception."""
        while not future.done():
            with self.unless_lost():
                future.exception(timeout=PATROL_SECONDS)
        return future.result()


def _send(client: Any, objects: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy objects to every worker, as results of tasks, which survive the loss of workers that hold them.

    A worker that fetched them only when needed would wait, because busy workers are slow to answer.

    Raises:
        ConfigError: the workers cannot load them.
    """
    if not objects:
        return ()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)  # networks are large
        futures = tuple(client.submit(_same, item, pure=False) for item in objects)
    for future in futures:
        error = future.exception()
        if error is not None:
            cause = error.__cause__ or error
            raise ConfigError(
                f"the cluster cannot load what it is sent ({type(cause).__name__}: {reason(cause)}); your "
                "own code must be in "
                "a module that the scheduler and every worker can import, and they need the same packages "
                "as this process"
            ) from error
    client.replicate(futures)
    return futures


def _after(_before: Any, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function; the scheduler waits for what is finished before."""
    return function(*arguments)


def _same(item: Item) -> Item:
    return item
