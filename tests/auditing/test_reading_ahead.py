"""Windows are read while the network computes: the same results, no more than needed, and a clean end."""

import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch
from chunk_server import serving
from commands import wait_until
from torch import nn
from values import by_name

import evenslice
from evenslice import VolumeError

HUGE, CHUNK = (98_304, 32_768, 32_768), (16, 64, 64)
TEXTURE = np.random.default_rng(0).random((48, 40, 40))


class Watched:
    """An array that notes which thread reads it, and may fail."""

    def __init__(self, fails_at=None):
        self.shape, self.dtype = TEXTURE.shape, TEXTURE.dtype
        self.fails_at, self.threads, self.armed = fails_at, [], False

    def __getitem__(self, key):
        if self.armed:
            self.threads.append(threading.current_thread())
            if len(self.threads) == self.fails_at:
                raise OSError("the disk is gone")
        return TEXTURE[key]


class Network(nn.Conv2d):
    """A convolution that calls a function with the number of each pass."""

    def __init__(self, watch=lambda _: None):
        torch.manual_seed(0)
        super().__init__(3, 2, 3, padding=1)
        object.__setattr__(self, "watch", watch)
        object.__setattr__(self, "passes", [])

    def __deepcopy__(self, memo):
        return self

    def forward(self, windows):
        self.passes.append(len(windows))
        self.watch(len(self.passes))
        return super().forward(windows)


def audit(volume, network=None, **options):
    return evenslice.audit(
        network or Network(), volume, **by_name(evenslice.audit, **{"batch": 4, "progress": False} | options)
    )


def document(found):
    return {key: value for key, value in found.to_dict().items() if key not in ("created", "seconds")}


def reading():
    return any(it.name == "evenslice reading ahead" for it in threading.enumerate())


def test_a_volume_that_cannot_be_read_is_the_same_error_and_ends_the_reading(monkeypatch):
    messages = []
    for ahead in (1, 0):
        monkeypatch.setattr("evenslice.auditing.auditor.AHEAD", ahead)
        volume = Watched(fails_at=11)
        network = Network(lambda _, volume=volume: setattr(volume, "armed", True))
        with pytest.raises(VolumeError, match="the disk is gone") as caught:
            audit(volume, network)
        messages.append(str(caught.value))
        wait_until(lambda: not reading(), seconds=10)
        assert len(volume.threads) == 11
    assert messages[0] == messages[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_ends_the_network_ends_the_reading(error):
    volume = Watched()

    def fail(number):
        volume.armed = True
        if number == 9:
            raise error

    with pytest.raises((error, evenslice.ModelError)):
        audit(volume, Network(fail), precision=1e-9)
    wait_until(lambda: not reading(), seconds=10)
    seen = len(volume.threads)
    time.sleep(0.1)
    assert len(volume.threads) == seen


@pytest.mark.slow
def test_an_audit_of_100_tb_reads_its_sample_and_its_windows_and_no_more():
    with serving(shape=HUGE, chunk=CHUNK, delay=0.002) as server:
        audit(server.address, tile=(64, 64), max_windows=8)  # imports
        peaks = []
        for address in (TEXTURE, server.address):
            server.asked.clear()
            tracemalloc.start()
            found = audit(
                address, tile=(32, 32) if address is TEXTURE else (64, 64), max_windows=16, precision=1e-9
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert found.run.windows_available >= (HUGE[0] - 2) * 512 * 512
    assert len(found.measurements.volume) == 16
    places = found.measurements.position
    under = {
        (slice_ // 16, row // 64, column // 64)
        for z, y, x in places.tolist()
        for slice_ in (z - 1, z, z + 1)
        for row in (y, y + 63)
        for column in (x, x + 63)
    }
    others = set(server.asked) - under
    assert len(server.asked) <= len(set(server.asked)) + 4 + 2 * 8  # two windows are read twice
    assert under <= set(server.asked)
    assert len(others) <= 256 + (2 + 32) + 4 * 8  # the sample, the fingerprint, and a batch read ahead
    assert peaks[1] < peaks[0] + 64 * 2**20


@pytest.mark.slow
def test_what_a_lost_slice_costs_is_measured_on_the_middle_of_large_slices():
    with serving(shape=(8, 32_768, 32_768), chunk=CHUNK, delay=0) as server:
        labels = np.broadcast_to(np.uint8(1), (8, 32_768, 32_768))
        found = audit(server.address, labels=labels, max_windows=8, tile=(64, 64))
        planes = {index[1:] for index in server.asked}
    assert found.stress is not None
    middle = {(y, x) for y in range(248, 264) for x in range(248, 264)}
    assert middle <= planes
    assert len(planes - middle) < 256 + (2 + 32) + 16 * 4


@pytest.mark.slow
def test_workers_read_an_address_for_themselves():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with serving(shape=(64, 128, 128), chunk=CHUNK) as server:
        one, many = (audit(server.address, network, tile=(64, 64), workers=workers) for workers in (None, 2))
    assert document(one) == document(many)
