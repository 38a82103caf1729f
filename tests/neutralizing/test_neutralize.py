"""What neutralizing promises, measured here and not by itself; what it leaves alone; and what it refuses."""

import copy
import json
import math
import pkgutil

import numpy as np
import planted
import pytest
import torch
from hypothesis import given, settings, strategies as st
from planted import IMAGENET, Wired, assert_symmetric, by_pickle, difference, run, unchanged, unequal
from torch import nn

from evenslice import ConfigError, ModelError, Record, neutralize, record_of, save_network, symmetrize, untie

PLANTED = [
    planted.conv_bias,
    planted.conv_norm,
    planted.conv_alone,
    planted.focus,
    planted.Interleaved,
    planted.TwoStems,
    lambda: planted.Normalizing(planted.conv_norm()),
]


def windows(record, *shape):
    """Random intensities in [0, 1], scaled as the record says."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(3)) - record.mean) / record.std


def colours(gray, mean=(0.0,) * 3, std=(1.0,) * 3):
    """A gray image (batch, 1, y, x) as the network was given it before: three channels, each scaled its own way."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (gray - mean) / std


def slices_of(gray, record):
    """The same as it is given from now on."""
    return ((gray - record.mean) / record.std).expand(-1, record.slices, -1, -1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("strategy", ["mirror", "twin", "mixer"])
def test_neutralized_in_any_mode_a_network_can_be_trained(mode, strategy):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    other = copy.deepcopy(model)
    with mode():
        record = neutralize(model, 5, strategy=strategy)
    assert record == neutralize(other, 5, strategy=strategy)
    model(torch.rand(1, 5, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.sampled_from(PLANTED),
    st.sampled_from(["pretrained", "uniform", "center", "profile", "mirror", "shuffle"]),
    st.sampled_from([1, 3, 5, 7, 9]),
    st.booleans(),
)
def test_strategies_are_symmetric_and_keep_the_response_to_a_gray_image(build, strategy, slices, normalized):
    model, symmetric = build(), strategy not in ("pretrained", "shuffle")
    slices, scaling = slices if symmetric else 3, IMAGENET if normalized else {}
    gray = torch.rand(1, 1, 48, 40)
    before = run(model, colours(gray, **scaling))
    record = neutralize(model, slices, strategy=strategy, **scaling)
    window = windows(record, 1, slices, 48, 40)
    if symmetric:
        assert_symmetric(model, window)
        assert record.mirror_error <= 1e-5
    if strategy == "uniform":
        assert_symmetric(model, window, torch.randperm(slices))
        assert record.permutation_error <= 1e-5
    assert record.gray_error <= 1e-4
    if before.ndim == 4:  # the stems pad by one
        inside = (..., slice(2, -2), slice(2, -2))
        assert difference(before[inside], run(model, slices_of(gray, record))[inside]) <= 1e-4


# Normalisation: what is folded, and where to.


def test_the_constant_goes_into_the_bias_there_is():
    model = planted.conv_bias()
    weight, bias = model[0].weight.detach().clone(), model[0].bias
    value = bias.detach().clone()
    neutralize(model, mean=[0.3, 0.5, 0.7])
    assert model[0].bias is bias
    expected = value + (weight.sum((2, 3)) * (0.5 - torch.tensor([0.3, 0.5, 0.7]))).sum(1)
    torch.testing.assert_close(bias.detach(), expected)


@pytest.mark.parametrize(
    "norm", ["torch.nn:BatchNorm2d", "torchvision.ops:FrozenBatchNorm2d", "timm.layers:FrozenBatchNormAct2d"]
)
def test_else_into_the_batch_norm_that_follows(norm):
    norm = pkgutil.resolve_name(norm)(8)
    model = unequal(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm).eval())
    keys, mean = list(model.state_dict()), norm.running_mean.clone()
    assert neutralize(model, **IMAGENET).gray_error <= 1e-5
    assert not torch.equal(norm.running_mean, mean)
    assert list(model.state_dict()) == keys


def test_else_into_a_new_bias():
    model = planted.conv_alone()
    model[0].weight.requires_grad_(False)
    neutralize(model, mean=[0.3, 0.5, 0.7])
    assert isinstance(model[0].bias, nn.Parameter)
    assert not model[0].bias.requires_grad


def with_norms(path):
    """Batch norms behind two stems."""
    parts = {name: nn.Conv2d(3, 6, 3, bias=False) for name in ("stem", "other")}
    parts |= {name: nn.BatchNorm2d(6) for name in ("norm", "second")}
    parts |= {"deep": nn.Conv2d(6, 6, 1), "head": nn.Conv2d(6, 2, 1), "relu": nn.ReLU(inplace=True)}
    return unequal(Wired(lambda m, x: m.head(path(m, x)), **parts)).eval()


NORMS = {
    "one of two readers": lambda m, x: m.norm(y := m.stem(x)).relu() + m.head(y).mean(1, keepdim=True),
    "two of one output": lambda m, x: m.norm(y := m.stem(x)).relu() + m.second(y).relu(),
    "one of each call": lambda m, x: m.norm(m.stem(x)).relu() + m.second(m.stem(x)).relu(),
    "none of one call": lambda m, x: m.stem(x).relu() + m.norm(m.stem(x)).relu(),
    "of another stem": lambda m, x: m.norm(m.stem(x)).relu() + m.norm(m.other(x)).relu(),
    "of a deep layer": lambda m, x: m.norm(m.deep(m.norm(m.stem(x)).relu())),
    "after an activation in place": lambda m, x: m.norm(m.relu(m.stem(x))),
    "every call": lambda m, x: m.norm(m.stem(x)).relu() + m.norm(m.stem(x.flip(-1))).relu(),
}


@pytest.mark.parametrize("check", ["network", "stems"])
@pytest.mark.parametrize("path", NORMS)
def test_a_batch_norm_takes_the_constant_if_it_alone_reads_all_that_the_stem_writes(path, check):
    model = with_norms(NORMS[path])
    before = copy.deepcopy(model)
    record = neutralize(model, check=check, **IMAGENET)
    assert (model.stem.bias is None) == (path == "every call")
    assert record.gray_error <= 1e-5
    gray = torch.rand(2, 1, 16, 16)
    assert difference(run(model, slices_of(gray, record)), run(before, colours(gray, **IMAGENET))) <= 1e-5


def test_pretrained_at_three_slices_changes_no_weight():
    model = planted.conv_norm()
    state = copy.deepcopy(model.state_dict())
    record = neutralize(model, strategy="pretrained", mean=0.5, std=[0.5, 0.5, 0.5])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert record.gray_error <= 1e-6
    assert record.mirror_error > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("slices", [3, 5])
def test_torchvision_transform_input_is_folded_and_switched_off(slices):
    from torchvision.models import get_model

    model = unequal(get_model("inception_v3", weights=None, transform_input=True, init_weights=False))
    gray = torch.rand(1, 1, 96, 96)
    before = run(model, gray.expand(-1, 3, -1, -1))
    record = neutralize(model, slices, size=(96, 96))
    assert not model.transform_input
    assert (record.mean, record.std) == (0.0, 1.0)
    assert difference(before, run(model, gray.expand(-1, slices, -1, -1))) <= 1e-4  # its stem does not pad
    assert record.permutation_error <= 1e-5


# What the weights keep, and what is left alone.


def test_what_the_weights_keep():
    model = planted.conv_norm().double().train()
    model[1].eval()
    model.requires_grad_(False)
    random, weight = torch.get_rng_state(), model[0].weight
    neutralize(model, strategy="shuffle", **IMAGENET)
    assert model[0].weight is weight
    with torch.no_grad():
        neutralize(model, 5, strategy="shuffle")
    assert (model[0].weight.dtype, model[0].weight is weight) == (torch.float64, False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.equal(random, torch.get_rng_state())
    assert (model[0].in_channels, model[0].weight.shape) == (5, (8, 5, 3, 3))


def test_half_precision():
    model = planted.conv_norm().bfloat16()
    record = neutralize(model, 5, **IMAGENET)
    assert model[0].weight.dtype == torch.bfloat16
    assert record.permutation_error < 0.05


def test_again_from_the_record():
    model = planted.conv_norm()
    first = neutralize(model, 5, strategy="center", **IMAGENET)
    window = windows(first, 1, 1, 32, 32)
    before = run(model, window.expand(-1, 5, -1, -1))
    second = neutralize(model, 7)
    assert (second.mean, second.std, second.slices) == (first.mean, first.std, 7)
    torch.testing.assert_close(run(model, window.expand(-1, 7, -1, -1)), before, rtol=1e-4, atol=1e-5)


# The controls


def test_reinit_draws_the_stem_anew():
    model, other = planted.conv_norm(), planted.conv_norm()
    head = model[3].weight.detach().clone()
    assert neutralize(model, 5, strategy="reinit", seed=4).mirror_error > 0.01
    assert torch.equal(model[3].weight, head)
    neutralize(other, 5, strategy="reinit", seed=4)
    assert torch.equal(model[0].weight, other[0].weight)
    neutralize(other, 5, strategy="reinit", seed=5)
    assert not torch.equal(model[0].weight, other[0].weight)


def test_random_draws_everything_anew():
    from torchvision.ops import FrozenBatchNorm2d

    model = Wired(
        lambda m, x: m.frozen(m.body(x)) * m.scale.mean(),
        body=nn.Sequential(
            *planted.conv_norm(),
            nn.utils.spectral_norm(nn.Conv2d(2, 8, 3)),  # which holds its weight under another name
            nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 2, 3)),
        ),
        frozen=unequal(FrozenBatchNorm2d(2)),
        scale=nn.Parameter(torch.randn(1000) * 2 + 5),
    )
    before = copy.deepcopy(model.state_dict())
    drawn = {name for name, _ in model.named_parameters()} - {"body.1.weight", "body.1.bias"}
    neutralize(model, strategy="random", size=(16, 16))
    after = model.state_dict()
    assert not any(torch.equal(before[key], after[key]) for key in drawn)
    assert after["body.1.running_mean"].eq(0).all()
    assert after["frozen.running_mean"].eq(0).all()
    assert after["frozen.running_var"].eq(1).all()
    assert after["scale"].mean() == pytest.approx(5, abs=0.3)
    assert after["scale"].std() == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize(("strategy", "slices"), [("uniform", 3), ("mirror", 5), ("random", 5)])
