"""Functions applied to items in this process and on the workers of a cluster."""

import os
import time
from concurrent.futures import CancelledError
from functools import partial
from types import SimpleNamespace

import pytest

from evenslice._core import cluster as distributing
from evenslice._core.cluster import map_as_finished, map_in_order, open_cluster
from evenslice._core.errors import ConfigError, EvensliceError


def test_clusters_are_asked_for_rightly(monkeypatch):
    monkeypatch.setattr(distributing, "CONNECT_SECONDS", 0.5)
    for options_, message in [
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "give one of the two"),
        ({"workers": 0}, "workers=0"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "does not answer"),
    ]:
        with pytest.raises(EvensliceError, match=message), open_cluster(**options_):
            pass
    with open_cluster() as client:
        assert list(map_as_finished(str, [3, 1], client)) == [(3, "3"), (1, "1")]


class Growing:
    """A client whose cluster gains a worker with each request, and loses all but one after the fifth."""

    def __init__(self):
        self.asked, self.ahead, self.most = 0, 0, []

    def nthreads(self):
        self.asked += 1
        return dict.fromkeys(range(self.asked if self.asked < 6 else 1))

    cluster = None

    def submit(self, function, *arguments, **_):
        self.ahead += 1
        return Pending(self, function(*arguments))


class Pending:
    status = "finished"

    def __init__(self, client, value):
        self.client, self.value = client, value

    def done(self):
        return True

    def result(self):
        self.client.most.append(self.client.ahead)
        self.client.ahead -= 1
        return self.value


def test_workers_that_come_and_go_are_counted():
    client = Growing()
    assert list(map_in_order(str, range(20), client)) == [str(item) for item in range(20)]
    assert client.most == [2, 4, 6, 8, 10, 9, 8, 7, 6, 5, 4, 3, *[2] * 7, 1]


def test_workers_that_are_slow_to_end_cost_no_results(monkeypatch):
    from distributed import SpecCluster

    close = SpecCluster._close

    async def slow(cluster):
        await close(cluster)
        raise TimeoutError

    monkeypatch.setattr(SpecCluster, "_close", slow)
    with open_cluster(workers=1) as client:
        found = list(map_in_order(abs, [-3], client))
    assert found == [3]


def test_workers_that_do_not_start_are_told_in_one_line(monkeypatch):
    """As those of a script without a guard, which begin by running the script."""

    def broken(**_):
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr("distributed.LocalCluster", broken)
    message = r"^workers=2: do not start \(Nanny failed to start.\); in a script, .* below `if __name__ == '__main__':`"
    with pytest.raises(EvensliceError, match=message), open_cluster(workers=2):
        pass


@pytest.mark.slow
def test_every_worker_has_what_items_have_in_common_before_it_starts():
    with open_cluster(workers=2) as client:
        (common,) = distributing._send(distributing._Patrol(client), (10,))
        assert len(client.who_has([common])[common.key]) == 2
        assert list(map_in_order(pow, [2, 3, 4], client, common=10)) == [1024, 59049, 1048576]


class Lost:
    """A client whose tasks never end, with workers only as long as it is told."""

    cluster = object()

    def __init__(self, *workers):
        self.workers = list(workers)

    def nthreads(self):
        return dict.fromkeys(range(self.workers.pop(0)))

    def submit(self, *_, **__):
        return self

    def done(self):
        return False

    def exception(self, timeout):
        assert timeout == distributing.PATROL_SECONDS
        raise TimeoutError


def never(_futures, timeout, return_when):
    assert timeout == distributing.PATROL_SECONDS
    raise TimeoutError


@pytest.mark.parametrize("mapped", [map_as_finished, map_in_order])
def test_the_loss_of_all_workers_is_said(mapped, monkeypatch):
    """Dask would wait for ever. A worker that is being restarted is not lost."""
    monkeypatch.setattr("distributed.wait", never)
    looks = [2, 0, 1, 0, 0]
    # Before each wait for whatever finishes first, the workers are counted to submit more.
    client = Lost(1, *looks) if mapped is map_in_order else Lost(*(n for look in looks for n in (1, look)))
    with pytest.raises(EvensliceError, match="all worker processes were lost; start the command again"):
        next(mapped(str, [1], client))
    assert client.workers == []


def test_workers_that_work_again_are_not_lost():
    """All were being restarted at two moments, and worked between these."""
    patrol = distributing._Patrol(Lost(0, 0))
    for ending in (TimeoutError, None, None, TimeoutError):
        with patrol.unless_lost():
            if ending:
                raise ending


def test_a_cluster_of_other_machines_may_have_no_workers_yet_which_is_said_once(capsys):
    client = Lost(*[0] * 9)
    client.cluster, client.scheduler = None, SimpleNamespace(address="tcp://head:8786")
    patrol = distributing._Patrol(client)
    for _ in range(5):
        with patrol.unless_lost():
            raise TimeoutError
    assert capsys.readouterr().err == "waiting for workers of tcp://head:8786\n"
    for workers in (1, 0):
        client.workers = [workers]
        with patrol.unless_lost():
            raise TimeoutError
    assert capsys.readouterr().err == "waiting for workers of tcp://head:8786\n"  # they came and went


