"""Tied kernels, and the mixer of slices in front of networks whose stems cannot be rewritten."""

import copy

import planted
import pytest
import torch
from hypothesis import given, settings, strategies as st
from planted import IMAGENET, STRATEGIES, Wired, assert_symmetric, by_pickle, difference, run, windows
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evenslice import ModelError, neutralize, record_of, untie

BUILDS = [
    lambda: planted.Normalizing(planted.conv_bias()),
    planted.conv_norm,
    planted.focus,
    planted.Interleaved,
    planted.TwoStems,
]


class Luma(nn.Module):
    """Mixes its three channels by fixed numbers before the stem."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.tensor([[0.3, 0.6, 0.1], [-0.2, -0.3, 0.5], [0.5, -0.4, -0.1]]))
        self.stem = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, pixels):
        red, green, blue = pixels.unbind(1)
        mixed = [torch.stack([red, green, blue], -1) @ row for row in self.weights]
        return self.stem(torch.stack(mixed, 1)).relu()


def train(model, steps=20, slices=5):
    """Fit the first slice of the window, which pulls the kernels apart as far as they let themselves be pulled."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    model.train()
    for step in range(steps):
        images = windows(slices, 4, 16, seed=step)
        output = model(images)
        loss = (output.reshape(4, -1).mean(1) - images[:, 0].mean((1, 2)) * 5).square().mean() + output.std()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return optimizer


def is_tied(model):
    return any("evenslice_tied" in key for key in model.state_dict())


def orders(tie, slices=5):
    return (range(slices - 1, -1, -1),) if tie == "mirror" else ([2, 0, 1, *range(3, slices)],)


@pytest.mark.parametrize(
    ("strategy", "tie"), [("mirror", "mirror"), ("uniform", "uniform"), ("mixer", "mirror")]
)
@pytest.mark.parametrize("build", [*BUILDS, Luma])
def test_a_tie_holds_through_training_and_untie_changes_nothing(build, strategy, tie):
    model = build()
    keys = list(model.state_dict())
    if build is Luma and strategy != "mixer":
        with pytest.raises(ModelError, match="strategy='mixer' leaves the layer alone"):
            neutralize(model, 5, strategy=strategy, tie=tie)
        return
    neutralize(model, 5, strategy=strategy, tie=tie, **IMAGENET)
    start = copy.deepcopy(model.state_dict())
    optimizer = train(model)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, start[key])}
    assert any("original" in key for key in moved)
    images = windows(5)
    assert_symmetric(model, images, *orders(tie))
    before = run(model, images)
    with pytest.raises(ModelError, match=r"evenslice\.untie"):
        neutralize(model, 3)
    untie(model)
    assert (run(model, images) - before).abs().max() <= 1e-6
    assert record_of(model).tie is None
    assert [key for key in model.state_dict() if "slice_mixer" not in key] == keys
    learned = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert {id(parameter) for parameter in model.parameters()} == learned  # an optimizer goes on
    assert neutralize(model, 3).tie is None


def test_without_a_tie_the_symmetry_drifts():
    model = planted.conv_bias()
    neutralize(model, 5)
    train(model)
    assert difference(run(model, windows(5)), run(model, windows(5).flip(1))) > 1e-3


ASYMMETRIC = ("pretrained", "shuffle", "equalize", "reinit", "random")


@pytest.mark.slow
@settings(max_examples=30)
@given(st.sampled_from(BUILDS), st.sampled_from(STRATEGIES), st.sampled_from([1, 3, 5, 7]))
def test_a_tie_makes_any_strategy_symmetric(build, strategy, slices):
    for tie in ("mirror", "uniform") if strategy in (*ASYMMETRIC, "uniform", "mixer") else ("mirror",):
        if strategy == "twin":  # which needs none
            return
        record = neutralize(build(), slices, strategy=strategy, tie=tie)
        assert (record.mirror_error if tie == "mirror" else record.permutation_error) <= 1e-5
        assert record.tie == tie


def test_mirror_tie_at_three_slices_by_hand():
    model = planted.conv_bias()
    red, green, blue = model[0].weight.detach().clone().unbind(1)
    neutralize(model, 3, strategy="pretrained", tie="mirror")
    side = (red + blue) / 2
    torch.testing.assert_close(model[0].weight.detach(), torch.stack([side, green, side], dim=1))