def test_stems_that_share_weight_and_bias_get_one_each(strategy, slices):
    first, second = unequal(nn.Conv2d(3, 4, 3)), nn.Conv2d(3, 4, 3)
    second.weight, second.bias = first.weight, first.bias
    model = Wired(lambda m, x: torch.cat([m.a(x), m.b(x).relu()], 1), a=first, b=second)
    reference, gray = copy.deepcopy(model), torch.rand(2, 1, 16, 16)
    record = neutralize(model, slices, strategy=strategy, **IMAGENET)
    assert model.a.weight.shape[1] == model.b.in_channels == slices
    if strategy != "random":
        expected = run(reference, colours(gray, **IMAGENET))
        torch.testing.assert_close(run(model, slices_of(gray, record)), expected, rtol=1e-4, atol=1e-4)


# What it costs, and what may be left out.


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pretrained", "uniform", "twin", "mixer", "reinit"])
@pytest.mark.parametrize("build", [planted.conv_norm, planted.focus, planted.Interleaved, planted.TwoStems])
def test_the_stems_keep_the_promises(build, strategy):
    model, other = build(), build()
    other.load_state_dict(model.state_dict())
    if strategy == "twin" and build in (planted.Interleaved, planted.TwoStems):
        with pytest.raises(ModelError, match="no activation follows"):
            neutralize(model, 3, strategy=strategy, check="stems", **IMAGENET)
        return
    record = neutralize(model, 3, strategy=strategy, check="stems", **IMAGENET)
    neutralize(other, 3, strategy=strategy, **IMAGENET)
    for (name, first), second in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    assert (record.permutation_error > 1e-3) == (strategy not in ("uniform", "mixer"))


