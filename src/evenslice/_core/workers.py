"""One function applied to many items: in this process, in processes on this machine, or on a Dask cluster of the user's.

    with open_workers(workers=4) as workers:
        for item, outcome in map_tasks(function, items, workers):
            ...

Both kinds of workers take tasks by ``concurrent.futures``; functions, items and results must pickle. Processes on this
machine talk through pipes alone, and a cluster is the user's to secure.

Those processes start like ``python -P``: a file ``multiprocessing.py`` in the current directory is not what they import.
Modules there are found only if this process has imported one, because the user named a function in it. They do not see
Ctrl-C, which a terminal sends to every process of a command, and end with this one, however it ends.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, ProcessPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evenslice._core.errors import (
    ConfigError,
    EvensliceError,
    needs_extra,
    option,
    printable,
    reporting_errors,
    whole_number,
)
from evenslice._core.import_paths import imports_from_here
from evenslice._core.machine import available_cores, keep_freed_memory

try:
    from cloudpickle import dumps  # of the extra "cluster": functions of a notebook, too
except ImportError:
    from pickle import dumps  # sent to processes of this one's own
from pickle import loads  # by them

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Future
    from typing import TypeAlias

    Workers: TypeAlias = "Processes | Cluster"


Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10
LOOK_SECONDS = 30.0  # between looks at whether a cluster has workers
AHEAD = 2  # items sent to each worker, including the one in progress
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WORKER = "EVENSLICE_WORKER"
"""The environment variable with the number of a process that was started here."""

START_AGAIN = "start the command again (a segmentation or study keeps what is finished)"

_CLIENT_LOGGER = logging.getLogger("distributed.client")
_LOADING = threading.Lock()
_COMMON: list[_Shared] = []
"""In a process that was started here, what all items share, if anything."""


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block; processes that start in it never see one.

    Example:
        >>> try:
        ...     with without_interrupts():
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("goes on")
        ... except KeyboardInterrupt:
        ...     print("interrupted")
        goes on
        interrupted
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what is under way ends as after Ctrl-C, with the exit status that a shell expects."""

    status = 128 + signal.SIGTERM


@contextmanager
def terminable() -> Iterator[None]:
    """Let the first SIGTERM raise ``Terminated`` in the block, if this is the main thread and nothing else answers it.

    Example:
        >>> try:
        ...     with terminable():
        ...         signal.raise_signal(signal.SIGTERM)
        ... except Terminated as error:
        ...     print(error)
        terminated
    """

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated("terminated")

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def open_workers(workers: int | None = None, scheduler: str | None = None) -> Iterator[Workers | None]:
    """Yield workers, or None if neither a number of processes nor a scheduler is given.

    Args:
        workers: number of processes to start on this machine; they share its cores.
        scheduler: address of a running scheduler of Dask, such as ``tcp://host:8786``.

    Raises:
        ConfigError: both are given, ``workers`` is not a whole number of at least 1, or the scheduler does not answer.
        MissingExtraError: there is a scheduler, and Dask is not installed.

    Example:
        >>> with open_workers() as workers:
        ...     list(map_tasks(abs, [-1, 2], workers))
        [(-1, 1), (2, 2)]
    """
    if scheduler is None:
        with nullcontext() if workers is None else terminable():
            yield None if workers is None else Processes(whole_number("workers", workers, least=1))
        return
    if workers is not None:
        raise ConfigError(
            f"{option('workers')} starts workers here, {option('scheduler')} uses those of a cluster; give "
            "one of the two"
        )
    with needs_extra("cluster", "working on a cluster"):
        from distributed import Client
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:  # a timeout is an OSError
        raise ConfigError(
            f"{option('scheduler', scheduler)}: does not answer ({error}); give the address that `dask scheduler` printed"
        ) from error
    level = _CLIENT_LOGGER.level
    try:
        with client, terminable():
            yield Cluster(client)
    finally:
        _CLIENT_LOGGER.setLevel(level)


