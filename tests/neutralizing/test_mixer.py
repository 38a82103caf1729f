"""The mixer of slices in front of networks whose stems cannot be rewritten."""

import copy
import io
import pickle

import planted
import pytest
import torch
from torch import nn

from evenslice._core.errors import ModelError
from evenslice.neutralizing.neutralization import neutralize, untie
from evenslice.neutralizing.record import record_of
from evenslice.neutralizing.rewriting import MIXER
from evenslice.neutralizing.ties import is_tied


class Luma(nn.Module):
    """Mixes its three channels by fixed numbers before the stem."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.tensor([[0.3, 0.6, 0.1], [-0.2, -0.3, 0.5], [0.5, -0.4, -0.1]]))
        self.stem = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, pixels):
        red, green, blue = pixels.unbind(1)
        return self.stem(
            torch.stack([torch.stack([red, green, blue], -1) @ row for row in self.weights], 1)
        ).relu()


BUILDS = [Luma, planted.HardCoded, planted.conv_norm, planted.SecondRead, planted.Interleaved]


@torch.no_grad()
def run(model, image):
    return model(image)


def test_parts_that_a_chain_repeats_keep_their_places():
    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), relu, nn.Dropout2d(), nn.Conv2d(4, 4, 3), relu, nn.Conv2d(4, 2, 1)
    ).eval()
    order, gray = list(model._modules), torch.rand(1, 1, 16, 16)
    before = run(model, gray.expand(-1, 3, -1, -1))
    neutralize(model, 5, strategy="mixer", mean=0.0, std=1.0)
    assert list(model._modules) == [MIXER, *order]
    torch.testing.assert_close(run(model, gray.expand(-1, 5, -1, -1)), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("slices", [1, 3, 5, 7])
def test_the_mixer_starts_fair_and_keeps_gray_up_to_the_border(build, slices):
    model = build()
    gray = torch.rand(1, 1, 16, 16)
    mean, std = (torch.tensor(values)[:, None, None] for values in planted.IMAGENET.values())
    before = run(model, (gray - mean) / std)
    record = neutralize(model, slices, strategy="mixer", **planted.IMAGENET)
    assert (record.strategy, record.stems) == ("mixer", ("slice_mixer",))
    after = run(model, ((gray - record.mean) / record.std).expand(-1, slices, -1, -1))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    window = torch.rand(1, slices, 16, 16)
    shuffled = window[:, torch.randperm(slices)]
    torch.testing.assert_close(run(model, shuffled), run(model, window), rtol=1e-4, atol=1e-5)
    assert max(record.mirror_error, record.permutation_error, record.gray_error) <= 1e-5
    (kernels,) = record.kernels
    assert (kernels.before.shape, kernels.after.shape) == ((3, 3, 1, 1), (3, slices, 1, 1))
    torch.testing.assert_close(torch.tensor(kernels.before).sum(1), torch.tensor(kernels.after).sum(1))


def test_the_start_by_hand():
    model = planted.conv_bias()
    neutralize(model, 3, strategy="mixer", mean=[0.2, 0.4, 0.6], std=[0.1, 0.2, 0.3])
    mixer = model.slice_mixer
    by_hand = torch.tensor([2.0, 1.0, 2 / 3])[:, None].expand(3, 3) / 3
    torch.testing.assert_close(mixer.weight.detach()[..., 0, 0], by_hand)
    torch.testing.assert_close(mixer.bias.detach(), torch.tensor([2.0, 0.0, -2 / 3]))


@pytest.mark.parametrize("slices", [3, 5])
def test_what_cannot_be_rewritten_says_that_the_mixer_would_help(slices):
    model = Luma()
    with pytest.raises(ModelError, match="strategy='mixer' leaves the layer alone"):
        neutralize(model, slices)
    assert neutralize(model, slices, strategy="mixer").permutation_error <= 1e-5


@pytest.mark.parametrize("build", [Luma, planted.conv_norm])
@pytest.mark.parametrize("tie", ["mirror", "uniform"])
def test_the_mixer_can_be_tied(build, tie):
    model = build()
    neutralize(model, 5, strategy="mixer", tie=tie)
    assert is_tied(model.slice_mixer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        loss = model(torch.rand(2, 5, 16, 16)[:, [0, 0, 1, 2, 3]]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    window = torch.rand(1, 5, 16, 16)
    other = window.flip(1) if tie == "mirror" else window.roll(2, dims=1)
    before = run(model, window)
    torch.testing.assert_close(run(model, other), before, rtol=1e-4, atol=1e-5)
    untie(model)
    assert not is_tied(model.slice_mixer)
    torch.testing.assert_close(run(model, window), before)


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), by_torch])  # noqa: S301
@pytest.mark.parametrize("tie", [None, "mirror"])
def test_a_mixed_network_can_be_copied(copied, tie):
    model = Luma()
    neutralize(model, 5, strategy="mixer", tie=tie)
    twin = copied(model)
    window = torch.rand(1, 5, 16, 16)
    with torch.no_grad():
        model.slice_mixer.get_parameter("bias").add_(1)
        assert not torch.equal(twin(window), model(window))  # each has a mixer of its own
        model.slice_mixer.get_parameter("bias").sub_(1)
    torch.testing.assert_close(run(twin, window), run(model, window))
    assert record_of(twin) == record_of(model)


def test_images_by_name_and_in_lists():
    model = Luma()
    neutralize(model, 5, strategy="mixer")
    window = torch.rand(2, 5, 16, 16)
    assert torch.equal(run(model, window), model(pixels=window).detach())

    class Listing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Luma()

        def forward(self, images, targets=None):
            assert targets is None or len(targets) == len(images)
            return self.body(images if isinstance(images, torch.Tensor) else torch.stack(images))

    listing = Listing()
    neutralize(listing, 5, strategy="mixer")
    torch.testing.assert_close(listing(list(window), targets=[{}, {}]), listing(window))
    with pytest.raises(ModelError, match="no image among the inputs"):
        model(pixels=None)


@pytest.mark.parametrize("strategy", ["mixer", "uniform", "center", "mirror"])
def test_a_mixed_network_once_more(strategy):
    model = Luma()
    first = neutralize(model, 5, strategy="mixer", **planted.IMAGENET)
    gray = torch.rand(1, 1, 16, 16)
    before = run(model, gray.expand(-1, 5, -1, -1))
    second = neutralize(model, 7, strategy=strategy)
    assert second.stems == ("slice_mixer",)
    assert (second.mean, second.std, second.strategy) == (first.mean, first.std, strategy)
    assert [name for name, _ in model.named_children()].count("slice_mixer") == 1
    torch.testing.assert_close(run(model, gray.expand(-1, 7, -1, -1)), before, rtol=1e-4, atol=1e-5)


def test_csatv2():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = planted.unequal(timm.create_model("csatv2", num_classes=3))
    with pytest.raises(ModelError, match="strategy='mixer'"):
        neutralize(model, 3, size=(64, 64))
    record = neutralize(model, 5, strategy="mixer", size=(64, 64))
    assert max(record.permutation_error, record.gray_error) <= 1e-5
