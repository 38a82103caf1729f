"""Rounding is not taken for a use of the slices that the network does not make."""

import numpy as np
import pytest
import torch
from torch import nn
from values import by_name

import evenslice


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


class Gates(nn.Module):
    """The same output for a window and its mirror to within 1e-5, by gradients that differ: E = 0.05 / 2.05."""

    def forward(self, windows):
        first, middle, last = windows.split(1, dim=1)
        ripple = torch.frac(1e4 * first) / 1e4
        return first + middle + last + 0.05 * ripple + 1.0


@pytest.fixture(scope="module")
def grays():
    return np.random.default_rng(0).integers(0, 256, (24, 64, 64)).astype(np.uint8)


def audit(network, grays, **options):
    return evenslice.audit(
        network,
        grays,
        **by_name(
            evenslice.audit,
            slices=3,
            reading=evenslice.Reading(intensity=(0, 255)),
            sampling=evenslice.Sampling(tile=(64, 64)),
            compute=evenslice.Compute(device="cpu"),
            **options,
        ),
    )


def test_rounding_at_the_corner_of_an_activation_is_no_mismatch(grays):
    found = audit(Corner(), grays)
    assert found.mismatch.estimate < 1e-9
    assert found.verdict == "symmetric"


def test_a_network_that_refuses_float64_is_judged_as_it_computes(grays):
    assert audit(SingleOnly(), grays).mismatch.estimate > 0.01


def test_a_mismatch_that_float64_confirms_stays(grays):
    assert audit(Gates(), grays).mismatch.estimate == pytest.approx(0.05 / 2.05, rel=1e-3)


def test_windows_that_are_their_own_mirrors_are_not_measured_again(grays):
    """Their outputs are equal whatever the network does: empty margins would cost passes in float64."""

    class Counted(nn.Module):
        doubles = 0

        def forward(self, windows):
            Counted.doubles += windows.dtype == torch.float64
            return windows[:, :1] + 3 * windows[:, 1:2] + 2 * windows[:, 2:]

    same = np.broadcast_to(grays[:1], grays.shape)
    found = audit(Counted(), same)
    assert np.isnan(found.mismatch.estimate)  # they do not tell
    assert Counted.doubles == 0


def test_the_network_of_the_user_keeps_its_precision(grays):
    network = nn.Sequential(Corner(), nn.Conv2d(1, 1, 1))
    audit(network, grays)
    assert network[1].weight.dtype == torch.float32