def test_no_workers_are_said_while_they_are_sent_what_items_have_in_common(monkeypatch, capsys):
    client = Lost(0, 0, 1)
    client.cluster, client.scheduler = None, SimpleNamespace(address="tcp://head:8786")
    ends = iter([False, False, False])
    monkeypatch.setattr(client, "done", lambda: next(ends), raising=False)
    with pytest.raises(StopIteration):
        distributing._send(distributing._Patrol(client), (10,))
    assert capsys.readouterr().err == "waiting for workers of tcp://head:8786\n"


class Cut:
    """A client that loses its scheduler, and its own future: the call of one name fails, as Dask's do at some moment."""

    cluster, status = None, "running"

    def __init__(self, failing, error):
        self.failing, self.error, self.ended = failing, error, False

    def __getattr__(self, name):
        return partial(self._answer, name)

    def _answer(self, name, *_, **__):
        if name == self.failing:
            self.status = "closed" if isinstance(self.error, RuntimeError) else "running"
            raise self.error
        self.ended = self.ended or name == "wait"
        return {"nthreads": {"worker": 1}, "submit": self, "done": self.ended}.get(name)

    def exception(self, timeout=None):
        if timeout is not None:
            self.wait()

    def __hash__(self):
        return 0


@pytest.mark.parametrize("mapped", [map_as_finished, map_in_order])
@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ("nthreads", OSError("Timed out trying to connect to tcp://head:8786 after 10 s")),
        ("submit", RuntimeError("Client is closed. Can't send update-graph message.")),
        ("replicate", OSError("Timed out trying to connect to tcp://head:8786 after 10 s")),
        ("wait", CancelledError("2 Futures cancelled")),
        ("result", CancelledError("slow-1 cancelled for reason: scheduler-connection-lost")),
    ],
)
def test_the_loss_of_the_scheduler_is_told_in_one_line(mapped, failing, error, monkeypatch):
    """Dask raises exceptions of several types, none of them evenslice's."""
    client = Cut(failing, error)
    monkeypatch.setattr("distributed.wait", client.wait)
    with pytest.raises(
        EvensliceError, match=r"^the scheduler was lost; start the command again \(a segmentation"
    ):
        list(mapped(pow, [1], client, common=1))


@pytest.mark.parametrize("mapped", [map_as_finished, map_in_order])
def test_an_error_of_a_task_is_not_taken_for_the_loss_of_the_scheduler(mapped, monkeypatch):
    error = FileNotFoundError("gone")
    client = Cut("result", error)
    client.status = "error"  # of the future
    monkeypatch.setattr("distributed.wait", client.wait)
    monkeypatch.setattr(client, "exception", lambda **_: client.wait() or error)
    if mapped is map_as_finished:
        assert list(mapped(str, [1], client)) == [(1, error)]
    else:
        with pytest.raises(FileNotFoundError):
            list(mapped(str, [1], client))


def test_a_task_that_kills_its_workers_is_told_in_one_line(monkeypatch):
    from distributed import KilledWorker

    client = Cut("result", KilledWorker("task", None, 3))
    client.status = "error"  # of the future
    message = r"every worker that took the same task died, probably for lack of memory; .* with batch=1$"
    with pytest.raises(EvensliceError, match=message):
        list(map_in_order(str, [1], client))


@pytest.mark.slow
def test_a_worker_may_be_silent_for_long():
    with open_cluster(workers=1) as client:
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl) is None


@pytest.mark.slow
def test_workers_are_rarely_interrupted_to_be_watched():
    """There is no dashboard, and each look takes time from what a worker is at."""

    def callbacks(dask_worker):
        return {name: call.callback_time for name, call in dask_worker.periodic_callbacks.items()}

    with open_cluster(workers=1) as client:
        (milliseconds,) = client.run(callbacks).values()
    assert "profile" not in milliseconds
    assert min(milliseconds.values()) >= 500, milliseconds


@pytest.mark.slow
def test_workers_leave_the_environment_of_this_process_as_it_was():
    """A process that is started afterwards would compute with their number of threads."""
    before = dict(os.environ)
    with open_cluster(workers=1) as client:
        assert list(map_in_order(os.getenv, ["MKL_NUM_THREADS"], client)) != [None]
    after = dict(os.environ)
    assert {name for name in {**before, **after} if before.get(name) != after.get(name)} <= {
        "PYTEST_CURRENT_TEST"
    }


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_workers_share_the_cores_that_are_left_to_this_process(monkeypatch):
    """As SLURM, a container or taskset leave it fewer than the machine has."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which Dask prefers
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with open_cluster(workers=1) as client:
            assert list(map_in_order(os.getenv, ["OMP_NUM_THREADS"], client)) == ["1"]
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.slow
def test_what_a_task_raises_is_told_by_whoever_asked_for_it_alone(capfd):
    """Dask's workers would print it too, with a traceback, where a command prints one line."""
    with open_cluster(workers=1) as client:
        ((_, error),) = map_as_finished(int, ["x"], client)
        with pytest.raises(ValueError, match="invalid literal"):
            list(map_in_order(int, ["x"], client))
    assert isinstance(error, ValueError)
    assert capfd.readouterr().err == ""


