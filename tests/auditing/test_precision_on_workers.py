"""One worker checks the fast precision of an audit, while the others go on in it; together they find what one process does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pretended_client import PretendedClient
from torch import nn

import evenslice
from evenslice.auditing import measuring
from evenslice.auditing.batches import WindowStream
from evenslice.volumes import Scaling, WindowGrid


@pytest.fixture(scope="module")
def texture():
    return np.random.default_rng(0).random((48, 40, 40))


@pytest.mark.parametrize("limit", [None, 8])
def test_a_cluster_begins_again_in_float32_as_one_process_does(texture, monkeypatch, limit):
    """No precision is within a billionth; what workers have measured in bfloat16 meanwhile is left out."""
    monkeypatch.setattr("evenslice.inference.devices._has_bfloat16", lambda _: True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    one, many = (
        evenslice.audit(network, texture, device="cpu", precision=1e-9, max_windows=limit, workers=workers)
        for workers in (None, 2)
    )
    assert one.run.dtype == many.run.dtype == "float32"
    assert len(one.measurements.volume) == (limit or one.run.windows_available)
    np.testing.assert_array_equal(one.measurements.position, many.measurements.position)
    np.testing.assert_array_equal(one.measurements.shares, many.measurements.shares)
    np.testing.assert_array_equal(one.subset.second_shares, many.subset.second_shares)


@pytest.mark.parametrize("decided", [torch.bfloat16, torch.float32])
def test_workers_do_not_wait_while_one_checks_the_precision(texture, monkeypatch, decided):
    measured = []

    def measure(batch, measurer, **_):
        measured.append((batch.places.tolist(), measurer.network.dtype))
        return SimpleNamespace(places=batch.places)

    monkeypatch.setattr(measuring, "_measure_batch", measure)
    monkeypatch.setattr(measuring, "_measure_first", lambda *given, **_: (measure(*given[:2]), decided))
    measurer = SimpleNamespace(network=SimpleNamespace(dtype=torch.bfloat16), volumes=[])
    grid = WindowGrid(evenslice.open_volume(texture), Scaling(0, 1), 3, (20, 20))
    stream = WindowStream([grid], seed=0, max_windows=40)
    client = PretendedClient(workers=2, lazy=True)
    found = measuring.measure_batches(
        stream,
        lambda: 8 if measurer.network.dtype == torch.bfloat16 else 4,
        measurer,
        0.01,
        check_dtype=True,
        client=client,
    )
    first = next(found)
    assert [len(task[0].places) for task in client.sent[1:]] == [8] * 4  # behind the measurer
    assert measurer.network.dtype == decided
    rest = list(found)
    size = 8 if decided == torch.bfloat16 else 4
    assert [len(batch.places) for batch in rest] == [size] * (32 // size)
    visited = [place for batch in (first, *rest) for place in batch.places.tolist()]
    assert visited == [place for batch in stream.batches(lambda: 40) for place in batch.places.tolist()]
    assert {dtype for _, dtype in measured[1:]} == {decided}
