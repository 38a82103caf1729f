"""Functions applied to items in this process, in processes on this machine and on the workers of a cluster."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from pretended_workers import PretendedWorkers

from evenslice import ConfigError, EvensliceError
from evenslice._core import map_tasks, open_workers, workers as module

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    """A Dask cluster with one worker."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address=":0",
    ) as found:
        yield found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "give one of the two"),
        ({"workers": 0}, "workers=0"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "does not answer"),
    ],
)
def test_workers_are_asked_for_rightly(monkeypatch, options, message):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ConfigError, match=message), open_workers(**options):
        pass


# How items are handed out


def test_workers_that_come_and_go_are_counted():
    workers, begun = PretendedWorkers(1, 3, 2, 1), []
    for item, found in map_tasks(str, range(20), workers, in_order=True):
        assert (item, found) == (len(begun), str(len(begun)))
        begun.append(len(workers.items))
    assert begun[:8] == [2, 7, 7, 7, 7, 7, 8, 9]
    assert begun[-1] == 20


@pytest.mark.parametrize("count", [1, 2, 20])
def test_an_item_begins_once_what_it_needs_has_ended_well_or_not(count):
    needs, workers = {"2": "1", "3": "x", "5": "3"}, PretendedWorkers(count)
    found = dict(map_tasks(int, ["1", "x", "2", "3", "5", "4"], workers, needs=needs.get))
    assert isinstance(found.pop("x"), ValueError)
    assert found == {name: int(name) for name in "12345"}
    assert all(workers.items.index(item) > workers.items.index(need) for item, need in needs.items())


def test_the_loss_of_workers_is_an_error():
    def lose(_):
        raise CancelledError

    with pytest.raises(EvensliceError, match="lost"):
        list(map_tasks(lose, [1], PretendedWorkers()))


# Processes on this machine


def surroundings(_):
    names = ("OMP_NUM_THREADS", "PYTHONSAFEPATH")
    return os.getpid(), os.environ[module.WORKER], [os.environ.get(name) for name in names], "" in sys.path


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_processes_have_numbers_and_share_the_cores_that_are_left_to_this_one(monkeypatch):
    """As SLURM, a container or taskset leave it fewer than the machine has."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, cores = dict(os.environ), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with open_workers(workers=2) as workers:
            found = [outcome for _, outcome in map_tasks(surroundings, range(8), workers)]
    finally:
        os.sched_setaffinity(0, cores)
    assert os.getpid() not in {process for process, *_ in found}
    assert len({process for process, *_ in found}) == len({number for _, number, *_ in found})
    assert all(rest == [["1", "1"], False] for _, _, *rest in found)
    assert dict(os.environ) == before


def die(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_the_end_of_processes_that_are_killed_and_of_those_that_nobody_waits_for(capfd):
    with (
        open_workers(workers=2) as workers,
        pytest.raises(EvensliceError, match="^a worker process was killed"),
    ):
        list(map_tasks(die, range(20), workers))
    start = time.monotonic()
    with open_workers(workers=2) as workers:
        for _ in map_tasks(time.sleep, [0.1, 60, 60], workers):
            break  # nobody waits for the others
    assert time.monotonic() - start < 30
    assert capfd.readouterr().err == ""


SCRIPT = """
import os, sys, time
from evenslice._core import map_tasks, open_workers

def say(_):
    os.write(1, b"%d\\n" % os.getpid())  # at once, beside the other
    time.sleep(60)

if __name__ == "__main__" or sys.argv[1:] == ["unguarded"]:
    with open_workers(workers=2) as workers:
        list(map_tasks(say, range(2), workers))
"""


def test_a_script_without_a_guard_is_told_so(tmp_path):
    """Its processes begin by running the script."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", "unguarded"], capture_output=True, text=True, check=False
    )
    assert "in a script, call what starts it below" in done.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_one_that_is_ended(number, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        started = [int(process.stdout.readline()) for _ in range(2)]
        process.send_signal(number)
    until = time.monotonic() + 10
    while any(Path(f"/proc/{number}/stat").exists() for number in started):
        assert time.monotonic() < until
        time.sleep(0.05)


class Elsewhere:
    """An object that only the process that made it can unpickle."""

    def __reduce__(self):
        return _at_home, (os.getpid(),)


def _at_home(process):
    if process != os.getpid():
        raise ModuleNotFoundError("No module named 'mine'")
    return Elsewhere()


def test_all_items_get_what_they_have_in_common_or_one_line_that_says_why_not(capfd):
    with open_workers(workers=1) as workers:
        assert dict(map_tasks(pow, [2, 3], workers, common=10)) == {2: 1024, 3: 59049}
        ((_, error),) = map_tasks(int, ["x"], workers)
        assert isinstance(error, ValueError)
        ((_, error),) = map_tasks(isinstance, [2], workers, common=Elsewhere())
        assert isinstance(error, ConfigError)
        assert str(error).startswith("the workers cannot load what they are sent (ModuleNotFoundError")
    assert capfd.readouterr().err == ""


# A cluster of the user's own


@pytest.mark.filterwarnings("ignore")
def test_the_loss_of_the_scheduler_is_told_in_one_line(cluster):
    with pytest.raises(EvensliceError, match="^the scheduler was lost; start the command again"):
        with open_workers(scheduler=cluster.scheduler_address) as workers:
            for _ in map_tasks(abs, range(1000), workers):
                cluster.close()


def test_a_cluster_may_have_no_workers_yet_which_is_said_once(cluster, monkeypatch, capsys):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)
    cluster.scale(0)
    looked, look = [], module.Cluster.look

    def watch(self):
        look(self)
        looked.append(1)
        if len(looked) == 5:
            cluster.scale(1)

    monkeypatch.setattr(module.Cluster, "look", watch)
    with open_workers(scheduler=cluster.scheduler_address) as workers:
        while workers._client.nthreads():
            time.sleep(0.05)
        assert list(map_tasks(abs, [-1], workers)) == [(-1, 1)]
        assert dict(map_tasks(pow, [2, 3], workers, common=4)) == {2: 16, 3: 81}
        assert isinstance(dict(map_tasks(int, ["x"], workers))["x"], ValueError)
    assert capsys.readouterr().err == f"waiting for workers of {cluster.scheduler_address}\n"
