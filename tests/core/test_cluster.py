"""Functions applied to items in this process and on the workers of a cluster."""

import time

import pytest

from evenslice._core import cluster as distributing
from evenslice._core.cluster import map_as_finished, map_in_order, open_cluster
from evenslice._core.errors import ConfigError, EvensliceError


def test_clusters_are_asked_for_rightly(monkeypatch):
    monkeypatch.setattr(distributing, "CONNECT_SECONDS", 0.5)
    for options_, message in [
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "give one of the two"),
        ({"workers": 0}, "workers = 0"),
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


@pytest.mark.slow
def test_every_worker_has_what_items_have_in_common_before_it_starts():
    with open_cluster(workers=2) as client:
        (common,) = distributing._send(client, (10,))
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


def never(_futures, timeout):
    assert timeout == distributing.PATROL_SECONDS
    raise TimeoutError
    yield


@pytest.mark.parametrize("mapped", [map_as_finished, map_in_order])
def test_the_loss_of_all_workers_is_said(mapped, monkeypatch):
    """Dask would wait for ever. A worker that is being restarted is not lost."""
    monkeypatch.setattr("distributed.as_completed", never)
    client = Lost(*[1] * (mapped is map_in_order), 2, 0, 1, 0, 0)
    with pytest.raises(EvensliceError, match="all worker processes were lost; start the command again"):
        next(mapped(str, [1], client))
    assert client.workers == []


def test_a_cluster_of_other_machines_may_have_no_workers_yet(monkeypatch):
    client = Lost(*[0] * 9)
    client.cluster = None
    patrol = distributing._Patrol(client)
    for _ in range(5):
        with patrol.unless_lost():
            raise TimeoutError


@pytest.mark.slow
def test_a_worker_may_be_silent_for_long():
    with open_cluster(workers=1) as client:
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl) is None


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


def load():
    raise ModuleNotFoundError("No module named 'mine'")


class Unknown:
    """What no other process can load."""

    def __reduce__(self):
        return load, ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_a_cluster_cannot_load_is_told_in_one_line():
    message = r"the cluster cannot load what it is sent \(ModuleNotFoundError: No module named 'mine'\); your own code"
    with open_cluster(workers=1) as client, pytest.raises(ConfigError, match=message):
        list(map_in_order(pow, [2], client, common=Unknown()))
