"""Worker processes on this machine: a Dask cluster that nobody else can talk to.

What a scheduler or a worker is sent, it unpickles, so that whoever reaches its port runs code. All connections here are
encrypted and both ends show a certificate, which is made for one cluster and known to its processes alone; all ports
are bound to the loopback interface; there is no dashboard, and the HTTP ports that remain know no address.

The processes start like ``python -P``: a file ``multiprocessing.py`` in the current directory is not what they import.
Modules there are found only if this process has imported one, because the user named a function in it. Nor do they
import from a folder that others could have made: Dask looks for modules in its scratch folder first, which gets a
name of its own.

Ctrl-C on a terminal reaches all processes, but is this one's to answer: the workers do not see it, and end when this
one tells them or ends.
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from evenslice._core.allocator import KEPT
from evenslice._core.cores import available_cores
from evenslice._core.errors import EvensliceError, needs_extra, option, reason
from evenslice._core.import_paths import importable_here, imports_from_here
from evenslice._core.interrupts import DeferredInterrupts, terminable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["local_client"]

LOOPBACK = "127.0.0.1"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
UNWATCHED = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
}
"""Settings by which Dask hardly watches its workers. By default it does so more than a hundred times a second, for its
dashboard alone, and interrupts what they are at; ``benchmarks/scaling.py`` measures it."""
LOGGING = "DASK_LOGGING"
SET_BY_DASK = (*THREADS, *KEPT, LOGGING, "PYTHONSAFEPATH", "PYTHONHASHSEED", "__DASK_PARENT_PID")


@contextmanager
def local_client(workers: int) -> Iterator[Any]:
    """Yield a Dask client of a cluster of processes on this machine, which share its cores.

    Raises:
        EvensliceError: the processes do not start.
        MissingExtraError: Dask, or what makes its certificates, is not installed.
    """
    with needs_extra("cluster", "working in several processes"):
        import cryptography  # noqa: F401  # which distributed needs for temporary certificates
        import dask
        from distributed import Client
        from distributed.security import Security

    threads = max(1, available_cores() // workers)
    settings = {
        # Replaces Dask's defaults: one thread per worker, and a limit on the memory that malloc keeps, with which a training
        # step takes twice as long. What a task raises is for this process to tell, not for the worker to print with a
        # traceback.
        "distributed.nanny.pre-spawn-environ": {
            **dict.fromkeys(THREADS, threads),
            **KEPT,
            LOGGING: {"distributed.worker": "critical"},
        },
        # Daemons may not have child processes, and data loaders are child processes.
        "distributed.worker.daemon": False,
        # A worker that dies is noticed by the process that started it. One that is silent on a busy machine is not dead.
        "distributed.scheduler.worker-ttl": None,
        # What the HTTP servers would serve, which Dask cannot do without.
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        **UNWATCHED,
    }
    with (
        tempfile.TemporaryDirectory(
            prefix="evenslice-",
            dir=dask.config.get("temporary-directory", None),
            ignore_cleanup_errors=True,  # by a worker that was killed while it wrote
        ) as scratch,
        dask.config.set({**settings, "temporary-directory": scratch}),
        _own_environment(),
        # Workers look for modules where this process does, and one that cannot import a user's function dies every time.
        importable_here(first=False) if imports_from_here() else nullcontext(),
        # An interrupt while the cluster starts or ends, each a second or two, waits: Dask cannot be left in between.
        DeferredInterrupts() as interrupts,
        _cluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=None,
            host=LOOPBACK,
            security=Security.temporary(),
            dashboard_address=None,
            scheduler_kwargs={"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"},
        ) as cluster,
        Client(cluster) as client,
        _killed_if_interrupted(cluster),
        interrupts.heard(),
        terminable(),
    ):
        yield client


@contextmanager
def _cluster(**options: Any) -> Iterator[Any]:
    """Yield a cluster, and close it; a worker that is slow to end on a busy machine is killed, and costs no results."""
    from distributed import LocalCluster

    try:
        cluster = LocalCluster(**options)
    except RuntimeError as error:
        raise EvensliceError(
            f"{option('workers', options['n_workers'])}: do not start ({reason(error)}); in a script, call what starts "
            "them below `if __name__ == '__main__':`, else see what they print, and whether memory is left"
        ) from error
    try:
        yield cluster
    finally:
        workers = [nanny.pid for nanny in cluster.workers.values()]
        logger = logging.getLogger("distributed.nanny")
        level = logger.level
        logger.setLevel(
            max(logger.getEffectiveLevel(), logging.ERROR)
        )  # that Dask kills one itself is nothing to warn of
        try:
            cluster.close()
        except TimeoutError:
            for pid in workers:
                _kill(pid)
        finally:
            logger.setLevel(level)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Let processes that start in the block not look for Python's own modules in the current directory.

    Dask sets what it gives its workers in this process, too, and leaves it there; afterwards it is as before.
    """
    before = {name: os.environ.get(name) for name in SET_BY_DASK}
    os.environ["PYTHONSAFEPATH"] = "1"
    resource_tracker.ensure_running()  # else Dask's threads start it, which lets them see interrupts
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _killed_if_interrupted(cluster: Any) -> Iterator[None]:
    """Kill the workers at Ctrl-C or SIGTERM; they would finish what they are at, and complain meanwhile."""
    try:
        yield
    except KeyboardInterrupt:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        for nanny in cluster.workers.values():
            nanny.auto_restart = False
            _kill(nanny.pid)
        raise


def _kill(pid: int | None) -> None:
    import psutil  # which distributed needs

    with suppress(psutil.NoSuchProcess):
        worker = psutil.Process(pid)
        for process in (*worker.children(recursive=True), worker):
            with suppress(psutil.NoSuchProcess):
                process.kill()
