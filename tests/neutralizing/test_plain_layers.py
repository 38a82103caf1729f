"""Layers that compute their weight, and grouped ones, become plain layers that do the same."""

import copy

import planted
import pytest
import torch
from planted import Wired, assert_symmetric, run, windows
from timm import layers as timm_layers
from torch import nn
from torch.nn.utils import parametrizations

from evenslice import ModelError, neutralize, untie


def old_weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return torch.nn.utils.weight_norm(layer)


def shifted(layer):
    """A parametrization that is not linear."""

    class Shift(nn.Module):
        def forward(self, weight):
            return weight.tanh() + 0.1

    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Shift())
    return layer


COMPUTED = {
    "StdConv2d": lambda: timm_layers.StdConv2d(3, 6, 3, stride=2, bias=True),
    "StdConv2dSame": lambda: timm_layers.StdConv2dSame(3, 6, 3, stride=2),
    "ScaledStdConv2dSame": lambda: timm_layers.ScaledStdConv2dSame(3, 6, (5, 3), stride=(2, 3), gamma=1.7),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 6, 3, padding=1)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 6, 3, padding="same")),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(3, 6, 3, dilation=2)),
    "old weight_norm": lambda: old_weight_norm(nn.Conv2d(3, 6, 3, stride=2, padding=(1, 0))),
    "own": lambda: shifted(nn.Conv2d(3, 6, 3, bias=False)),
    "reflecting": lambda: shifted(nn.Conv2d(3, 6, 3, padding=2, padding_mode="reflect")),
    "depthwise": lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3),
    "depthwise, same": lambda: timm_layers.Conv2dSame(3, 6, 3, stride=2, groups=3),
}


@pytest.fixture(params=COMPUTED)
def computed(request):
    return COMPUTED[request.param]().eval()


def network(layer):
    torch.manual_seed(0)
    return planted.unequal(nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)))


def test_a_plain_layer_does_the_same_at_every_size(computed):
    """With the strategy "pretrained" for three slices on one scale, nothing else changes."""
    model = nn.Sequential(computed)
    neutralize(model, strategy="pretrained", mean=0, std=1, size=(9, 12))
    assert isinstance(model[0], nn.Conv2d)
    assert model[0].groups == 1
    for size in ((9, 12), (10, 7), (16, 16)):
        image = torch.randn(2, 3, *size)
        torch.testing.assert_close(run(model, image), run(computed, image), rtol=1e-5, atol=1e-5)


def test_linear_layers():
    embed = parametrizations.weight_norm(nn.Linear(3, 2)).requires_grad_(False)
    weight = embed.weight.clone()
    model = Wired(lambda m, x: m.embed(x.movedim(1, -1)).movedim(-1, 1), embed=embed)
    neutralize(model, strategy="pretrained", mean=0, std=1, size=(4, 4))
    assert type(model.embed) is nn.Linear
    assert not model.embed.weight.requires_grad
    torch.testing.assert_close(model.embed.weight, weight)


class Twice(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + super().forward(x.flip(-1))


class Bent(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight * 2, self.bias).sin()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network(Twice(3, 6, 3)), r"0 \(Twice\).*does something else.*strategy='mixer'"),
        (network(Bent(3, 6, 3)), r"0 \(Bent\).*does something else"),
        (nn.Sequential(nn.PReLU(3), nn.Conv2d(3, 6, 3)), r"0 \(PReLU\).*does something else"),
        (timm_layers.StdConv2d(3, 6, 3), "is the network itself"),
    ],
)
def test_what_is_no_convolution(model, message):
    with pytest.raises(ModelError, match=message):
        neutralize(model)


@pytest.mark.parametrize("slices", [3, 5])
def test_a_gray_image_gets_the_response_it_got(computed, slices):
    model, gray = network(computed), torch.rand(1, 1, 32, 32)
    before = run(model, gray.expand(-1, 3, -1, -1))
    record = neutralize(model, slices)
    assert record.stems == ("0",)
    torch.testing.assert_close(run(model, gray.expand(-1, slices, -1, -1)), before, rtol=1e-4, atol=1e-5)
    assert_symmetric(model, windows(slices))
    assert max(record.permutation_error, record.gray_error) <= 1e-5


@pytest.mark.parametrize("strategy", ["uniform", "reinit"])
def test_every_strategy_ties_and_can_be_done_again(computed, strategy):
    model = network(computed)
    assert neutralize(model, 5, strategy=strategy, tie="mirror", **planted.IMAGENET).mirror_error <= 1e-5
    twin = copy.deepcopy(model)
    untie(twin)
    torch.testing.assert_close(run(twin, windows(5)), run(model, windows(5)))
    assert neutralize(twin, 3).slices == 3


def test_a_layer_in_two_places():
    model = Wired(lambda m, x: m.second(x), first=(layer := timm_layers.StdConv2d(3, 6, 3)), second=layer)
    neutralize(model, 5)
    assert type(model.first) is nn.Conv2d
    assert model.second is model.first


def test_a_hook_on_a_computed_stem_is_not_lost_where_it_changes_anything():
    """One that only watches is: the plain layer is another module."""
    model = network(parametrizations.weight_norm(nn.Conv2d(3, 6, 3)))
    stem, seen = model[0], []
    stem.register_forward_hook(lambda *_: seen.append(1))
    for register, hook in (
        (stem.register_forward_hook, lambda _module, _inputs, output: 2 * output),
        (stem.register_forward_pre_hook, lambda _module, inputs: (2 * inputs[0],)),
    ):
        handle = register(hook)
        with pytest.raises(ModelError, match="does something else with it than one convolution"):
            neutralize(model)
        handle.remove()
    assert model[0] is stem
    seen.clear()
    model(torch.rand(1, 3, 9, 9))
    assert seen == [1]
    neutralize(model)
    assert not model[0]._forward_hooks
