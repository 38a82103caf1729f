"""The same function for one process and for many: items to results, as they are finished.

    with open_cluster(workers=4) as client:
        for item, outcome in finished(function, items, client):
            ...

Without workers and scheduler there is no client, and items are worked on one by one in this process. With a client, a
Dask cluster does it: one started on this machine, or one that runs already; functions and items must then pickle.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from evenslice.errors import ConfigError, needs_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["finished", "open_cluster"]

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10


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
        raise ConfigError("--workers starts workers here, --scheduler uses others; give one of the two")
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
    settings = {
        # Dask would give each worker one thread, and take it down by 95 % of its share of the memory.
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": max(
            1, (os.cpu_count() or 1) // (workers or 1)
        ),
        # A daemon may have no children, and those that load data are some.
        "distributed.worker.daemon": False,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=None, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _connect(connect: Callable[..., Any], scheduler: str) -> Any:
    try:
        return connect(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:  # a timeout is an OSError
        raise ConfigError(
            f"scheduler {scheduler!r}: does not answer ({error}); give the address that `dask scheduler` printed"
        ) from error


def finished(
    function: Callable[[Item], Result], items: Iterable[Item], client: Any = None
) -> Iterator[tuple[Item, Result | Exception]]:
    """Apply a function to items and yield each with its result, in the order in which they are finished.

    An item whose worker dies goes to another one.

    Args:
        function: what to do; on a cluster, it may be started again for an item that it was applied to before.
        items: what to do it to.
        client: of a Dask cluster, or None for this process.

    Yields:
        An item and its result; on a cluster, the exception where there is none, as after several workers died with it.
    """
    if client is None:
        for item in items:
            yield item, function(item)
        return
    from distributed import as_completed

    futures = {client.submit(function, item, pure=False): item for item in items}
    for future in as_completed(list(futures)):
        error = future.exception()
        yield futures[future], future.result() if error is None else error
        future.release()