def test_what_is_behind_the_stems_may_lie_on_the_meta_device():
    model = planted.TwoStems()
    body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).to("meta")
    model.norm = nn.Sequential(body, nn.Linear(30, 2, device="meta"))
    real = copy.deepcopy(model.fine.weight)
    record = neutralize(model, 5, check="stems", size=(64, 64))
    assert record.stems == ("fine", "coarse")
    assert max(record.permutation_error, record.gray_error) <= 1e-5
    torch.testing.assert_close(model.fine.weight.sum(1), real.sum(1))
    assert body[0].weight.is_meta


def test_a_network_that_shapes_alone_do_not_run():
    model = Wired(lambda m, x: m.body(x) * (1.0 if x.mean().item() > 0 else 2.0), body=planted.conv_norm())
    assert neutralize(model, 5, check="stems").stems == ("body.0",)


# The record.


@pytest.mark.parametrize("strategy", ["twin", "random", [0.1, 0.2, 0.4, 0.2, 0.1]])
def test_the_record_travels_as_json_and_with_the_network(strategy):
    model, scaling = planted.conv_bias(), {"mean": np.float32(0.5), "std": np.full(3, 0.25)}
    record = neutralize(model, np.int64(5), strategy=strategy, seed=np.int64(7), **scaling)
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.strategy == (strategy if isinstance(strategy, str) else "profile")
    for other in (copy.deepcopy(model), by_pickle(model), nn.Sequential(model)):
        assert record_of(other) == record
    if strategy != "twin":
        assert neutralize(nn.Sequential(model), 3).slices == record_of(model).slices == 3


