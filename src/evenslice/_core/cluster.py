"""The same function for one process and for many: items to results, as they are finished.

    with open_cluster(workers=4) as client:
        for item, outcome in finished(function, items, client):
            ...

Without workers and scheduler there is no client, and items are worked on one by one in this process. With a client, a
Dask cluster does it: one started on this machine, or one that runs already; functions and items must then pickle.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evenslice._core.errors import ConfigError, needs_extra, option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["check_sendable", "finished", "in_order", "open_cluster"]

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10
AHEAD = 2  # items at a worker, the one that it works on included


@contextmanager
def open_cluster(workers: int | None = None, scheduler: str | None = None) -> Iterator[Any]:
    """Yield a Dask client, or None where neither workers nor a scheduler are asked for.

    Args:
        workers: processes to start on this machine; they share its cores.
        scheduler: address of a running scheduler, as ``tcp://host:8786``.

    Raises:
        ConfigError: both are given, there are no workers, or the scheduler does not answer.
        MissingExtraError: Dask is not installed.

    Example:
        >>> with open_cluster() as client:
        ...     list(finished(abs, [-1, 2], client))
        [(-1, 1), (2, 2)]
    """
    if workers is not None and scheduler is not None:
        raise ConfigError(
            f"{option('workers')} starts workers here, {option('scheduler')} uses others; give one of the two"
        )
    if workers is not None and workers < 1:
        raise ConfigError(f"workers = {workers}: must be at least 1")
    if workers is None and scheduler is None:
        yield None
        return
    with needs_extra("cluster", "working in several processes"):
        import dask
        from distributed import Client, LocalCluster
    if scheduler is not None:
        with _connect(Client, scheduler) as client:
            yield client
        return
    threads = max(1, (os.cpu_count() or 1) // (workers or 1))
    settings = {
        # Dask would give each worker one thread; and with a limit to what malloc keeps, as Dask sets one, the system
        # would hand out, and clear, the memory of every tensor anew: a training step then takes twice as long.
        "distributed.nanny.pre-spawn-environ": {
            f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")
        },
        # A daemon may have no children, and those that load data are some.
        "distributed.worker.daemon": False,
    }
    with (
        dask.config.set(settings),
        _importable_here(),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=None, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _importable_here() -> Iterator[None]:
    """Let workers import what lies in the current directory: they look where this process looks.

    A user's own network or function is imported from there, and a worker that does not find it dies, again and again.
    """
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _connect(connect: Callable[..., Any], scheduler: str) -> Any:
    try:
        return connect(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:  # a timeout is an OSError
        raise ConfigError(
            f"scheduler {scheduler!r}: does not answer ({error}); give the address that `dask scheduler` printed"
        ) from error


def check_sendable(item: Any, what: str) -> None:
    """Check that workers can be sent something of the user's.

    Args:
        item: such as a function.
        what: what to call it in the message.

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
    except Exception as error:  # what pickling calls may raise anything
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ConfigError(
            f"{what} cannot be sent to workers ({type(error).__name__}: {reason}); define it at the top of a module, with "
            f"what it needs, or leave {option('workers')} and {option('scheduler')} out"
        ) from error


def finished(
    function: Callable[..., Result], items: Iterable[Item], client: Any = None, *, common: Any = None
) -> Iterator[tuple[Item, Result | Exception]]:
    """Apply a function to items and yield each with its result, in the order in which they are finished.

    An item whose worker dies goes to another one.

    Args:
        function: what to do; on a cluster, it may be started again for an item that it was applied to before.
        items: what to do it to.
        client: of a Dask cluster, or None for this process.
        common: what the function takes after the item, where it is not None; a worker gets it once.

    Yields:
        An item and its result; on a cluster, the exception where there is none, as after several workers died with it.
    """
    rest = () if common is None else (common,)
    if client is None:
        for item in items:
            yield item, function(item, *rest)
        return
    from distributed import as_completed

    rest = _send(client, rest)
    futures = {client.submit(function, item, *rest, pure=False): item for item in items}
    for future in as_completed(list(futures)):
        error = future.exception()
        yield futures[future], future.result() if error is None else error
        future.release()


def in_order(
    function: Callable[..., Result], items: Iterable[Item], client: Any = None, *, common: Any = None
) -> Iterator[Result]:
    """Apply a function to items one after another, or on a cluster to a few at a time, and yield the results in order.

    Whoever asks for no more results leaves the other items alone, but for those that the workers have at hand.

    Args:
        function: what to do.
        items: what to do it to; taken from as workers get free.
        client: of a Dask cluster, or None for this process.
        common: what the function takes after the item, where it is not None; a worker gets it once.

    Example:
        >>> list(in_order(pow, [2, 3], common=2))
        [4, 9]
    """
    rest = () if common is None else (common,)
    if client is None:
        for item in items:
            yield function(item, *rest)
        return
    rest, items = _send(client, rest), iter(items)
    waiting: deque[Any] = deque()
    while True:
        workers = max(1, len(client.nthreads()))  # some may have come, as jobs start, or gone
        for item in islice(items, max(0, AHEAD * workers - len(waiting))):
            waiting.append(client.submit(function, item, *rest, pure=False))
        if not waiting:
            return
        yield waiting.popleft().result()


def _send(client: Any, objects: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hold objects at every worker; as results of a task, they survive the workers that hold them.

    A worker that came for them later would wait: one that is at work takes its time to answer.

    Raises:
        ConfigError: they cannot be loaded there.
    """
    if not objects:
        return ()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)  # a network is
        futures = tuple(client.submit(_same, item, pure=False) for item in objects)
    for future in futures:
        error = future.exception()
        if error is not None:
            cause = error.__cause__ or error
            reason = (str(cause).splitlines() or ["no reason given"])[0]
            raise ConfigError(
                f"the cluster cannot load what it is sent ({type(cause).__name__}: {reason}); what is yours must come from "
                "a module that the scheduler and every worker can import, and they need the same packages as are here"
            ) from error
    client.replicate(futures)
    return futures


def _same(item: Item) -> Item:
    return item
