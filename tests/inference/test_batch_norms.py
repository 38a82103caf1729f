"""Batch norms folded into the convolutions before them: the same output, in less time."""

import pytest
import torch
from torch import nn

from evenslice import load_network
from evenslice.inference import ReadyNetwork

pytestmark = pytest.mark.slow


def trained(network):
    """Give batch norms statistics and weights that change what passes through them."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network


def folded(network, side):
    """Return how many batch norms are left, and the outputs for two windows before and after."""
    ready, windows = ReadyNetwork(trained(network), slices=3, device="cpu"), torch.rand(2, 3, side, side)
    with torch.no_grad():
        before = ready(windows)
        ready.prepare(3, (side, side))
        return sum(isinstance(part, nn.BatchNorm2d) for part in ready.modules()), before, ready(windows)


@pytest.mark.parametrize("strategy", ["pretrained", "twin"])
@pytest.mark.parametrize("spec", ["smp:Unet/resnet18", "smp:Unet/tu-tf_efficientnet_lite0"])
def test_real_networks_give_the_same_output(spec, strategy):
    left, before, after = folded(load_network(spec, "none", slices=3, strategy=strategy).model, 64)
    assert left == 0
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()


class Odd(nn.Module):
    """A convolution and its batch norm, put together by a function of both and of the image."""

    def __init__(self, forward):
        super().__init__()
        self.convolution, self.norm, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), forward

    def forward(self, x):
        return self.how(self.convolution, self.norm, x)


def shared(given, norm):
    return given + norm(given)


@pytest.mark.parametrize(
    "network",
    [
        Odd(lambda convolution, norm, x: convolution(x) + norm(convolution(x))),
        Odd(lambda convolution, norm, x: norm(convolution(convolution(x)))),
        Odd(lambda convolution, norm, x: shared(convolution(x), norm)),
        Odd(lambda convolution, norm, x: norm(convolution(x)) * norm.weight.mean()),
        Odd(lambda convolution, norm, x: norm(input=convolution(x))),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_what_would_change_the_output_stays(network):
    left, before, after = folded(network, 16)
    assert left == 1
    assert torch.equal(after, before)
