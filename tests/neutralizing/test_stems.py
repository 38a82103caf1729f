"""The layers that read the image first, and what stands between the image and them and treats the channels unlike."""

from types import SimpleNamespace

import planted
import pytest
import torch
from planted import Wired, assert_symmetric, run, unchanged, windows
from torch import nn

from evenslice import ModelError, neutralize

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
    assert neutralize(model).stems == tuple(expected)
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_number_of_channels_and_size():
    """A first layer of five inputs, images of one size, and pooling that a small image does not fill."""
    assert neutralize(nn.Conv2d(5, 2, 3)).kernels[0].before.shape[1] == 5
    sized = Wired(
        lambda m, x: m.head(m.stem(x).flatten(1)), stem=nn.Conv2d(3, 1, 3), head=nn.Linear(18 * 28, 2)
    )
    assert neutralize(sized, size=(20, 30)).stems == ("stem",)
    assert neutralize(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AvgPool2d(100))).stems == ("0",)


def test_a_border_that_is_padded_on_the_way_is_left_out():
    model = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 0)), nn.Conv2d(3, 2, 1))
    assert neutralize(model, size=(4, 4), **SCALING).gray_error <= 1e-5


def conv(path, features=3):
    return Wired(lambda m, x: m.conv(path(x)), conv=nn.Conv2d(features, 2, 1))


SCALE = Wired(lambda m, x: x * m.gain, gain=nn.Parameter(torch.ones(3, 1, 1)))


@pytest.mark.parametrize(
    ("model", "slices", "message"),
    [
        (
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 2, 3)),
            3,
            r"0 \(BatchNorm2d\) reads",
        ),
        (
            nn.Sequential(SCALE, nn.Conv2d(3, 2, 3)),
            3,
            r"0 \(Wired\) reads the image itself.*strategy='mixer'",
        ),
        (nn.Sequential(nn.ReLU()), 3, "no layer of this Sequential"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(5, 2)), 3, "3 channels at 64x64, 224x"),
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
@pytest.mark.parametrize("build", [ByLists, ByTensor, frozen, planted.TwoStems])
@pytest.mark.parametrize("strategy", ["uniform", "twin", "mixer", "random"])
def test_after_an_error_everything_is_back(build, strategy, monkeypatch):
    promises = "evenslice.neutralizing.verification.check_promises"
    monkeypatch.setattr(promises, lambda *_: ModelError("at the end"))
    model, tie = build().train(), None if strategy == "twin" else "mirror"
    message = "no act" if (build, strategy) == (planted.TwoStems, "twin") else "at the end"
    with unchanged(model), pytest.raises(ModelError, match=message):
        neutralize(model, 5, strategy=strategy, tie=tie, **SCALING)


def test_constants_become_their_average_others_stay_and_a_batch_norm_goes():
    model = ByLists()
    neutralize(model, 5)
    assert model.mean == pytest.approx([0.5] * 5)
    assert model.std == pytest.approx((0.7 / 3,) * 5)
    assert (model.num_channels, model.config.num_channels, model.config.hidden) == (5, 5, 3)
    assert model.kernels == [1.0, 2.0, 3.0]
    model = batch_norm()
    assert neutralize(model, 5).stems == ("1",)
    assert isinstance(model[0], nn.Identity)