@pytest.mark.parametrize(
    ("build", "strategy", "tie"),
    [(planted.conv_norm, "uniform", "mirror"), (Luma, "mixer", None), (Luma, "mixer", "mirror")],
)
def test_a_tied_or_mixed_network_can_be_copied(build, strategy, tie):
    model = build()
    neutralize(model, 5, strategy=strategy, tie=tie)
    twin, images = (copy.deepcopy if tie else by_pickle)(model), windows(5)
    assert torch.equal(run(twin, images), run(model, images))
    assert list(twin.state_dict()) == list(model.state_dict())
    assert record_of(twin) == record_of(model)
    train(twin)  # each has weights of its own
    assert not torch.equal(run(twin, images), run(model, images))
    if tie is not None:
        assert_symmetric(twin, images)
        untie(twin)
        assert not is_tied(twin)
        assert is_tied(copy.deepcopy(model))
        assert_symmetric(model, images)


def test_a_state_dict_of_another_tie_is_refused():
    first, second = planted.conv_norm(), planted.conv_norm()
    neutralize(first, 5, tie="mirror")
    neutralize(second, 5, tie="uniform")
    with pytest.raises(RuntimeError, match=r"size mismatch for .*evenslice_tied"):
        second.load_state_dict(first.state_dict())


@pytest.mark.parametrize(("tie", "decay"), [("mirror", 0.9), ("uniform", 0.9995)])
def test_an_average_over_time_keeps_the_tie(tie, decay):
    """It averages buffers too, if asked to, and whole numbers come out one too low."""
    network = planted.conv_bias()
    neutralize(network, 5, strategy="pretrained", tie=tie, mean=0.5, std=0.5)
    average = AveragedModel(network, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for _ in range(20):
        average.update_parameters(network)
    torch.testing.assert_close(run(average, windows(5)), run(network, windows(5)), atol=1e-5, rtol=1e-5)
    assert not any(buffer.any() for buffer in network.buffers())


# The mixer


@pytest.mark.parametrize("build", [Luma, planted.HardCoded, planted.SecondRead, planted.Interleaved])
@pytest.mark.parametrize("slices", [1, 5])
def test_the_mixer_starts_fair_and_keeps_gray_up_to_the_border(build, slices):
    model, gray = build(), torch.rand(1, 1, 16, 16)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET.values())
    before = run(model, (gray - mean) / std)
    record = neutralize(model, slices, strategy="mixer", **IMAGENET)
    assert (record.strategy, record.stems) == ("mixer", ("slice_mixer",))
    after = run(model, ((gray - record.mean) / record.std).expand(-1, slices, -1, -1))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert_symmetric(model, windows(slices, size=16), torch.randperm(slices))
    assert max(record.mirror_error, record.permutation_error, record.gray_error) <= 1e-5
    (kernels,) = record.kernels
    assert (kernels.before.shape, kernels.after.shape) == ((3, 3, 1, 1), (3, slices, 1, 1))
    torch.testing.assert_close(torch.tensor(kernels.before).sum(1), torch.tensor(kernels.after).sum(1))


def test_the_mixer_by_hand():
    model = planted.conv_bias()
    neutralize(model, 3, strategy="mixer", mean=[0.2, 0.4, 0.6], std=[0.1, 0.2, 0.3])
    by_hand = torch.tensor([2.0, 1.0, 2 / 3])[:, None].expand(3, 3) / 3
    torch.testing.assert_close(model.slice_mixer.weight.detach()[..., 0, 0], by_hand)
    torch.testing.assert_close(model.slice_mixer.bias.detach(), torch.tensor([2.0, 0.0, -2 / 3]))


def test_images_by_name_and_in_lists():
    model, images = Luma(), windows(5)
    neutralize(model, 5, strategy="mixer")
    assert torch.equal(run(model, images), model(pixels=images).detach())
    listing = Wired(lambda m, x: m.body(x if isinstance(x, torch.Tensor) else torch.stack(x)), body=Luma())
    neutralize(listing, 5, strategy="mixer")
    torch.testing.assert_close(listing(list(images)), listing(images))
    with pytest.raises(ModelError, match="no image among the inputs"):
        model(pixels=None)


@pytest.mark.parametrize("strategy", ["mixer", "uniform", "center", "mirror"])
def test_a_mixed_network_once_more(strategy):
    model, gray = Luma(), torch.rand(1, 1, 16, 16)
    first = neutralize(model, 5, strategy="mixer", **IMAGENET)
    before = run(model, gray.expand(-1, 5, -1, -1))
    second = neutralize(model, 7, strategy=strategy)
    assert second.stems == ("slice_mixer",)
    assert (second.mean, second.std, second.strategy) == (first.mean, first.std, strategy)
    assert [name for name, _ in model.named_children()].count("slice_mixer") == 1
    torch.testing.assert_close(run(model, gray.expand(-1, 7, -1, -1)), before, rtol=1e-4, atol=1e-5)
