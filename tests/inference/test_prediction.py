"""Whole volumes predicted slice by slice by networks whose output is known."""

import threading

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, strategies as st
from torch import nn

from evenslice import ModelError, Scaling, VolumeError, open_volume
from evenslice.inference import prediction as predicting
from evenslice.inference.prediction import predict
from evenslice.inference.ready_networks import BlackBox, ReadyNetwork
from evenslice.volumes.read.zarr import ZarrSource


class Weighted(nn.Module):
    """Two classes: +-sum_k w_k x_k at each pixel."""

    def __init__(self, *weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights).view(1, -1, 1, 1))
        self.sizes = []

    def forward(self, windows):
        logit = (self.weights * windows).sum(1, keepdim=True)
        return torch.cat([-logit, logit], dim=1)


class Blurred(nn.Module):
    """Reads beyond each pixel, so that a tile's border shows."""

    def forward(self, windows):
        return nn.functional.avg_pool2d(windows[:, :2], 9, stride=1, padding=4)


def ready(network, slices=3):
    return ReadyNetwork(network, slices=slices, device="cpu", dtype="float32")


def noise(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def predicted(network, image, slices=3, **options):
    found = dict(
        predict(ready(network, slices), open_volume(image), scaling=Scaling(0, 1), slices=slices, **options)
    )
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


def test_slices_come_in_order_and_may_be_chosen():
    image = noise(9, 8, 8)
    network, volume = ready(Weighted(1.0, 2.0, 4.0)), open_volume(image)
    every = dict(predict(network, volume, scaling=Scaling(0, 1), slices=3))
    assert list(every) == list(range(9))
    some = list(predict(network, volume, scaling=Scaling(0, 1), slices=3, centres=[0, 3, 4, 8]))
    assert [z for z, _ in some] == [0, 3, 4, 8]
    assert all(torch.equal(output, every[z]) for z, output in some)


def test_no_slice_is_read_twice(monkeypatch):
    volume = open_volume(noise(12, 8, 8))
    reads = []
    read = type(volume).__getitem__
    monkeypatch.setattr(
        type(volume), "__getitem__", lambda self, key: reads.append(key[0]) or read(self, key)
    )
    for _ in predict(ready(Weighted(*[1.0] * 5), 5), volume, scaling=Scaling(0, 1), slices=5, step=2):
        pass
    assert sorted(part if isinstance(part, int) else part.start for part in reads) == list(range(12))


@pytest.mark.parametrize("remote", [False, True])
def test_what_comes_next_is_read_while_a_volume_at_an_address_is_predicted(monkeypatch, remote):
    volume, image = open_volume(noise(9, 8, 8)), noise(9, 8, 8)
    threads, read = set(), type(volume).__getitem__
    monkeypatch.setattr(type(volume), "remote", property(lambda _: remote))
    monkeypatch.setattr(
        type(volume),
        "__getitem__",
        lambda self, key: threads.add(threading.current_thread()) or read(self, key),
    )
    found = predicted(Weighted(1.0, 2.0, 4.0), image, batch=2)
    assert (threading.main_thread() in threads) is not remote
    monkeypatch.undo()
    assert np.array_equal(found, predicted(Weighted(1.0, 2.0, 4.0), image, batch=2))


@pytest.fixture
def reads(monkeypatch):
    """The slices of each read of a stored array."""
    found, read = [], ZarrSource.read
    monkeypatch.setattr(ZarrSource, "read", lambda self, key: found.append(key[0]) or read(self, key))
    return found


@pytest.mark.parametrize(
    ("most", "lengths"), [(2**25, [4, 4, 4, 1]), (3 * 24 * 16 * 4, [3, 1, 3, 1, 3, 1, 1])]
)
@pytest.mark.parametrize("step", [1, 2])
def test_slices_that_are_stored_as_one_are_read_as_one_as_far_as_memory_allows(
    tmp_path, monkeypatch, reads, most, lengths, step
):
    image = noise(13, 24, 16)
    zarr.create_array(tmp_path / "image.zarr", data=image, chunks=(4, 8, 8))
    volume = open_volume(tmp_path / "image.zarr")
    monkeypatch.setattr(predicting, "HELD_BYTES", most)
    network = ready(Weighted(1.0, 2.0, 4.0))
    found = [output for _, output in predict(network, volume, scaling=Scaling(0, 1), slices=3, step=step)]
    assert [part.stop - part.start for part in reads] == lengths
    monkeypatch.undo()
    for output, right in zip(found, predicted(network.module, image, step=step), strict=True):
        np.testing.assert_allclose(output.numpy(), right, rtol=1e-6)


def test_planes_are_scaled_and_filled():
    image = np.full((3, 4, 4), 5.0, np.float32)
    image[1, 2, 3] = np.nan
    volume = open_volume(image)
    network = ready(Weighted(0.0, 1.0, 0.0))
    outputs = dict(predict(network, volume, scaling=Scaling(0, 10, fill=10), slices=3))
    assert outputs[1][1, 2, 3] == 1
    assert outputs[1][1, 0, 0] == 0.5
    with pytest.raises(VolumeError, match="NaN"):
        list(predict(network, volume, scaling=Scaling(0, 10), slices=3))


def test_tiles_cover_a_plane_without_a_seam():
    image = noise(3, 70, 101)
    whole = predicted(Weighted(1.0, 2.0, 4.0), image)
    tiled = predicted(Weighted(1.0, 2.0, 4.0), image, tile=(32, 48))
    np.testing.assert_allclose(tiled, whole, rtol=1e-5)


@pytest.mark.slow
@given(y=st.integers(0, 69), x=st.integers(0, 100), tile=st.sampled_from([(32, 48), (64, 32), (96, 128)]))
def test_regions_are_parts_of_the_whole(y, x, tile):
    image = noise(3, 70, 101)
    whole = predicted(Blurred(), image, tile=tile, centres=[1])
    region = (slice(y, min(y + 20, 70)), slice(x, min(x + 30, 101)))
    part = predicted(Blurred(), image, tile=tile, region=region, centres=[1])
    assert part.shape[2:] == whole[:, :, *region].shape[2:]
    np.testing.assert_allclose(part, whole[:, :, *region], rtol=1e-5, atol=1e-6)


def test_tiles_are_blended_over_their_overlap():
    class TileNumber(nn.Module):
        """Answers with how often it was asked: every tile another value."""

        calls = 0

        def forward(self, windows):
            self.calls += 1
            return torch.full((1, 2, *windows.shape[2:]), float(self.calls))

    found = predicted(TileNumber(), noise(3, 32, 60), tile=(32, 32), batch=1, centres=[1])[0, 0, 5]
    assert found[0] == 1
    assert found[-1] == 2
    assert (np.diff(found) >= 0).all()  # from one to the other in small steps
    assert np.diff(found).max() < 0.25


def test_a_plane_is_mirrored_to_what_the_network_takes():
    seen = []

    class Picky(nn.Module):
        def forward(self, windows):
            seen.append(tuple(windows.shape))
            assert windows.shape[2] % 32 == windows.shape[3] % 32 == 0
            return windows[:, :2]

    assert predicted(Picky(), noise(3, 10, 40)).shape == (3, 2, 10, 40)
    assert seen == [(3, 3, 32, 64)]


def test_a_network_of_one_size_gets_tiles_of_that_size():
    class Fixed(nn.Module):
        image_size, seq_length = 16, 1

        def forward(self, windows):
            assert windows.shape[2:] == (16, 16)
            return windows[:, :2]

    assert predicted(Fixed(), noise(3, 10, 40)).shape == (3, 2, 10, 40)


def test_a_coarse_output_is_resized():
    class Coarse(nn.Module):
        def forward(self, windows):
            return {"out": nn.functional.avg_pool2d(windows[:, :2], 4)}

    image = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float32), (3, 32, 32))
    found = predicted(Coarse(), image.copy())
    assert found.shape == (3, 2, 32, 32)
    np.testing.assert_allclose(found[1, 0, 16, 2:-2], image[1, 16, 2:-2], atol=1e-6)


