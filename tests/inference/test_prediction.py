"""Whole volumes predicted slice by slice by networks whose output is known."""

import threading

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, strategies as st
from planted import Weighted
from torch import nn

from evenslice import ModelError, Scaling, VolumeError, open_volume, segment
from evenslice.inference import BlackBox, Predictor, ReadyNetwork, prediction
from evenslice.volumes.read.chunked import ZarrSource

ONE = Scaling(0, 1)


class Applied(nn.Module):
    """A function as a network."""

    def __init__(self, function, **attributes):
        super().__init__()
        self.function = function
        vars(self).update(attributes)

    def forward(self, windows):
        return self.function(windows)


def noise(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def predictor(network, slices=3, step=1, tile=None, batch=None):
    ready = ReadyNetwork(network, slices=slices, device="cpu", dtype="float32")
    return Predictor(ready, slices, step, tile, batch)


def predicted(network, image, *options, centres=None, region=None, **more):
    made = predictor(network, *options, **more)
    found = dict(made.predict(open_volume(image), ONE, centres=centres, region=region))
    return np.stack([found[z].numpy() for z in sorted(found)])


@pytest.mark.slow
@given(
    depth=st.integers(5, 12),
    slices=st.sampled_from([1, 3, 5]),
    step=st.integers(1, 2),
    batch=st.sampled_from([None, 1, 3]),
)
def test_each_slice_is_predicted_from_its_window(depth, slices, step, batch):
    if (slices - 1) * step >= depth:
        return
    image, weights = noise(depth, 7, 9), np.arange(1.0, slices + 1)
    found = predicted(Weighted(*weights.tolist()), image, slices, step=step, batch=batch)
    reach = slices // 2 * step
    mirrored = np.pad(image, [(reach, reach), (0, 0), (0, 0)], "reflect")
    windows = np.stack([mirrored[z : z + 2 * reach + 1 : step] for z in range(depth)])
    np.testing.assert_allclose(found[:, 1], np.tensordot(windows, weights, (1, 0)), rtol=1e-5)


@pytest.mark.parametrize("step", [1, 2])
def test_slices_come_in_order_and_may_be_chosen(step):
    made, volume = predictor(Weighted(1.0, 2.0, 4.0), step=step), open_volume(noise(9, 8, 8))
    every = dict(made.predict(volume, ONE))
    assert list(every) == list(range(9))
    some = list(made.predict(volume, ONE, centres=[0, 3, 4, 8]))
    assert [z for z, _ in some] == [0, 3, 4, 8]
    assert all(torch.equal(output, every[z]) for z, output in some)


@pytest.mark.parametrize("remote", [False, True])
def test_each_slice_is_read_once_and_ahead_if_it_comes_from_an_address(monkeypatch, remote):
    volume, threads, reads = open_volume(noise(12, 8, 8)), set(), []
    read = type(volume).__getitem__

    def noted(self, key):
        threads.add(threading.current_thread())
        reads.append(key[0])
        return read(self, key)

    monkeypatch.setattr(type(volume), "remote", property(lambda _: remote))
    monkeypatch.setattr(type(volume), "__getitem__", noted)
    found = predicted(Weighted(*[1.0] * 5), volume, 5, 2, batch=2)
    assert (threading.main_thread() in threads) is not remote
    assert reads == list(range(12))
    monkeypatch.undo()
    assert np.array_equal(found, predicted(Weighted(*[1.0] * 5), volume, 5, 2, batch=2))


@pytest.mark.parametrize(
    ("most", "lengths"), [(2**25, [4, 4, 4, 1]), (3 * 24 * 16 * 4, [3, 1, 3, 1, 3, 1, 1])]
)
@pytest.mark.parametrize("step", [1, 2])
def test_slices_that_are_stored_as_one_are_read_as_one_as_far_as_memory_allows(
    tmp_path, monkeypatch, most, lengths, step
):
    image, reads, read = noise(13, 24, 16), [], ZarrSource.read
    monkeypatch.setattr(ZarrSource, "read", lambda self, key: reads.append(key[0]) or read(self, key))
    zarr.create_array(tmp_path / "image.zarr", data=image, chunks=(4, 8, 8))
    monkeypatch.setattr(prediction, "HELD_BYTES", most)
    found = predicted(Weighted(1.0, 2.0, 4.0), tmp_path / "image.zarr", step=step)
    assert [part.stop - part.start for part in reads] == lengths
    np.testing.assert_allclose(found, predicted(Weighted(1.0, 2.0, 4.0), image, step=step), rtol=1e-6)


def test_planes_are_scaled_and_filled():
    image = np.full((3, 4, 4), 5.0, np.float32)
    image[1, 2, 3] = np.nan
    made, volume = predictor(Weighted(0.0, 1.0, 0.0)), open_volume(image)
    outputs = dict(made.predict(volume, Scaling(0, 10, fill=10)))
    assert (outputs[1][1, 2, 3], outputs[1][1, 0, 0]) == (1, 0.5)
    with pytest.raises(VolumeError, match="NaN"):
        list(made.predict(volume, Scaling(0, 10)))


@pytest.mark.slow
@given(y=st.integers(0, 69), x=st.integers(0, 100), tile=st.sampled_from([(32, 48), (64, 32), (96, 128)]))
def test_regions_are_parts_of_the_whole_which_has_no_seam(y, x, tile):
    image = noise(3, 70, 101)
    blurred = Applied(lambda windows: nn.functional.avg_pool2d(windows[:, :2], 9, stride=1, padding=4))
    whole = predicted(blurred, image, tile=tile, centres=[1])
    region = (slice(y, min(y + 20, 70)), slice(x, min(x + 30, 101)))
    part = predicted(blurred, image, tile=tile, region=region, centres=[1])
    np.testing.assert_allclose(part, whole[:, :, *region], rtol=1e-5, atol=1e-6)
    plain, tiled = (
        predicted(Weighted(1.0, 2.0, 4.0), image, tile=size, centres=[1]) for size in (None, tile)
    )
    np.testing.assert_allclose(tiled, plain, rtol=1e-5)


def test_tiles_are_blended_over_their_overlap():
    calls = []  # every tile gets another value

    def count(windows):
        calls.append(1)
        return torch.full((1, 2, *windows.shape[2:]), float(len(calls)))

    found = predicted(Applied(count), noise(3, 32, 60), tile=(32, 32), batch=1, centres=[1])[0, 0, 5]
    assert (found[0], found[-1]) == (1, 2)
    assert (np.diff(found) >= 0).all()  # from one to the other in small steps
    assert np.diff(found).max() < 0.25


@pytest.mark.parametrize(
    ("attributes", "size"), [({}, (32, 64)), ({"image_size": 16, "seq_length": 1}, (16, 16))]
)
def test_windows_have_a_size_that_the_network_takes(attributes, size):
    seen = []
    network = Applied(lambda windows: seen.append(tuple(windows.shape[2:])) or windows[:, :2], **attributes)
    assert predicted(network, noise(3, 10, 40)).shape == (3, 2, 10, 40)
    assert set(seen) == {size}


def test_a_coarse_output_is_resized():
    image = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float32), (3, 32, 32)).copy()
    found = predicted(Applied(lambda windows: {"out": nn.functional.avg_pool2d(windows[:, :2], 4)}), image)
    assert found.shape == (3, 2, 32, 32)
    np.testing.assert_allclose(found[1, 0, 16, 2:-2], image[1, 16, 2:-2], atol=1e-6)


