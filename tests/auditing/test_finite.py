"""Networks that return NaN or infinity, or whose gradient is one of them."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from values import by_name

from evenslice import Compute, Reading
from evenslice._core.errors import ModelError
from evenslice.auditing.auditor import audit


class Bright(nn.Module):
    """Fair, but for windows with a slice that is brighter than others."""

    def __init__(self, spoil, classes=2, offset=1):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 3, padding=1)
        nn.init.ones_(self.layer.weight)
        with torch.no_grad():
            self.layer.weight[1:] *= -1
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
    return audit(
        network,
        volume,
        **by_name(
            audit, slices=3, reading=Reading(intensity=(0, 1.1)), compute=Compute(device="cpu"), **options
        ),
    )


@pytest.mark.parametrize(("classes", "offset"), [(1, 0), (2, 1)])
def test_windows_for_which_a_network_returns_nan_are_named(volume, classes, offset):
    """They used to count as agreement, or as windows without attribution, if the others were fair."""
    network = Bright(nan_output, classes, offset)
    with pytest.raises(
        ModelError, match=r"returns NaN for the window at z, y, x = \(\d+, 0, 0\) of"
    ) as caught:
        run(network, volume)
    z = int(re.search(r"\((\d+)", str(caught.value))[1])
    assert 5 in {(z - 1 + offset) % 10, (z + 1 - offset) % 10}  # in either order


def test_infinity_is_named_like_nan(volume):
    with pytest.raises(ModelError, match="returns infinity for the window at"):
        run(Bright(infinite_output), volume)


def test_a_gradient_that_is_nan_is_named_with_the_way_out(volume):
    network = Bright(nan_gradient)
    with pytest.raises(ModelError, match=r"gradient of NaN for the window at .*; use method='occlusion'"):
        run(network, volume)
    with pytest.raises(ModelError, match="gradient of NaN"):
        run(network, volume, method="input_x_gradient")
    found = run(network, volume, method="occlusion")
    assert found.verdict in ("symmetric", "balanced")
    assert found.run.use == "replacement"
    assert np.isfinite(found.measurements.shares).all()


def test_a_window_for_which_a_network_returns_nan_once_a_slice_is_replaced_is_named(volume):
    def fails(windows, output, _):
        same = (windows[:, 0] == windows[:, 1]).all(dim=(1, 2)).view(-1, 1, 1, 1)
        return output + torch.where(same, torch.nan, 0.0)

    with pytest.raises(
        ModelError, match="returns NaN with a slice replaced by the middle one for the window at"
    ):
        run(Bright(fails), volume)
