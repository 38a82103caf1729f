"""The layers that read the image first, and what stands between the image and them and treats the channels unlike."""

import copy
from types import SimpleNamespace

import planted
import pytest
import torch
from planted import Wired, assert_symmetric, run, windows
from torch import nn

from evenslice import ModelError, neutralize
from evenslice.neutralizing import STRATEGIES
from evenslice.neutralizing.stems import interior, probe
from evenslice.neutralizing.running import exact_evaluation
from evenslice.neutralizing.stems import find_stems

MEAN, STD = ([0.3, 0.5, 0.7], [0.1, 0.2, 0.4])
SCALING = {"mean": MEAN, "std": STD}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (planted.conv_bias(), ["0"]),
        (planted.conv_norm().requires_grad_(False), ["0"]),
        (planted.focus(), ["1"]),
        (planted.Interleaved(), ["embed"]),
        (planted.TwoStems(), ["fine", "coarse"]),  # in the order in which they read
        (planted.Normalizing(planted.conv_norm()), ["model.0"]),
        (nn.Conv2d(3, 2, 3), [""]),
    ],
)
def test_stems_are_the_layers_that_read_the_image(model, expected):
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    found = find_stems(model)
    assert [stem.name for stem in found.items] == expected
    assert (found.channels, found.size) == (3, (64, 64))
    assert all(stem.module is model.get_submodule(stem.name) for stem in found.items)
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen


def test_tracing_leaves_nothing_behind():
    model = planted.conv_norm()
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    probe(model, find_stems(model), 5)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_number_of_channels_and_size():
    assert find_stems(nn.Conv2d(5, 2, 3)).channels == 5
    assert find_stems(nn.Conv2d(5, 2, 3), size=(20, 30)).size == (20, 30)
    assert find_stems(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AvgPool2d(100))).size == (224, 224)


def test_layouts():
    def layouts(model, channels):
        return probe(model, find_stems(model), channels)

    assert layouts(planted.focus(), 5)[0].index[:, 1].tolist() == [4, 5, 6, 7]
    assert layouts(planted.Interleaved(), 5)[0].index.tolist() == torch.arange(80).reshape(16, 5).tolist()
    for layout in layouts(planted.TwoStems(), 7):
        assert layout.index.tolist() == [list(range(7))]
        assert layout.is_bare
    in_place = Wired(lambda m, x: m.conv(x.mul_(2)), conv=nn.Conv2d(3, 2, 3))
    assert layouts(in_place, 3)[0].scale.tolist() == [[2, 2, 2]]
    (scaled,) = layouts(planted.Normalizing(planted.conv_norm()), 3)
    mean, std = (torch.tensor(values).double() for values in planted.IMAGENET.values())
    torch.testing.assert_close(scaled.scale[0], 1 / std, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scaled.shift[0], -mean / std, rtol=1e-6, atol=1e-6)


def test_padding_on_the_way_is_outside():
    model = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 0)), nn.Conv2d(3, 2, 1))
    found = find_stems(model, size=(4, 4))
    inside = interior(found.items[0], probe(model, found, 3)[0])
    assert inside[0, 0].int().tolist() == [[1, 1, 1, 1, 0, 0]] * 4


def conv(path, features=3):
    return Wired(lambda m, x: m.conv(path(x)), conv=nn.Conv2d(features, 2, 1))


@pytest.mark.parametrize(
    ("model", "slices", "message"),
    [
        (
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 2, 3)),
            3,
            r"0 \(BatchNorm2d\) reads the image itself.*strategy='mixer'",
        ),
        (
            nn.Sequential(
                Wired(lambda m, x: x * m.gain, gain=nn.Parameter(torch.ones(3, 1, 1))), nn.Conv2d(3, 2, 3)
            ),
            3,
            r"0 \(Wired\) reads the image itself.*strategy='mixer'",
        ),
        (nn.Sequential(nn.ReLU()), 3, "no layer of this Sequential reads the image first"),
        (
            nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(5, 2)),
            3,
            "refuses images of 3 channels at 64x64, 224x",
        ),
        (conv(lambda x: x.mean(1, keepdim=True), 1), 3, "no channel or several channels enter"),
        (conv(lambda x: x - x.mean((2, 3), keepdim=True)), 3, "no channel or several channels enter"),
        (conv(lambda x: x[:, [0, 1, 2]]), 5, "gets 1/1/1/0/0 features"),
        (conv(lambda x: x * torch.ones(3, 1, 1)), 5, r"conv \(Conv2d\) does not take 5 channels"),
        (conv(lambda x: x.flip(0)[len(x) > 2 :]), 3, "mixes images"),
    ],
)
def test_networks_whose_stems_cannot_be_rewritten(model, slices, message):
    with pytest.raises(ModelError, match=message) as caught:
        neutralize(model, slices)
    assert "\n" not in str(caught.value)


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


# What treats the channels unlike


