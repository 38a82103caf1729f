"""Batch norms that go into convolutions, and those that must not; depthwise convolutions that keep to float32."""

import pickle

import cloudpickle
import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from evenslice import load_network
from evenslice.inference import ReadyNetwork, keep_depthwise_exact


def trained(network):
    """Give batch norms the statistics and parameters of a trained network."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network.eval().requires_grad_(False)


def batch_norms(network):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def ready(network):
    return ReadyNetwork(network, slices=3, device="cpu", dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "left"),
    [
        ("smp:Unet/tu-tf_efficientnet_lite0", 0),
        ("smp:DeepLabV3Plus/resnet18", 0),
        ("smp:Unet/densenet121", 62),  # there they stand before convolutions
    ],
)
def test_real_networks_give_the_same_output(spec, left):
    network = ready(trained(load_network(spec, "none", slices=3, strategy="uniform").model))
    windows = torch.rand(2, 3, 64, 64)
    before = network(windows)
    network.prepare(3, (64, 64))
    assert batch_norms(network) == left
    assert (network(windows) - before).abs().max() <= 1e-4 * before.abs().max()


class Odd(nn.Module):
    """A convolution and its batch norm, put together by a function of both and of the image."""

    def __init__(self, forward):
        super().__init__()
        self.convolution, self.norm, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), forward

    def forward(self, x):
        return self.how(self.convolution, self.norm, x)


def shared(given, norm, change=torch.clone):
    return change(given) + norm(given)


class Unknown(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).exp()


@pytest.mark.parametrize(
    "network",
    [
        Odd(lambda convolution, norm, x: convolution(x) + norm(convolution(x))),
        Odd(lambda convolution, norm, x: norm(convolution(convolution(x)))),
        Odd(lambda convolution, norm, x: shared(convolution(x), norm)),
        Odd(lambda convolution, norm, x: shared(convolution(x), norm, torch.detach)),  # no graph shows it
        Odd(lambda convolution, norm, x: norm(convolution(x)) * norm.weight.mean()),
        Odd(lambda convolution, norm, x: norm(input=convolution(x))),
        nn.Sequential(nn.Conv2d(3, 4, 3), Unknown(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_what_would_change_the_output_stays(network):
    network, windows = ready(trained(network)), torch.rand(1, 3, 16, 16)
    before = network(windows)
    network.prepare(3, (16, 16))
    assert batch_norms(network) == 1
    assert torch.equal(network(windows), before)


class Counting(nn.Sequential):
    """Counts the pixels it computes, and refuses windows below some size."""

    def __init__(self, least):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.least, self.pixels = least, []

    def forward(self, x):
        if min(x.shape[2:]) < self.least:
            raise KeyError("too small")
        self.pixels.append(x[0, 0].numel())
        return super().forward(x)


@pytest.mark.parametrize(("least", "pixels"), [(0, [512 * 640, 128**2, 128**2]), (256, [512 * 640] * 3)])
def test_preparing_computes_a_large_window_once_if_the_network_takes_smaller_ones(least, pixels):
    network = ready(trained(Counting(least)))
    network.prepare(3, (512, 640))
    assert network.module.pixels == pixels
    assert batch_norms(network) == 0


def depthwise():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, stride=2, groups=8),
        Conv2dSame(8, 8, 3, stride=2, groups=8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, stride=2, groups=4),
        nn.Conv2d(8, 8, (1, 5), padding=(0, 2), groups=8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8).requires_grad_(False),
    )


def test_only_slow_depthwise_convolutions_keep_to_float32_and_only_for_a_gradient():
    plain, kept, pixels = depthwise(), depthwise(), torch.rand(1, 8, 15, 15)
    keep_depthwise_exact(kept)
    keep_depthwise_exact(kept)  # done once
    assert plain.state_dict().keys() == kept.state_dict().keys()
    for number, layer in enumerate(kept):
        given = pixels[:, : layer.in_channels]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(given)
            with torch.no_grad():
                assert torch.equal(layer(given), plain[number](given))
        exact = torch.equal(output, plain[number](given))
        assert exact == (number in (1, 2, 5))
        assert output.dtype == (torch.float32 if exact else torch.bfloat16)


def test_a_network_whose_depthwise_convolutions_are_exact_has_the_same_gradients_and_can_be_sent():
    pixels, kept = torch.rand(2, 3, 32, 32), depthwise()
    keep_depthwise_exact(kept)
    sent, plain = pickle.loads(cloudpickle.dumps(ready(kept))), depthwise()  # noqa: S301  # our own
    assert torch.equal(sent(pixels), ready(plain)(pixels))
    for network in (kept, plain):
        network(pixels).square().sum().backward()
    for a, b in zip(kept.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) if a.requires_grad else a.grad is b.grad is None
