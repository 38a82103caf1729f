"""What stands between the image and the stems, and treats the channels unlike."""

import copy

import planted
import pytest
import torch
from torch import nn

from evenslice._core.errors import ModelError
from evenslice.neutralizing.neutralization import neutralize
from evenslice.neutralizing.stems import find_stems

MEAN, STD = ([0.3, 0.5, 0.7], [0.1, 0.2, 0.4])


class ByLists(nn.Module):
    """Normalises by lists of numbers, and says how many channels it wants."""

    def __init__(self, padding=0):
        super().__init__()
        self.mean, self.std, self.num_channels = list(MEAN), tuple(STD), 3
        self.kernels = [1.0, 2.0, 3.0]  # which serve for nothing
        self.model = planted.conv_norm(padding)

    def forward(self, x):
        if x.shape[1] != self.num_channels:
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


@torch.no_grad()
def run(model, image):
    return model(image)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("slices", [1, 3, 5])
def test_without_padding_a_gray_image_gets_the_response_it_got_everywhere(build, slices):
    model = build()
    gray = torch.rand(2, 1, 20, 24)
    before = run(model, gray.expand(-1, 3, -1, -1))
    record = neutralize(model, slices)
    torch.testing.assert_close(run(model, gray.expand(-1, slices, -1, -1)), before, rtol=1e-4, atol=1e-5)
    window = torch.rand(1, slices, 20, 24)
    shuffled = window[:, torch.randperm(slices)]
    torch.testing.assert_close(run(model, shuffled), run(model, window), rtol=1e-4, atol=1e-5)
    assert record.gray_error <= 1e-5
    assert (record.mean, record.std) == (0.0, 1.0)


@pytest.mark.parametrize("build", BUILDS)
def test_with_padding_the_borders_are_symmetric_too(build):
    model = build(padding=1)
    record = neutralize(model, 5)
    window = torch.rand(1, 5, 20, 24)
    torch.testing.assert_close(run(model, window.flip(1)), run(model, window), rtol=1e-4, atol=1e-5)
    assert record.gray_error <= 1e-5


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("strategy", ["uniform", "twin", "mixer", "random"])
def test_after_an_error_everything_is_back(build, strategy, monkeypatch):
    def fail(*_):
        raise ModelError("at the end")

    monkeypatch.setattr("evenslice.neutralizing.neutralization.check_promises", fail)
    model = build()
    twin, modules = copy.deepcopy(model), list(model.modules())
    with pytest.raises(ModelError, match="at the end"):
        neutralize(model, 5, strategy=strategy)
    assert list(model.modules()) == modules
    assert [repr(vars(m)) for m in model.modules()] == [repr(vars(m)) for m in twin.modules()]
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(run(model, image), run(twin, image))


def test_constants_become_their_average_and_others_stay():
    model = ByLists()
    neutralize(model, 5)
    assert model.mean == pytest.approx([0.5] * 5)
    assert model.std == pytest.approx((0.7 / 3,) * 5)
    assert model.num_channels == 5
    assert model.kernels == [1.0, 2.0, 3.0]
    assert model.model[0].in_channels == 5


def test_a_batch_norm_on_the_image_goes():
    model = batch_norm()
    found = find_stems(model)
    assert (found.norms, [stem.name for stem in found.items]) == (("0",), ["1"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    neutralize(model, 5)
    assert isinstance(model[0], nn.Identity)


def test_configurations_that_state_the_number_of_channels():
    class Config:
        num_channels, hidden = 3, 3

        def __init__(self):
            self.num_channels, self.hidden = 3, 3

    class Configured(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = Config()
            self.model = planted.conv_bias()

        def forward(self, pixel_values):
            if pixel_values.shape[1] != self.config.num_channels:
                raise ValueError("the number of channels is not that of the configuration")
            return self.model(pixel_values)

    model = Configured()
    assert neutralize(model, 5).permutation_error <= 1e-5
    assert (model.config.num_channels, model.config.hidden) == (5, 3)


@pytest.mark.parametrize("strategy", ["uniform", "mixer"])
@pytest.mark.parametrize("slices", [3, 5])
def test_torchvision_detectors(strategy, slices):
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = planted.unequal(
        get_model(
            "fasterrcnn_mobilenet_v3_large_320_fpn",
            weights=None,
            weights_backbone=None,
            min_size=64,
            max_size=64,
        )
    )
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
        assert before.std() > 0.1
    with torch.no_grad():
        (found,) = model([torch.rand(slices, 50, 60)])
    assert set(found) == {"boxes", "labels", "scores"}