def map_tasks(
    function: Callable[..., Result],
    items: Iterable[Item],
    workers: Workers | None = None,
    *,
    common: Any = None,
    needs: Callable[[Item], Item | None] = lambda _: None,
    in_order: bool = False,
) -> Generator[tuple[Item, Result | Exception]]:
    """Apply a function to items and yield each with its result, in the order in which they finish.

    With workers, a few items are submitted at a time, as results are consumed: those not yet sent to a worker when the
    caller stops are never run.

    Args:
        function: what to apply; on a cluster it may run more than once for an item, if workers die.
        items: what to apply it to.
        workers: see ``open_workers``; None for this process.
        common: second argument of the function, unless None; sent to each worker once.
        needs: returns for an item the one that has to be finished before it begins, or None; that one (the same
            object) comes earlier in ``items``, or is not among them.
        in_order: yield the results in the order of the items.

    Yields:
        An item and its result; with workers, the exception if there is no result, or none of what it needs.

    Raises:
        ConfigError: what the items have in common cannot be sent to workers.
        EvensliceError: a process on this machine was killed, or the scheduler was lost.

    Example:
        >>> list(map_tasks(pow, [2, 3], common=2))
        [(2, 4), (3, 9)]
    """
    if workers is None:
        yield from ((item, function(item, *(() if common is None else (common,)))) for item in items)
        return
    items, held, unfinished = iter(items), list[Item](), set[int]()
    futures: dict[Future[Result], Item] = {}

    def waits(item: Item) -> bool:
        return id(needs(item)) in unfinished

    with workers.sharing(None if common is None else _Shared(_pickled(common))) as submit:
        while True:
            able, held = [item for item in held if not waits(item)], [item for item in held if waits(item)]
            most = workers.capacity() - len(futures)
            while len(able) < most and (item := next(items, None)) is not None:
                unfinished.add(id(item))
                (held if waits(item) else able).append(item)
            futures.update((submit(function, item), item) for item in able)
            if not futures:
                return
            ended, _ = wait([next(iter(futures))] if in_order else futures, LOOK_SECONDS, FIRST_COMPLETED)
            if not ended:
                workers.look()
            for future in ended:
                item = futures.pop(future)
                unfinished.discard(id(item))
                outcome = _outcome(future, workers)
                yield item, outcome


def _pickled(common: Any) -> bytes:
    advice = (
        f"; define it, and what it uses, at the top level of a module, or leave {option('workers')} and "
        f"{option('scheduler')} out"
    )
    with reporting_errors(ConfigError, "a function cannot be sent to workers", advice):
        return bytes(dumps(common))


def _outcome(future: Future[Result], workers: Workers) -> Result | Exception:
    """Return the result of a task that has ended, or its exception."""
    try:
        return future.result()
    except (BrokenExecutor, CancelledError) as error:
        raise workers.lost() from error
    except Exception as error:  # noqa: BLE001  # whatever the task raises is for the caller
        if type(error).__name__ == "KilledWorker":  # of Dask
            return EvensliceError(
                "every worker that took the same task died, probably for lack of memory; give workers more memory, or "
                f"fewer windows at once with {option('batch', 1)}, and {START_AGAIN}"
            )
        return error