@pytest.mark.parametrize(
    ("network", "fits"),
    [
        (nn.Conv2d(3, 2, 9), False),  # stretched over the window, no pixel but the middle would be in place
        (nn.Conv2d(3, 2, 9, padding=8), False),
        (nn.Conv2d(3, 2, 3, stride=2), True),  # a stride leaves one pixel out of many at most
        (nn.Conv2d(3, 2, 3, stride=4), True),
        (nn.Conv2d(3, 2, 2, padding=1), True),
    ],
)
def test_an_output_without_its_border_is_refused(network, fits):
    if fits:
        assert predicted(network, noise(5, 32, 32)).shape == (5, 2, 32, 32)
        return
    with pytest.raises(ModelError, match=r"returns (24|40) x (24|40) pixels for windows of 32 x 32"):
        predicted(network, noise(5, 32, 32))


def divided(windows):
    """Divide by the standard deviation of each window, which is 0 where all is blank."""
    middle = windows[:, 1:2]
    logit = (middle - middle.mean((2, 3), keepdim=True)) / middle.std((2, 3), keepdim=True)
    return torch.cat([-logit, logit], dim=1)


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_an_output_that_is_no_answer_is_refused_with_its_place(tile):
    image = noise(9, 24, 24)
    image[5] = 0.5
    with pytest.raises(ModelError, match="returns NaN for slice 5 of <array>"):
        predicted(Applied(divided), image, tile=tile, batch=4)
    # As from a function that takes one window at a time, which a trial with one window does not show.
    first = BlackBox(lambda windows: windows[:1, :2])
    with pytest.raises(ModelError, match="for 4 windows"):
        list(Predictor(first, 3, tile=tile, batch=4).predict(open_volume(image), ONE))


def test_infinite_logits_of_a_class_are_accepted():
    certain = Applied(lambda x: torch.cat([x[:, :1], x[:, :1] - torch.inf, x[:, :1] + torch.inf], dim=1))
    assert (segment(certain, noise(5, 8, 8))[...] == 2).all()
