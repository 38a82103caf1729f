"""Convolutions that keep to float32 where their gradient would be slow, or wrong, in bfloat16."""

import pickle

import cloudpickle
import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from evenslice.networks import keep_convolutions_exact


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
    keep_convolutions_exact(kept)
    keep_convolutions_exact(kept)  # done once
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
    keep_convolutions_exact(kept)
    sent, plain = pickle.loads(cloudpickle.dumps(kept)), depthwise()  # noqa: S301  # our own
    assert torch.equal(sent(pixels), plain(pixels))
    for network in (kept, plain):
        network(pixels).square().sum().backward()
    for a, b in zip(kept.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) if a.requires_grad else a.grad is b.grad is None


@pytest.mark.parametrize(("side", "stride"), [((1, 1), 2), ((8, 1), 4), ((2, 2), 4)])
def test_gradients_of_images_smaller_than_kernel_or_stride_are_right(side, stride):
    network, pixels = nn.Sequential(nn.Conv2d(64, 64, 3, stride=stride, padding=1)), torch.randn(2, 64, *side)
    network(pixels).square().sum().backward()
    expected = network[0].weight.grad.clone()
    keep_convolutions_exact(network)
    for _ in range(5):  # of memory that is not initialized, some may happen to be 0
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(pixels)
        output.square().sum().backward()
        assert torch.allclose(
            network[0].weight.grad, expected, rtol=0.05, atol=0.05 * float(expected.abs().max())
        )
