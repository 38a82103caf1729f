"""Networks that return NaN, answer in two ways or run out of memory are refused; rounding is not taken for a use of slices."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from formulas import audit_formula, noise
from torch import nn

from evenslice import ModelError


class Bright(nn.Module):
    """Fair, but for windows with a slice that is brighter than others."""

    def __init__(self, spoil, offset=1):
        super().__init__()
        self.spoil, self.offset = spoil, offset

    def forward(self, windows):
        bright = windows[:, self.offset].mean(dim=(1, 2)) > 0.5
        output = 3 * windows.sum(1, keepdim=True) - 4
        return output + self.spoil(windows, bright.view(-1, 1, 1, 1))


def returned(value):
    return lambda _, bright: torch.where(bright, value, 0.0)


def nan_gradient(windows, bright):
    none = (windows - windows.detach()).square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return torch.where(bright, none, 0.0)


def nan_if_replaced(windows, _):
    same = (windows[:, 0] == windows[:, 1]).all(dim=(1, 2)).view(-1, 1, 1, 1)
    return torch.where(same, torch.nan, 0.0)


@pytest.fixture(scope="module")
def stack():
    """A stack of which the slices 5, 15, 25 ... are bright."""
    found = 0.6 * noise(60)
    found[5::10] += 0.4
    return found


@pytest.mark.parametrize("offset", [0, 1])
def test_windows_for_which_a_network_returns_nan_are_named(stack, offset):
    """They used to count as agreement, or as windows without attribution, if the others were fair."""
    with pytest.raises(ModelError, match="returns NaN for the window at z, y, x = ") as caught:
        audit_formula(Bright(returned(torch.nan), offset), stack)
    z = int(re.search(r"= \((\d+), 0, 0\)", str(caught.value))[1])
    assert 5 in {(z - 1 + offset) % 10, (z + 1 - offset) % 10}  # in either order


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (returned(torch.inf), {}, "returns infinity for the window at"),
        (nan_gradient, {}, r"gradient of NaN for the window at .*method='occlusion'"),
        (nan_gradient, {"method": "input_x_gradient"}, "gradient of NaN"),
        (nan_if_replaced, {}, "returns NaN with a slice replaced by the middle one for the window at"),
    ],
)
def test_what_is_not_finite_is_named(stack, spoil, options, message):
    with pytest.raises(ModelError, match=message):
        audit_formula(Bright(spoil), stack, **options)


def test_a_network_without_a_finite_gradient_is_audited_by_occlusion(stack):
    found = audit_formula(Bright(nan_gradient), stack, method="occlusion")
    assert (found.verdict in ("symmetric", "balanced"), found.run.use) == (True, "replacement")
    assert np.isfinite(found.measurements.shares).all()


class MonteCarlo(nn.Dropout2d):
    """Dropout that is on in evaluation mode too."""

    def forward(self, features):
        return nn.functional.dropout2d(features, self.p, training=True)


class BatchMean(nn.Module):
    def forward(self, features):
        return features - features.mean(0, keepdim=True)


class Small(nn.Conv2d):
    """Has memory for one window."""

    def forward(self, windows):
        if len(windows) > 1:
            raise torch.OutOfMemoryError
        return super().forward(windows)


def around(layer):
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(stem, layer, nn.Conv2d(8, 2, 1)).train()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (around(MonteCarlo(0.2)), r"in a second run, .*; random: 1 \(MonteCarlo\)"),
        (around(BatchMean()), r"beside another window, .*; dependent on the batch: 1 \(BatchMean\)"),
        (
            around(nn.BatchNorm2d(8, track_running_stats=False)),
            r"beside another window, .*: 1 \(BatchNorm2d\)",
        ),
        (Small(3, 2, 1), "memory of the device has run out: two windows"),
    ],
)
def test_networks_that_are_not_repeatable_are_refused_and_their_layers_named(network, message):
    with pytest.raises(ModelError, match=message):
        audit_formula(network, noise(depth=12))


@pytest.mark.parametrize("layer", [nn.Dropout2d(0.5), nn.BatchNorm2d(8)])
def test_networks_left_in_training_mode_are_audited_in_evaluation_mode(layer):
    model = around(layer)
    first, again = (audit_formula(model, noise(depth=12)) for _ in range(2))
    assert model.training
    assert first.saliency == again.saliency


class Corner(nn.Module):
    """The same function of both neighbours, whose activation is at its corner but for the rounding of a sum.

    In float32 a sum depends on the order of its parts, here the slices, and so does the side of the corner. In float64
    these sums are exact.
    """

    def forward(self, windows):
        total = windows[:, :1] + windows[:, 1:2] + windows[:, 2:]
        return total + torch.relu(total - (255 * total).detach().round() / 255)


class SingleOnly(Corner):
    def forward(self, windows):
        if windows.dtype == torch.float64:
            raise TypeError("float64 is not supported")
        return super().forward(windows)


def gates(windows, part=0.05):
    """The same output for a window and its mirror to within 1e-5, by gradients that differ: E = part / (2 + part)."""
    return windows.sum(1, keepdim=True) + part * torch.frac(1e4 * windows[:, :1]) / 1e4 + 1.0


GRAYS = np.random.default_rng(0).integers(0, 256, (24, 64, 64)).astype(np.uint8)


@pytest.mark.parametrize(
    ("network", "mismatch"),
    [
        (Corner(), 0),
        (SingleOnly(), pytest.approx(0.5, abs=0.49)),
        (gates, pytest.approx(0.05 / 2.05, rel=1e-3)),
        (partial(gates, part=0.01), pytest.approx(0.01 / 2.01, rel=1e-3)),
        (partial(gates, part=0.001), 0),  # as rounding has it in real networks
    ],
)
def test_a_mismatch_is_that_of_float64_where_the_network_computes_in_it(network, mismatch):
    found = audit_formula(network, GRAYS, intensity=(0, 255), tile=(64, 64))
    assert found.mismatch.estimate == (pytest.approx(0, abs=1e-9) if mismatch == 0 else mismatch)
    assert mismatch != 0 or found.verdict == "symmetric"