def test_an_output_without_its_border_is_refused():
    """Stretched over the window, no pixel but the middle would be where it belongs."""
    for padding in (0, 8):
        network = nn.Conv2d(3, 2, 9, padding=padding)
        with pytest.raises(ModelError, match=r"returns (24|40) x (24|40) pixels for windows of 32 x 32"):
            predicted(network, noise(5, 32, 32))
    for stride in (2, 4):  # a stride leaves one pixel out of many at most
        assert predicted(nn.Conv2d(3, 2, 3, stride=stride), noise(5, 32, 32)).shape == (5, 2, 32, 32)
    assert predicted(nn.Conv2d(3, 2, 2, padding=1), noise(5, 32, 32)).shape == (5, 2, 32, 32)


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_an_output_for_another_number_of_windows_is_refused(tile):
    """As from a function that takes one window at a time, which a trial with one window does not show."""
    first = BlackBox(lambda windows: windows[:1, :2])
    message = r"returns \(1, 2, \d+, \d+\) for 4 windows; the first dimension must be the batch"
    outputs = predict(
        first, open_volume(noise(5, 24, 24)), scaling=Scaling(0, 1), slices=3, tile=tile, batch=4
    )
    with pytest.raises(ModelError, match=message):
        list(outputs)


class Normalized(nn.Module):
    """Divides by the standard deviation of each window, which is 0 where all is blank."""

    def forward(self, windows):
        middle = windows[:, 1:2]
        logit = (middle - middle.mean((2, 3), keepdim=True)) / middle.std((2, 3), keepdim=True)
        return torch.cat([-logit, logit], dim=1)


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_nan_is_refused_with_the_slice_for_which_it_was_returned(tile):
    image = noise(9, 24, 24)
    image[5] = 0.5
    with pytest.raises(ModelError, match="returns NaN for slice 5 of <array>; it has to return numbers"):
        predicted(Normalized(), image, tile=tile, batch=4)


class Masked(nn.Module):
    """Rules out one class, and is certain of another."""

    def forward(self, windows):
        certain = torch.full_like(windows[:, :1], torch.inf)
        return torch.cat([windows[:, :1], -certain, certain], dim=1)


def test_infinite_logits_of_a_class_are_accepted():
    found = predicted(Masked(), noise(5, 8, 8))
    assert (found.argmax(axis=1) == 2).all()