def test_the_kernels_in_the_record():
    model = planted.conv_bias()
    weight = model[0].weight.detach().clone()
    (kernels,) = neutralize(model, 5, mean=0.5, std=[0.1, 0.2, 0.3]).kernels
    assert kernels.name == "0"
    torch.testing.assert_close(
        torch.tensor(kernels.before), weight * 0.2 / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    )
    torch.testing.assert_close(torch.tensor(kernels.after), model[0].weight.detach())
    assert neutralize(planted.focus(), 5).kernels[0].after.shape == (8, 5, 6, 6)
    linear = planted.Interleaved()
    weight = linear.embed.weight.detach().clone()
    (kernels,) = neutralize(linear, 5).kernels
    assert kernels.after.shape == (8, 5, 4, 4)
    torch.testing.assert_close(torch.tensor(kernels.before), weight.reshape(8, 4, 4, 3).permute(0, 3, 1, 2))


# What goes wrong, and leaves the network as it was.


def repeating():
    return Wired(lambda m, x: m.body(x).repeat(1, x.shape[1], 1, 1), body=planted.conv_bias())


def not_finite():
    model = planted.conv_bias()
    model[2].bias.data.fill_(math.nan)
    return model


@pytest.mark.parametrize(
    ("build", "slices", "message"),
    [
        (planted.SecondRead, 3, r"reversing the slices changes its output by .* besides body.0 \(Conv2d\)"),
        (planted.HardCoded, 5, r"model\.0 \(Conv2d\).*made for.*strategy='mixer'"),
        (planted.Added, 5, r"elsewhere too, and refuses 5 slices \(RuntimeError.*strategy='mixer'"),
        (repeating, 5, "shape of the network's output went from"),
        (not_finite, 3, "not finite"),
    ],
)
def test_networks_that_are_refused(build, slices, message):
    model = build().train()
    with unchanged(model), pytest.raises(ModelError, match=message):
        neutralize(model, slices, **IMAGENET)
    if build is planted.Added:
        assert neutralize(model, 5, strategy="mixer").permutation_error <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        *({"slices": slices} for slices in (4, 3.0)),
        *(
            {name: value}
            for name, value in {"strategy": "unifrom", "tie": "mirrored", "check": "stem"}.items()
        ),
        *({"mean": mean} for mean in ([0.1, 0.2], math.inf)),
        *({"std": std} for std in ([0.1, None, 0.1], [1, 1, 0])),
        {"mean": 127.5},  # of 8-bit values
        {"std": 64},
        {"size": 128},
        {"tie": "uniform", "strategy": "center"},
        {"tie": "mirror", "strategy": "twin"},
        *({"seed": seed} for seed in (-1, 0.5, None)),
    ],
)
def test_options_that_are_wrong(options):
    model = planted.conv_norm()
    with unchanged(model), pytest.raises(ConfigError, match=f"^{next(iter(options))}[^\n]*$"):
        neutralize(model, **options)


@pytest.mark.parametrize(
    "model", ["timm:resnet18", None, nn.Conv2d(3, 8, 3).state_dict(), (nn.Conv2d(3, 8, 3), None)]
)
def test_what_is_no_network_is_refused(model, tmp_path):
    def save(network):
        save_network(network, tmp_path / "a.safetensors")

    for function in (neutralize, untie, record_of, save, symmetrize):
        with pytest.raises(
            ModelError, match=f"{type(model).__name__} is not a network; give a torch.nn.Module"
        ):
            function(model)
