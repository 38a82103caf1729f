import copy
import io
import pickle

import planted
import pytest
import torch
from hypothesis import given, settings, strategies as st
from planted import IMAGENET
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evenslice._core.errors import ModelError
from evenslice.neutralizing.neutralization import neutralize, untie
from evenslice.neutralizing.record import record_of
from evenslice.neutralizing.strategies import STRATEGIES, find_strategy
from evenslice.neutralizing.ties import is_tied

BUILDS = [planted.conv_bias, planted.conv_norm, planted.focus, planted.Interleaved, planted.TwoStems]


def error(model, window, other):
    with torch.no_grad():
        first, second = model(window), model(other)
    return ((first - second).abs().max() / first.abs().max()).item()


def train(model, steps=50, slices=5):
    """Fit the first slice of the window, which pulls the kernels apart as far as they let themselves be pulled."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        window = torch.rand(4, slices, 16, 16, generator=generator)
        output = model(window)
        target = window[:, :1].mean((2, 3), keepdim=True).expand(4, 1, 1, 1)
        loss = (output.reshape(4, -1).mean(1) - target.flatten() * 5).square().mean() + output.std()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return optimizer


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("tie", ["mirror", "uniform"])
def test_a_tie_holds_through_training_and_untie_changes_nothing(build, tie):
    model = build()
    neutralize(model, 5, strategy=tie, tie=tie, **IMAGENET)
    start = copy.deepcopy(model.state_dict())
    train(model)
    assert any(
        not torch.equal(value, start[key]) for key, value in model.state_dict().items() if "original" in key
    )
    window = torch.rand(2, 5, 32, 32)
    assert error(model, window, window.flip(1)) <= 1e-5
    if tie == "uniform":
        assert error(model, window, window[:, torch.randperm(5)]) <= 1e-5
    with torch.no_grad():
        before = model(window)
        untie(model)
        assert (model(window) - before).abs().max() <= 1e-6
    assert record_of(model).tie is None
    assert list(model.state_dict()) == list(build().state_dict())


def test_without_a_tie_the_symmetry_drifts():
    torch.manual_seed(0)
    model = planted.conv_bias()
    neutralize(model, 5)
    train(model)
    window = torch.rand(2, 5, 32, 32)
    assert error(model, window, window.flip(1)) > 1e-3


TIED = [
    (strategy, tie)
    for strategy in STRATEGIES
    for tie in ("mirror", "uniform")
    if strategy != "twin"  # which needs none
    and (
        tie == "mirror" or find_strategy(strategy, 3).symmetry != "mirror"
    )  # which would be another strategy
]


@settings(max_examples=30)
@given(st.sampled_from(BUILDS), st.sampled_from(TIED), st.sampled_from([1, 3, 5, 7]))
def test_a_tie_makes_any_strategy_symmetric(build, strategy_and_tie, slices):
    strategy, tie = strategy_and_tie
    model = build()
    record = neutralize(model, slices, strategy=strategy, tie=tie)
    assert record.mirror_error <= 1e-5
    assert tie == "mirror" or record.permutation_error <= 1e-5
    assert record.tie == tie


def test_a_tie_respects_a_fixed_scaling_on_the_way():
    model = planted.Normalizing(planted.conv_norm())
    record = neutralize(model, 3, tie="uniform", strategy="pretrained")
    assert record.permutation_error <= 1e-5
    assert record.gray_error <= 1e-4


def test_mirror_tie_at_three_slices_by_hand():
    model = planted.conv_bias()
    red, green, blue = model[0].weight.detach().clone().unbind(1)
    neutralize(model, 3, strategy="pretrained", tie="mirror")
    side = (red + blue) / 2
    torch.testing.assert_close(model[0].weight.detach(), torch.stack([side, green, side], dim=1))


def test_an_optimizer_goes_on_after_untie():
    model = planted.conv_bias()
    neutralize(model, 5, tie="mirror")
    optimizer = train(model)
    untie(model)
    assert any(parameter is model[0].weight for parameter in optimizer.param_groups[0]["params"])
    assert model[0].weight.requires_grad
    assert type(model[0]) is nn.Conv2d


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301  # our own


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch])
def test_a_tied_network_can_be_copied(copied):
    model = planted.conv_norm()
    neutralize(model, 5, tie="mirror")
    twin = copied(model)
    window = torch.rand(2, 5, 16, 16)
    with torch.no_grad():
        assert torch.equal(twin(window), model(window))
        assert list(twin.state_dict()) == list(model.state_dict())
        assert is_tied(twin[0])
    train(twin)
    assert error(twin, window, window.flip(1)) <= 1e-5
    assert is_tied(by_pickle(twin)[0])
    untie(twin)
    assert not is_tied(twin[0])
    assert is_tied(model[0])


def test_a_state_dict_of_another_tie_is_refused():
    first, second = planted.conv_norm(), planted.conv_norm()
    neutralize(first, 5, tie="mirror")
    neutralize(second, 5, tie="uniform")
    with pytest.raises(
        RuntimeError, match=r"size mismatch for 0\.parametrizations\.weight\.0\.evenslice_tied"
    ):
        second.load_state_dict(first.state_dict())
    untie(first)
    assert not any("evenslice" in key for key in first.state_dict())


def test_a_tied_network_has_to_be_untied_first():
    model = planted.conv_bias()
    neutralize(model, 5, tie="mirror")
    with pytest.raises(ModelError, match=r"evenslice\.untie"):
        neutralize(model, 3)
    untie(model)
    assert neutralize(model, 3).tie is None


@pytest.mark.parametrize("decay", [0.9, 0.9995])
@pytest.mark.parametrize("tie", ["mirror", "uniform"])
def test_an_average_over_time_keeps_the_tie(tie, decay):
    """It averages buffers too, if asked to, and whole numbers come out one too low."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    neutralize(network, 5, strategy="pretrained", tie=tie, mean=0.5, std=0.5)
    average = AveragedModel(network, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for _ in range(20):
        average.update_parameters(network)
    window = torch.rand(2, 5, 16, 16)
    assert torch.allclose(average(window), network(window), atol=1e-5)
    assert not any(buffer.any() for buffer in network.buffers())