def note(path):
    """Say whether a file was there, and write it a while later."""
    before = path.exists()
    time.sleep(1 if not before else 0)
    path.touch()
    return before


@pytest.mark.slow
def test_an_item_waits_for_what_it_needs(tmp_path):
    first, other = tmp_path / "file", tmp_path / "file"
    with open_cluster(workers=2) as client:
        found = list(
            map_as_finished(note, [first, other], client, needs=lambda item: first if item is other else None)
        )
    assert found == [(first, False), (other, True)]


class Oldest:
    """A client of two workers whose oldest task is the first to finish; it is its own futures' record, too."""

    cluster = object()

    def __init__(self):
        self.pending, self.most = [], 0

    def nthreads(self):
        return {"first": 1, "second": 1}

    def submit(self, function, *arguments, **_):
        future = Future(lambda: function(*arguments))
        self.pending.append(future)
        self.most = max(self.most, len(self.pending))
        return future

    def wait(self, futures, **_):
        assert list(futures) == self.pending
        self.pending.pop(0).run()


class Future:
    def __init__(self, task):
        self.task, self.found, self.error = task, None, None

    def run(self):
        try:
            self.found = self.task()
        except ValueError as error:
            self.error = error
        self.task = None

    def done(self):
        return self.task is None

    def exception(self):
        return self.error

    def result(self):
        return self.found

    def release(self):
        pass


def test_a_few_items_are_submitted_at_a_time(monkeypatch):
    """Among many tasks Dask chooses as it likes, and what is done of a study would not be a balanced table."""
    client = Oldest()
    monkeypatch.setattr("distributed.wait", client.wait)
    assert list(map_as_finished(str, range(20), client)) == [(item, str(item)) for item in range(20)]
    assert client.most == 2 * distributing.AHEAD


def test_items_in_progress_are_looked_at_when_none_has_finished(monkeypatch):
    client, waits, seen = Oldest(), [], []

    def wait(futures, **options):
        waits.append(futures)
        if len(waits) == 2:
            raise TimeoutError
        client.wait(futures, **options)

    monkeypatch.setattr("distributed.wait", wait)
    assert len(list(map_as_finished(str, range(3), client, meanwhile=seen.append))) == 3
    assert seen == [1, 2]


def test_what_needs_a_failed_item_fails_with_it(monkeypatch):
    client = Oldest()
    monkeypatch.setattr("distributed.wait", client.wait)
    items = ["1", "x", "2", "3", "4", "5", "6"]
    needs = {"2": "1", "6": "x"}  # the last is submitted long after both have finished
    found = dict(map_as_finished(int, items, client, needs=needs.get))
    assert isinstance(found.pop("x"), ValueError)
    assert isinstance(found.pop("6"), ValueError)
    assert found == {item: int(item) for item in "12345"}


def test_what_comes_after_many_that_need_a_failed_item_is_done(monkeypatch):
    client = Oldest()
    monkeypatch.setattr("distributed.wait", client.wait)
    needy = [
        str(number) for number in range(10, 20)
    ]  # more than are taken at once while nothing is in progress
    items = ["x", "1", "2", "3", *needy, "4", "5"]
    found = dict(map_as_finished(int, items, client, needs=lambda item: "x" if item in needy else None))
    assert {item for item, outcome in found.items() if isinstance(outcome, ValueError)} == {"x", *needy}
    assert [found[item] for item in "12345"] == [1, 2, 3, 4, 5]


def load():
    raise ModuleNotFoundError("No module named 'mine'")


class Unknown:
    """What no other process can load."""

    def __reduce__(self):
        return load, ()


class Elsewhere:
    """An object that only the process that made it can unpickle; Dask would end the connection of any other."""

    def __reduce__(self):
        return _at_home, (os.getpid(),)


def _at_home(process):
    if process != os.getpid():
        raise ModuleNotFoundError("No module named 'mine'")
    return Elsewhere()


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_cannot_import_what_it_is_sent_says_so():
    """The scheduler, in this process, can."""
    with (
        open_cluster(workers=1) as client,
        pytest.raises(ConfigError, match="in a module that every worker can"),
    ):
        list(map_in_order(isinstance, [2], client, common=Elsewhere()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_a_cluster_cannot_load_is_told_in_one_line():
    message = r"the cluster cannot load what it is sent \(ModuleNotFoundError: No module named 'mine'\); your own code"
    with open_cluster(workers=1) as client, pytest.raises(ConfigError, match=message):
        list(map_in_order(pow, [2], client, common=Unknown()))
