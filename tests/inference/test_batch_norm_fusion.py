"""Batch norms that go into convolutions, and those that must not."""

import copy

import pytest
import torch
from torch import nn

from evenslice import load_network
from evenslice.inference.ready_networks import ReadyNetwork, fuse_batch_norms


def trained(network):
    """Give batch norms the statistics and parameters of a trained network."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.1)
    return network.eval()


def batch_norms(network):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "left"),
    [
        ("smp:Unet/tu-tf_efficientnet_lite0", 0),
        ("smp:DeepLabV3Plus/resnet18", 0),
        ("timm:mobilenetv3_small_100", 0),
        ("smp:Unet/densenet121", 62),  # there they stand before convolutions
        ("timm:convnext_atto", 0),
    ],
)
def test_real_networks_give_the_same_output(spec, left):
    network, _, _ = load_network(spec, "none", slices=3, strategy="uniform")
    trained(network.requires_grad_(False))
    windows, count = torch.rand(2, 3, 64, 64), batch_norms(network)
    before = network(windows)
    assert fuse_batch_norms(network, windows[:1]) == count - left
    assert batch_norms(network) == left
    assert (network(windows) - before).abs().max() <= 1e-4 * before.abs().max()


class ByName(nn.Module):
    """Gives its batch norm the image by keyword."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(input=self.convolution(x))


class Shared(nn.Module):
    """What the convolution gives is read by the batch norm and by another."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.convolution(x)
        return x + self.norm(x)


class Twice(nn.Module):
    """One convolution runs twice, and only once before the batch norm."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.convolution(self.convolution(x)))


class Aside(nn.Module):
    """What the convolution gives is also read where the autograd graph does not show it."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.convolution(x)
        return self.norm(x) + x.detach()


class Nosy(nn.Module):
    """Looks for its batch norm's parameters."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.convolution(x)) * self.norm.weight.mean()


class Unknown(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).exp()


@pytest.mark.parametrize(
    "network",
    [
        Shared(),
        Twice(),
        Aside(),
        Nosy(),
        ByName(),
        nn.Sequential(nn.Conv2d(3, 4, 3), Unknown(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
    ids=lambda network: type(network).__name__,
)
def test_what_would_change_the_output_stays(network):
    if not any(getattr(module, "running_mean", 0) is None for module in network.modules()):
        trained(network)
    network.eval().requires_grad_(False)
    state, windows = copy.deepcopy(network.state_dict()), torch.rand(1, 3, 16, 16)
    before = network(windows)
    assert fuse_batch_norms(network, windows) == 0
    assert torch.equal(network(windows), before)
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


class Counting(nn.Sequential):
    """Counts the pixels it computes, and refuses windows below some size."""

    def __init__(self, least, error):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.least, self.error, self.pixels = least, error, []

    def forward(self, x):
        if min(x.shape[2:]) < self.least:
            raise self.error("too small")
        self.pixels.append(x[0, 0].numel())
        return super().forward(x)


@pytest.mark.parametrize(
    ("least", "error", "pixels"),
    [
        (0, None, [512 * 640, 128**2, 128**2]),
        (256, ValueError, [512 * 640] * 3),
        (256, KeyError, [512 * 640] * 3),
    ],
)
def test_preparing_computes_a_large_window_once_if_the_network_takes_smaller_ones(least, error, pixels):
    network = trained(Counting(least, error))
    ready = ReadyNetwork(network, slices=3, device="cpu", dtype="float32")
    windows = torch.rand(1, 3, 512, 640)
    before = network(windows)
    ready.module.pixels.clear()
    ready.prepare(3, (512, 640))
    assert ready.module.pixels == pixels
    assert batch_norms(ready.module) == 0
    assert (ready(windows) - before).abs().max() <= 1e-4 * before.abs().max()