class Processes:
    """Processes on this machine.

    Args:
        count: their number.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def capacity(self) -> int:
        """Return the number of items that may be with the workers."""
        return AHEAD * self._count

    @contextmanager
    def sharing(self, shared: _Shared | None) -> Iterator[Callable[..., Future[Any]]]:
        """Yield what submits a function of an item, and of what all items share unless that is None."""
        safe = {"PYTHONSAFEPATH": "1"}  # nothing is imported that lies in the current directory
        with without_interrupts(), _environment({**os.environ, **safe}):  # of the tracker of semaphores, too
            pool = ProcessPoolExecutor(
                self._count,
                mp_context=get_context("spawn"),
                initializer=_begin,
                initargs=(shared, str(Path.cwd()) if imports_from_here() else None),
            )
        settings = dict.fromkeys(THREADS, str(max(1, available_cores() // self._count)))

        def submit(function: Callable[..., Any], item: Any) -> Future[Any]:
            with without_interrupts(), _environment({**settings, **os.environ, **safe}):
                try:
                    return pool.submit(_apply_here, function, item)
                except BrokenExecutor as error:  # one was killed since the last
                    raise self.lost() from error

        try:
            yield submit
            pool.shutdown()
        finally:  # at an error, at Ctrl-C, or once nobody waits for what is in progress
            for process in list((pool._processes or {}).values()):  # noqa: SLF001  # of which there is no other list
                process.kill()
            pool.shutdown(cancel_futures=True)

    def look(self) -> None:
        """Do nothing: a pool of processes notices by itself what happens to them."""

    def lost(self) -> EvensliceError:
        """Return the error that says that workers were lost, with all that was submitted."""
        return EvensliceError(
            f"a worker process was killed, probably for lack of memory: use fewer {option('workers')}, or fewer windows at "
            f"once with {option('batch', 1)}, and {START_AGAIN}; or it could not begin: in a script, call what starts it "
            "below `if __name__ == '__main__':`"
        )


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Give processes that start in the block an environment of their own."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _begin(common: _Shared | None, here: str | None) -> None:
    """Prepare a process that was started for tasks."""
    if here is not None:
        sys.path.append(here)
    keep_freed_memory()
    number = re.search(r"\d+$", current_process().name)
    os.environ[WORKER] = number[0] if number else "0"
    _COMMON.extend([] if common is None else [common])
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _apply_here(function: Callable[..., Result], item: Any) -> Result:
    """Run a task in a process that was started for it."""
    return _apply(function, item, *_COMMON)


def _apply(function: Callable[..., Result], item: Any, shared: _Shared | None = None) -> Result:
    return function(item) if shared is None else function(item, shared.load())


class Cluster:
    """The workers of a Dask cluster.

    Args:
        client: of the cluster, which may be without workers until a queue lets them start.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._told = False  # whether the user knows that there are no workers

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        """Let the loss of the scheduler, for which Dask raises exceptions of many types, be one error."""
        try:
            yield
        except Exception as error:
            raise self.lost() from error

    def capacity(self) -> int:
        """Return the number of items that may be with the workers, which may come and go."""
        with self._noticing_loss():
            return AHEAD * max(1, len(self._client.nthreads()))

    @contextmanager
    def sharing(self, shared: _Shared | None) -> Iterator[Callable[..., Future[Any]]]:
        """Yield what submits a function of an item, and of what all items share unless that is None."""
        executor = self._client.get_executor()
        with self._noticing_loss():
            # As the result of a task, which is found again if the workers that hold it are lost.
            there = None if shared is None else self._client.submit(_itself, shared, pure=False)

        def submit(function: Callable[..., Any], item: Any) -> Future[Any]:
            with self._noticing_loss():
                task: Future[Any] = executor.submit(_apply, function, item, there)
                return task

        yield submit

    def look(self) -> None:
        """Say on standard error that there are no workers, once as long as there are none."""
        with self._noticing_loss():
            alone = not self._client.nthreads()
        told, self._told = self._told, alone
        if alone and not told:
            with suppress(OSError):  # as of lines of progress
                sys.stderr.write(printable(f"waiting for workers of {self._client.scheduler.address}") + "\n")
                sys.stderr.flush()

    def lost(self) -> EvensliceError:
        """Return the error that says that the scheduler was lost, with all that was submitted."""
        _CLIENT_LOGGER.setLevel(logging.CRITICAL)  # closing the client would print tracebacks
        return EvensliceError(f"the scheduler was lost; {START_AGAIN}")


def _itself(shared: _Shared) -> _Shared:
    return shared


class _Shared:
    """An object for workers, as bytes until the first task of a process needs it.

    A worker that cannot import a module of it would end, or wait for ever, if it were unpickled outside of a task.
    """

    def __init__(self, pickled: bytes) -> None:
        self._pickled, self._item = pickled, None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shared, (self._pickled,)

    def load(self) -> Any:
        """Return the object, or raise ConfigError if it cannot be unpickled here."""
        with _LOADING:
            if self._item is None:
                advice = (
                    "; your own code must be in a module that every worker can import, and they need the same packages as "
                    "this process"
                )
                with reporting_errors(ConfigError, "the workers cannot load what they are sent", advice):
                    self._item = loads(self._pickled)  # noqa: S301  # of the command's own
            return self._item
