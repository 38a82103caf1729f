"""Depthwise convolutions that are strided, or large and trained, in float32, the rest in bfloat16."""

import copy
import pickle

import cloudpickle
import torch
from timm.layers import Conv2dSame
from torch import nn

from evenslice.inference.ready_networks import keep_depthwise_exact


def network():
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


def test_outputs_gradients_and_names_stay():
    plain, kept = network(), network()
    keep_depthwise_exact(kept)
    pixels = torch.rand(2, 3, 32, 32)
    outputs = [net(pixels) for net in (plain, kept)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) if a.requires_grad else a.grad is b.grad is None
    assert plain.state_dict().keys() == kept.state_dict().keys()


def test_only_slow_depthwise_convolutions_keep_to_float32():
    kept, pixels = network(), torch.rand(1, 8, 15, 15)
    keep_depthwise_exact(kept)
    for number, layer in enumerate(kept):
        given = pixels[:, : layer.in_channels]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(given)
        exact = torch.equal(output, layer(given))
        assert exact == (number in (1, 2, 5))
        assert output.dtype == (torch.float32 if exact else torch.bfloat16)
    assert kept[1](pixels.bfloat16()).dtype == torch.bfloat16


def test_without_a_gradient_all_run_in_bfloat16():
    plain, kept, pixels = network(), network(), torch.rand(1, 8, 15, 15)
    keep_depthwise_exact(kept)
    with torch.no_grad():
        for one, other in zip(plain, kept, strict=True):
            given = pixels[:, : one.in_channels]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(one(given), other(given))
            assert torch.equal(one(given), other(given))
        assert kept[1](pixels.bfloat16()).dtype == torch.bfloat16


def test_it_is_done_once_and_can_be_copied_and_sent():
    kept = network()
    keep_depthwise_exact(kept)
    kinds = [type(layer) for layer in kept]
    keep_depthwise_exact(kept)
    assert [type(layer) for layer in kept] == kinds
    pixels = torch.rand(1, 3, 32, 32)
    for other in (copy.deepcopy(kept), pickle.loads(cloudpickle.dumps(kept))):  # noqa: S301  # our own
        assert torch.equal(other(pixels), kept(pixels))
