from types import SimpleNamespace

import planted
import pytest
import torch
from torch import nn

from evenslice._core.errors import ModelError
from evenslice.networks.running import exact_evaluation
from evenslice.neutralizing.input_path import interior, probe
from evenslice.neutralizing.stems import find_stems


class Scaled(nn.Module):
    """A learned scaling by channel."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        return x * self.gain


def names(model, **options):
    return [stem.name for stem in find_stems(model, **options).items]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (planted.conv_bias(), ["0"]),
        (planted.focus(), ["1"]),
        (planted.Interleaved(), ["embed"]),
        (planted.TwoStems(), ["fine", "coarse"]),  # in the order in which they read
        (planted.Normalizing(planted.conv_norm()), ["model.0"]),
        (nn.Conv2d(3, 2, 3), [""]),
    ],
)
def test_stems_are_the_layers_that_read_the_image(model, expected):
    found = find_stems(model)
    assert [stem.name for stem in found.items] == expected
    assert (found.channels, found.size) == (3, (64, 64))
    assert all(stem.module is model.get_submodule(stem.name) for stem in found.items)


def test_a_frozen_network_is_traced_and_stays_frozen():
    model = planted.conv_norm().requires_grad_(False)
    assert names(model) == ["0"]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_tracing_leaves_nothing_behind():
    model = planted.conv_norm()
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    probe(model, find_stems(model), 5)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_that_changes_its_input_in_place():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.conv(x.mul_(2))

    model = InPlace()
    assert probe(model, find_stems(model), 3)[0].scale.tolist() == [[2, 2, 2]]


def test_the_batch_norm_behind_a_stem():
    from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
    from torchvision.ops import FrozenBatchNorm2d

    for norm in (nn.BatchNorm2d(4), BatchNormAct2d(4), FrozenBatchNorm2d(4), FrozenBatchNormAct2d(4)):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm)
        assert find_stems(model).items[0].norm is norm
    assert find_stems(planted.SharedOutput()).items[0].norm is None
    assert find_stems(planted.conv_alone()).items[0].norm is None


def test_number_of_channels_and_size():
    assert find_stems(nn.Conv2d(5, 2, 3)).channels == 5
    assert find_stems(nn.Conv2d(5, 2, 3), size=(20, 30)).size == (20, 30)
    assert find_stems(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AvgPool2d(100))).size == (224, 224)


def test_layouts():
    channel_major = planted.focus()
    assert probe(channel_major, find_stems(channel_major), 5)[0].index[:, 1].tolist() == [4, 5, 6, 7]
    interleaved = planted.Interleaved()
    layout = probe(interleaved, find_stems(interleaved), 5)[0]
    assert layout.index.tolist() == torch.arange(80).reshape(16, 5).tolist()
    two = planted.TwoStems()
    for layout in probe(two, find_stems(two), 7):
        assert layout.index.tolist() == [list(range(7))]
        assert layout.scale.eq(1).all()
        assert layout.shift.eq(0).all()


def test_a_fixed_scaling_is_exposed():
    model = planted.Normalizing(planted.conv_norm())
    layout = probe(model, find_stems(model), 3)[0]
    mean, std = (torch.tensor(values).double() for values in planted.IMAGENET.values())
    torch.testing.assert_close(layout.scale[0], 1 / std, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layout.shift[0], -mean / std, rtol=1e-6, atol=1e-6)


def test_padding_on_the_way_is_outside():
    model = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 0)), nn.Conv2d(3, 2, 1))
    found = find_stems(model, size=(4, 4))
    inside = interior(found.items[0], probe(model, found, 3)[0])
    assert inside[0, 0].int().tolist() == [[1, 1, 1, 1, 0, 0]] * 4


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 2, 3)),
            r"0 \(BatchNorm2d\) reads the image itself.*strategy='mixer'",
        ),
        (
            nn.Sequential(Scaled(), nn.Conv2d(3, 2, 3)),
            r"0 \(Scaled\) reads the image itself.*strategy='mixer'",
        ),
        (nn.Sequential(nn.ReLU()), "no layer of this Sequential reads the image first"),
        (
            nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(5, 2)),
            "refuses images of 3 channels at 64x64, 224x",
        ),
    ],
)
def test_networks_that_cannot_be_neutralized(model, message):
    with pytest.raises(ModelError, match=message) as caught:
        find_stems(model)
    assert "\n" not in str(caught.value)


class Way(nn.Module):
    """Some parameter-free way to a stem."""

    def __init__(self, way, features):
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(features, 2, 1)

    def forward(self, x):
        return self.conv(self.way(x))


@pytest.mark.parametrize(
    ("way", "features", "channels", "message"),
    [
        (lambda x: x.mean(1, keepdim=True), 1, 3, "no channel or several channels enter"),
        (lambda x: x - x.mean((2, 3), keepdim=True), 3, 3, "no channel or several channels enter"),
        (lambda x: x[:, [0, 1, 2]], 3, 5, "gets 1/1/1/0/0 features"),
        (lambda x: x * torch.ones(3, 1, 1), 3, 5, r"conv \(Conv2d\) does not take 5 channels"),
        (lambda x: x.flip(0)[1:], 3, 3, "mixes images"),
    ],
)
def test_ways_to_a_stem_that_are_refused(way, features, channels, message):
    model = Way(way, features)
    if message == "mixes images":
        model.way = lambda x: x
    found = find_stems(model)
    model.way = way
    with pytest.raises(ModelError, match=message):
        probe(model, found, channels)


def test_what_a_network_on_an_apple_gpu_draws_is_restored(monkeypatch):
    class Elsewhere(nn.Module):
        def parameters(self):
            yield SimpleNamespace(device=torch.device("mps"), is_meta=False)

    states = [5]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    with exact_evaluation(Elsewhere()):
        states.append(6)
    assert states == [5, 6, 5]
