"""Networks that return NaN or infinity, or whose gradient is one of them."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from evenslice._core.errors import ModelError
from evenslice.auditing.attribution import attribute
from evenslice.auditing.auditor import audit
from evenslice.inference import ReadyNetwork


class Bright(nn.Module):
    """Fair, but for windows with a slice that is brighter than others."""

    def __init__(self, spoil, classes=2, offset=1):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 3, padding=1)
        nn.init.ones_(self.layer.weight)
        nn.init.constant_(self.layer.bias, -13.5)
        self.spoil, self.offset = spoil, offset

    def forward(self, windows):
        output = self.layer(windows)
        bright = windows[:, self.offset].mean(dim=(1, 2)) > 0.5
        return self.spoil(windows, output, bright.view(-1, 1, 1, 1))


def nan_output(_, output, bright):
    return output + torch.where(bright, torch.nan, 0.0)


def infinite_output(_, output, bright):
    return output + torch.where(bright, torch.inf, 0.0)


def nan_gradient(windows, output, bright):
    none = (windows - windows.detach()).square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return output + torch.where(bright, none, 0.0)


@pytest.fixture(scope="module")
def volume():
    """A stack of which the slices 5, 15, 25 ... are bright."""
    found = 0.6 * np.random.default_rng(0).random((60, 32, 32), dtype=np.float32)
    found[5::10] += 0.45
    return found


def run(network, volume, **options):
    return audit(network, volume, slices=3, intensity=(0, 1.1), device="cpu", **options)


@pytest.mark.parametrize(
    ("classes", "offset", "dtype"), [(1, 0, "float32"), (2, 1, "float32"), (2, 0, "bfloat16")]
)
def test_windows_for_which_a_network_returns_nan_are_named(volume, classes, offset, dtype):
    """They used to count as agreement, or as windows without attribution, if the others were fair."""
    network = Bright(nan_output, classes, offset)
    with pytest.raises(
        ModelError, match=r"returns NaN for the window at z, y, x = \(\d+, 0, 0\) of"
    ) as caught:
        run(network, volume, dtype=dtype)
    z = int(re.search(r"\((\d+)", str(caught.value))[1])
    assert 5 in {(z - 1 + offset) % 10, (z + 1 - offset) % 10}  # in either order


def test_infinity_is_named_like_nan(volume):
    with pytest.raises(ModelError, match="returns infinity for the window at"):
        run(Bright(infinite_output), volume, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_that_is_nan_is_named_with_the_way_out(volume, dtype):
    network = Bright(nan_gradient)
    with pytest.raises(ModelError, match=r"gradient is NaN for the window at .*; use method='occlusion'"):
        run(network, volume, dtype=dtype)
    with pytest.raises(ModelError, match="gradient is NaN"):
        run(network, volume, dtype=dtype, method="input_x_gradient")
    found = run(network, volume, dtype=dtype, method="occlusion")
    assert found.verdict in ("symmetric", "balanced")
    assert np.isfinite(found.measurements.shares).all()


def test_an_occluded_window_for_which_a_network_returns_nan_is_named(volume):
    def fails(windows, output, _):
        flat = windows.flatten(2).std(dim=2).amin(dim=1).view(-1, 1, 1, 1) < 1e-6
        return output + torch.where(flat, torch.nan, 0.0)

    with pytest.raises(ModelError, match="returns NaN where a slice of the window at"):
        run(Bright(fails), volume, dtype="float32")


def test_what_is_nan_in_bfloat16_alone_is_computed_in_float32():
    class Rounded(nn.Module):
        """The root of a difference that only bfloat16 rounds to 0."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, windows):
            near = windows * self.weight + 1e-4
            return (near - windows + (windows - windows.detach())).sqrt().sum(dim=1, keepdim=True)

    network = ReadyNetwork(Rounded(), slices=3, device="cpu", dtype="bfloat16")
    found = attribute(network, torch.full((2, 3, 8, 8), 0.5), target="sum")
    assert bool(found.attribution.isfinite().all())
    assert network.dtype == torch.bfloat16