class ByLists(nn.Module):
    """Normalises by lists of numbers, and says how many channels it wants, itself and in its configuration."""

    def __init__(self, padding=0):
        super().__init__()
        self.mean, self.std, self.num_channels = list(MEAN), tuple(STD), 3
        self.kernels = [1.0, 2.0, 3.0]  # which serve for nothing
        self.config = SimpleNamespace(num_channels=3, hidden=3)
        self.model = planted.conv_norm(padding)

    def forward(self, x):
        if x.shape[1] not in {self.num_channels} & {self.config.num_channels}:
            raise ValueError("other channels")
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self.model((x - mean) / std)


class ByTensor(nn.Module):
    """Normalises by a tensor that is no buffer, over a batch of images one by one."""

    def __init__(self, padding=0):
        super().__init__()
        self.scale = torch.tensor(STD)
        self.model = planted.conv_bias(padding)

    def forward(self, x):
        return self.model(torch.stack([image * self.scale[:, None, None] for image in x]))


def buffers(padding=0):
    return planted.Normalizing(planted.conv_norm(padding))


def batch_norm(padding=0):
    return planted.unequal(nn.Sequential(nn.BatchNorm2d(3), *planted.conv_norm(padding)))


def frozen(padding=0):
    from torchvision.ops import FrozenBatchNorm2d

    norm = FrozenBatchNorm2d(3)
    norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    return planted.unequal(nn.Sequential(norm, *planted.conv_alone(padding)))


BUILDS = [ByLists, ByTensor, buffers, batch_norm, frozen]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("slices", [1, 3, 5])
def test_a_gray_image_gets_the_response_it_got(build, slices, padding):
    model, gray = build(padding), torch.rand(2, 1, 20, 24)
    before = run(model, gray.expand(-1, 3, -1, -1))
    record = neutralize(model, slices)
    if not padding:  # else everywhere but at the border
        torch.testing.assert_close(run(model, gray.expand(-1, slices, -1, -1)), before, rtol=1e-4, atol=1e-5)
    assert_symmetric(model, windows(slices, size=20), torch.randperm(slices))
    assert record.gray_error <= 1e-5
    assert (record.mean, record.std) == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("build", [*BUILDS, planted.conv_alone, planted.TwoStems])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_after_an_error_everything_is_back(build, strategy, monkeypatch):
    """Modules, values, which objects they are, attributes, modes, hooks, and torch's random numbers."""
    monkeypatch.setattr(
        "evenslice.neutralizing.verification.check_promises", lambda *_: ModelError("at the end")
    )
    model, message = (
        build().train(),
        "at the end" if (build, strategy) != (planted.TwoStems, "twin") else "no act",
    )
    twin, modules = copy.deepcopy(model), list(model.modules())
    objects, random = {name: id(value) for name, value in model.named_parameters()}, torch.get_rng_state()
    with pytest.raises(ModelError, match=message):
        neutralize(model, 5, strategy=strategy, tie=None if strategy == "twin" else "mirror", **SCALING)
    assert list(model.modules()) == modules
    assert {name: id(value) for name, value in model.named_parameters()} == objects
    assert [repr(vars(m)) for m in model.modules()] == [repr(vars(m)) for m in twin.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(run(model, windows()), run(twin, windows()))


def test_constants_become_their_average_and_others_stay():
    model = ByLists()
    neutralize(model, 5)
    assert model.mean == pytest.approx([0.5] * 5)
    assert model.std == pytest.approx((0.7 / 3,) * 5)
    assert (model.num_channels, model.config.num_channels, model.config.hidden) == (5, 5, 3)
    assert model.kernels == [1.0, 2.0, 3.0]
    assert model.model[0].in_channels == 5


def test_a_batch_norm_on_the_image_goes():
    model = batch_norm()
    assert neutralize(model, 5).stems == ("1",)
    assert isinstance(model[0], nn.Identity)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["uniform", "mixer"])
@pytest.mark.parametrize("slices", [3, 5])
def test_torchvision_detectors(strategy, slices):
    from torchvision.models import get_model

    torch.manual_seed(0)
    sizes = {"weights": None, "weights_backbone": None, "min_size": 64, "max_size": 64}
    model = planted.unequal(get_model("fasterrcnn_mobilenet_v3_large_320_fpn", **sizes))
    gray = torch.rand(1, 64, 64)

    def stem(image):
        layer = model.backbone.body["0"]  # a convolution and a batch norm
        return layer[1](layer[0](model.transform([image])[0].tensors)).detach()

    before = stem(gray.expand(3, -1, -1))
    record = neutralize(model, slices, strategy=strategy, size=(64, 64))
    assert max(record.permutation_error, record.gray_error) <= 1e-5
    if strategy == "uniform":
        assert model.transform.image_mean == pytest.approx([0.449] * slices)
        assert model.transform.image_std == pytest.approx([0.226] * slices)
        after = stem(gray.expand(slices, -1, -1))
        inside = (..., slice(1, None), slice(1, None))  # a stride of 2, and padding by 1
        torch.testing.assert_close(after[inside], before[inside], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        (found,) = model([torch.rand(slices, 50, 60)])
    assert set(found) == {"boxes", "labels", "scores"}
