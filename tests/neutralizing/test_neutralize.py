import copy
import json
import math
import pickle
from typing import Any

import numpy as np
import planted
import pytest
import torch
from hypothesis import given, settings, strategies as st
from planted import IMAGENET, unequal
from torch import nn

from evenslice._core.errors import ConfigError, ModelError
from evenslice.networks.outputs import logits
from evenslice.neutralizing import strategies
from evenslice.neutralizing.network_files import save_network
from evenslice.neutralizing.neutralization import neutralize, untie
from evenslice.neutralizing.record import Record, record_of
from evenslice.neutralizing.stems import find_stems
from evenslice.neutralizing.strategies import STRATEGIES
from evenslice.neutralizing.symmetrization import symmetrize

PLANTED = [
    planted.conv_bias,
    planted.conv_norm,
    planted.conv_alone,
    planted.focus,
    planted.Interleaved,
    planted.TwoStems,
    lambda: planted.Normalizing(planted.conv_norm()),
]


def relative(first, second):
    return ((first - second).abs().max() / torch.maximum(first.abs().max(), second.abs().max())).item()


def windows(record, *shape, seed=3):
    """Random intensities in [0, 1], scaled as the record says."""
    intensities = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (intensities - record.mean) / record.std


def colours(gray, mean=(0.0,) * 3, std=(1.0,) * 3):
    """A gray image (batch, 1, y, x) as the network was given it before: three channels, each scaled its own way."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (gray - mean) / std


@torch.no_grad()
def run(model, images):
    return logits(model(images))


def assert_same(model, before):
    """Nothing about a network has changed: not its values, nor which objects they are, nor its attributes."""
    modes, state, objects, extra = before
    assert [module.training for module in model.modules()] == modes
    assert {key: id(value) for key, value in model.named_parameters()} == objects
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [repr(module) for module in model.modules()] == extra
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert record_of(model) is None


def snapshot(model):
    return (
        [module.training for module in model.modules()],
        copy.deepcopy(model.state_dict()),
        {key: id(value) for key, value in model.named_parameters()},
        [repr(module) for module in model.modules()],
    )


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


# What the table promises, measured here and not by neutralize itself.


@settings(max_examples=40)
@given(
    st.sampled_from(PLANTED),
    st.sampled_from(["uniform", "center", "profile", "mirror"]),
    st.sampled_from([1, 3, 5, 7, 9]),
    st.booleans(),
)
def test_symmetric_strategies_are_symmetric(build, strategy, slices, normalized):
    model = build()
    record = neutralize(model, slices, strategy=strategy, **IMAGENET if normalized else {})
    window = windows(record, 1, slices, 48, 40)
    assert relative(run(model, window), run(model, window.flip(1))) <= 1e-5
    assert record.mirror_error <= 1e-5
    if strategy == "uniform":
        order = torch.randperm(slices)
        assert relative(run(model, window), run(model, window[:, order])) <= 1e-5
        assert record.permutation_error <= 1e-5


@settings(max_examples=40)
@given(
    st.sampled_from([build for build in PLANTED if build not in (planted.Interleaved, planted.TwoStems)]),
    st.sampled_from(["pretrained", "uniform", "center", "profile", "mirror", "shuffle"]),
    st.sampled_from([1, 3, 5, 7, 9]),
    st.booleans(),
)
def test_a_gray_image_gets_the_response_it_got(build, strategy, slices, normalized):
    model = build()
    if strategy in ("pretrained", "shuffle"):
        slices = 3
    options = IMAGENET if normalized else {}
    gray = torch.rand(1, 1, 48, 40)
    before = run(model, colours(gray, **options))
    record = neutralize(model, slices, strategy=strategy, **options)
    after = run(model, ((gray - record.mean) / record.std).expand(-1, slices, -1, -1))
    inside = (..., slice(2, -2), slice(2, -2))  # the stems pad by one
    assert relative(before[inside], after[inside]) <= 1e-4
    assert record.gray_error <= 1e-4


def smp(name, encoder):
    import segmentation_models_pytorch

    return lambda: getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=2)


def timm(name):
    from timm import create_model

    return lambda: create_model(name, num_classes=5)


def torchvision(name, **options):
    from torchvision.models import get_model

    return lambda: get_model(name, weights=None, **options)


@pytest.mark.parametrize(
    ("build", "stems", "slices"),
    [
        *[
            (smp(name, encoder), (stem,), slices)
            for name, slices in (("Unet", 5), ("FPN", 3), ("DeepLabV3Plus", 7))
            for encoder, stem in (
                ("resnet18", "encoder.conv1"),
                ("tu-tf_efficientnet_lite0", "encoder.model.conv_stem"),
                ("vgg11", "encoder.features.0"),
            )
            if (name, encoder) != ("DeepLabV3Plus", "vgg11")  # smp does not offer it
        ],
        (timm("convnext_atto"), ("stem.0",), 5),
        (timm("vit_tiny_patch16_224"), ("patch_embed.proj",), 3),
        (timm("crossvit_tiny_240"), ("patch_embed.0.proj", "patch_embed.1.proj"), 5),
        (timm("fastvit_t8"), ("stem.0.conv_scale.conv", "stem.0.conv_kxk.0.conv"), 5),
        (timm("tresnet_m"), ("body.conv1.conv",), 5),
        (
            torchvision("deeplabv3_resnet50", weights_backbone=None, aux_loss=False),
            ("backbone.conv1",),
            5,
        ),
    ],
)
def test_networks_of_the_field(build, stems, slices):
    torch.manual_seed(0)
    model = unequal(build())
    size = (
        (240, 240)
        if "patch_embed.1.proj" in stems
        else (224, 224)
        if stems[0] == "patch_embed.proj"
        else (64, 64)
    )
    reference = copy.deepcopy(model)
    record = neutralize(model, slices, **IMAGENET)
    assert record.stems == stems
    window = windows(record, 1, slices, *size)
    output = run(model, window)
    assert output.std() > 1e-8  # the network does say something
    assert relative(output, run(model, window.flip(1))) <= 1e-5
    assert relative(output, run(model, window.roll(1, dims=1))) <= 1e-5
    assert max(record.mirror_error, record.permutation_error) <= 1e-5
    assert record.gray_error <= 1e-4
    if stems[0].startswith("patch_embed") or stems == ("stem.0",):  # no padding in front: equal everywhere
        gray = torch.rand(1, 1, *size)
        before = run(reference, colours(gray, **IMAGENET))
        after = run(model, ((gray - record.mean) / record.std).expand(-1, slices, -1, -1))
        assert relative(before, after) <= 1e-4


# Normalisation: what is folded, and where to.


def test_the_constant_goes_into_the_bias_there_is():
    model = planted.conv_bias()
    weight, bias = model[0].weight.detach().clone(), model[0].bias
    value = bias.detach().clone()
    neutralize(model, mean=[0.3, 0.5, 0.7])
    assert model[0].bias is bias
    expected = value + (weight.sum((2, 3)) * (0.5 - torch.tensor([0.3, 0.5, 0.7]))).sum(1)
    torch.testing.assert_close(bias.detach(), expected)


def test_else_into_the_batch_norm_that_follows():
    model = planted.conv_norm()
    keys, mean = list(model.state_dict()), model[1].running_mean.clone()
    neutralize(model, mean=[0.3, 0.5, 0.7])
    assert model[0].bias is None
    assert not torch.equal(model[1].running_mean, mean)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("build", [planted.conv_alone, planted.SharedOutput])
def test_else_into_a_new_bias(build):
    model = build()
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    stem.weight.requires_grad_(False)
    neutralize(model, mean=[0.3, 0.5, 0.7])
    assert isinstance(stem.bias, nn.Parameter)
    assert not stem.bias.requires_grad


class Norms(nn.Module):
    """Batch norms behind two stems, of which none alone reads all that one stem writes, and nothing else."""

    def __init__(self, path):
        super().__init__()
        self.stem, self.other = (nn.Conv2d(3, 6, 3, bias=False) for _ in range(2))
        self.deep, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)
        self.norm, self.second = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.relu, self.path = nn.ReLU(inplace=True), path
        unequal(self).eval()

    def forward(self, x):
        return self.head(self.path(self, x))


NORMS = {
    "two of one output": lambda m, x: m.norm(y := m.stem(x)).relu() + m.second(y).relu(),
    "one of each call": lambda m, x: m.norm(m.stem(x)).relu() + m.second(m.stem(x)).relu(),
    "none of one call": lambda m, x: m.stem(x).relu() + m.norm(m.stem(x)).relu(),
    "of another stem": lambda m, x: m.norm(m.stem(x)).relu() + m.norm(m.other(x)).relu(),
    "of a deep layer": lambda m, x: m.norm(m.deep(m.norm(m.stem(x)).relu())),
    "after an activation in place": lambda m, x: m.norm(m.relu(m.stem(x))),
}


@pytest.mark.parametrize("check", ["network", "stems"])
@pytest.mark.parametrize("path", NORMS)
def test_else_into_a_new_bias_where_the_batch_norm_reads_more_or_less(path, check):
    model = Norms(NORMS[path])
    before = copy.deepcopy(model)
    record = neutralize(model, check=check, **IMAGENET)
    assert isinstance(model.stem.bias, nn.Parameter)
    assert record.gray_error <= 1e-5
    gray = torch.rand(2, 1, 16, 16)
    scaled = ((gray - record.mean) / record.std).expand(-1, 3, -1, -1)
    assert relative(run(model, scaled), run(before, colours(gray, **IMAGENET))) <= 1e-5


def test_a_batch_norm_that_reads_every_call_of_a_stem_takes_the_constant():
    model = Norms(lambda m, x: m.norm(m.stem(x)).relu() + m.norm(m.stem(x.flip(-1))).relu())
    assert neutralize(model, **IMAGENET).gray_error <= 1e-5
    assert model.stem.bias is None


def test_mean_and_std_may_be_numpys():
    mean: Any = np.float32(0.5)
    record = neutralize(planted.conv_alone(), mean=mean, std=np.full(3, 0.25))
    assert (record.mean, record.std) == (0.5, 0.25)


def test_pretrained_at_three_slices_changes_no_weight():
    model = planted.conv_norm()
    state = copy.deepcopy(model.state_dict())
    record = neutralize(model, strategy="pretrained", mean=0.5, std=[0.5, 0.5, 0.5])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert record.gray_error <= 1e-6
    assert record.mirror_error > 0.01


# What the weights keep, and what is left alone.


def test_what_the_weights_keep():
    model = planted.conv_norm().double().train()
    model[1].eval()
    model.requires_grad_(False)
    random = torch.get_rng_state()
    with torch.no_grad():
        neutralize(model, 5, strategy="shuffle", **IMAGENET)
    assert model[0].weight.dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.equal(random, torch.get_rng_state())
    assert (model[0].in_channels, model[0].weight.shape) == (5, (8, 5, 3, 3))
    assert "Conv2d(5, 8" in repr(model)


def test_a_weight_of_the_same_shape_stays_the_same_parameter():
    model = planted.conv_bias()
    weight = model[0].weight
    neutralize(model)
    assert model[0].weight is weight
    neutralize(model, 5)
    assert model[0].weight is not weight
    assert model[0].weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = planted.conv_norm().to(dtype)
    record = neutralize(model, 5, **IMAGENET)
    assert model[0].weight.dtype == dtype
    assert record.permutation_error < 0.05


def test_any_number_of_inputs():
    model = unequal(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)))
    gray = torch.rand(1, 1, 20, 20)
    before = run(model, gray.expand(-1, 4, -1, -1))
    neutralize(model, 5)
    torch.testing.assert_close(run(model, gray.expand(-1, 5, -1, -1)), before)
    with pytest.raises(ModelError, match="odd number|has 4 inputs"):
        neutralize(unequal(nn.Sequential(nn.Conv2d(4, 8, 3))), 3, strategy="mirror")


def test_again_from_the_record():
    model = planted.conv_norm()
    first = neutralize(model, 5, strategy="center", **IMAGENET)
    window = windows(first, 1, 1, 32, 32)
    before = run(model, window.expand(-1, 5, -1, -1))
    second = neutralize(model, 7)
    assert (second.mean, second.std, second.slices) == (first.mean, first.std, 7)
    torch.testing.assert_close(run(model, window.expand(-1, 7, -1, -1)), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, None])
def test_a_seed_that_a_saved_network_could_not_have_is_refused(seed):
    model = planted.conv_norm()
    with pytest.raises(ConfigError, match="seed"):
        neutralize(model, 3, seed=seed)
    assert record_of(model) is None


def test_integers_of_numpy_are_recorded_as_numbers_that_load():
    record = neutralize(planted.conv_norm(), np.int64(5), strategy="random", seed=np.int64(2**63 - 1))
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    with pytest.raises(ConfigError, match="slices: is 3.0, not a whole number"):
        neutralize(planted.conv_norm(), 3.0)


def test_the_controls():
    model, other = planted.conv_norm(), planted.conv_norm()
    head = model[3].weight.detach().clone()
    record = neutralize(model, 5, strategy="reinit", seed=4)
    assert torch.equal(model[3].weight, head)
    assert record.mirror_error > 0.01
    neutralize(other, 5, strategy="reinit", seed=4)
    assert torch.equal(model[0].weight, other[0].weight)
    neutralize(other, 5, strategy="reinit", seed=5)
    assert not torch.equal(model[0].weight, other[0].weight)


def test_random_draws_everything_anew():
    from torchvision.ops import FrozenBatchNorm2d

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = planted.conv_norm()
            self.frozen = unequal(FrozenBatchNorm2d(2))
            self.scale = nn.Parameter(torch.randn(1000) * 2 + 5)

        def forward(self, x):
            return self.frozen(self.body(x)) * self.scale.mean()

    model = Bare()
    before = copy.deepcopy(model.state_dict())
    neutralize(model, strategy="random")
    after = model.state_dict()
    assert not any(torch.equal(before[key], after[key]) for key in before if key.endswith("0.weight"))
    assert after["body.1.running_mean"].eq(0).all()
    assert after["frozen.running_mean"].eq(0).all()
    assert after["frozen.running_var"].eq(1).all()
    assert not torch.equal(before["scale"], after["scale"])
    assert after["scale"].mean() == pytest.approx(5, abs=0.3)
    assert after["scale"].std() == pytest.approx(2, abs=0.3)


def test_random_draws_what_a_norm_of_the_weights_holds():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.randn(4, dtype=torch.complex64))

        def forward(self, x):
            return x * self.factor.abs().mean()

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 3)),
        Complex(),
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    neutralize(model, strategy="random", size=(16, 16))
    kept = {name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)}
    assert not kept


@pytest.mark.parametrize("slices", [3, 5])
@pytest.mark.parametrize("strategy", ["uniform", "mirror", "random", "shuffle"])
def test_stems_that_share_a_weight_go_on_sharing_it(strategy, slices):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = unequal(nn.Conv2d(3, 4, 3)), nn.Conv2d(3, 4, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.a(x).relu() + self.b(x).tanh()

    model = Shared()
    neutralize(model, slices, strategy=strategy)
    assert model.a.weight is model.b.weight
    assert model.a.weight.shape[1] == model.b.in_channels == slices


# What it costs, and what may be left out.


def count_calls(module):
    batches = []
    module.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    return batches


@pytest.mark.parametrize("build", [planted.conv_norm, lambda: planted.Normalizing(planted.conv_norm())])
@pytest.mark.parametrize("strategy", ["uniform", "random", "mixer"])
def test_the_whole_network_runs_a_few_times(build, strategy):
    model = build()
    head = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    batches = count_calls(head)
    neutralize(model, 5, strategy=strategy, **IMAGENET)
    assert batches == [1, 1, 6, 1, 1, 1, 2, 1]  # before twice, after, and in batches of their own


def test_checking_the_stems_alone_runs_nothing_else():
    model = planted.conv_norm()
    batches = count_calls(model[3])
    record = neutralize(model, 5, check="stems", **IMAGENET)
    assert [batch for batch in batches if batch > 1] == []  # but for a pass of shapes
    assert record.check == "stems"
    assert max(record.permutation_error, record.gray_error) <= 1e-5
    assert neutralize(model, 5).check == "network"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("build", PLANTED)
def test_the_stems_keep_the_promises(build, strategy):
    model = build()
    other = copy.deepcopy(model)
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


@pytest.mark.parametrize("name", ["fastvit_t8", "test_nfnet", "crossvit_tiny_240", "test_efficientnet"])
def test_networks_of_the_field_on_the_meta_device(name):
    from timm import create_model

    with torch.device("meta"):
        model = create_model(name)
    for stem in find_stems(model).items:
        for layer in filter(None, (stem.reader, stem.norm)):
            layer.to_empty(device="cpu")
            for parameter in layer.parameters():
                nn.init.normal_(parameter, 0.1)
            unequal(layer)
    record = neutralize(model, 5, check="stems")
    assert max(record.permutation_error, record.gray_error) <= 1e-5
    assert any(parameter.is_meta for parameter in model.parameters())


def test_a_network_that_shapes_alone_do_not_run():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = planted.conv_norm()

        def forward(self, x):
            return self.body(x) * (1.0 if x.mean().item() > 0 else 2.0)

    model = Reads()
    assert neutralize(model, 5, check="stems").stems == ("body.0",)


# The record.


@pytest.mark.parametrize("strategy", [*STRATEGIES, [0.1, 0.2, 0.4, 0.2, 0.1]])
def test_the_record_travels_as_json(strategy):
    model = planted.conv_bias()
    record = neutralize(model, 5, strategy=strategy, **IMAGENET)
    assert record_of(model) is record
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.strategy == (strategy if isinstance(strategy, str) else "profile")


def test_the_record_travels_with_the_network():
    model = planted.conv_bias()
    record = neutralize(model, 5)
    assert record_of(copy.deepcopy(model)) == record
    assert record_of(pickle.loads(pickle.dumps(model))) == record  # noqa: S301  # our own pickle
    assert record_of(nn.Sequential(model)) == record
    wrapped = nn.Sequential(model)
    assert record_of(model) == record
    assert neutralize(wrapped, 3).slices == record_of(model).slices == 3


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


@pytest.mark.parametrize("strategy", ["uniform", "mirror", "center"])
def test_a_hidden_second_read_is_found_out(strategy):
    model = planted.SecondRead().train()
    before = snapshot(model)
    with pytest.raises(
        ModelError, match=r"reversing the slices changes its output by .* besides body.0 \(Conv2d\)"
    ):
        neutralize(model, strategy=strategy, **IMAGENET)
    assert_same(model, before)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("slices", [5])
def test_after_a_failure_at_the_end_everything_is_as_it_was(strategy, slices, monkeypatch):
    torch.manual_seed(0)
    models = [planted.conv_norm(), planted.conv_alone()]
    models += [planted.TwoStems()] if strategy != "twin" else []  # no activation follows one of the stems
    models.append(torchvision("googlenet", transform_input=True, init_weights=False, aux_logits=False)())

    def fail(*_):
        raise ModelError("at the end")

    monkeypatch.setattr("evenslice.neutralizing.neutralization.check_promises", fail)
    for model in models:
        before, random = snapshot(model), torch.get_rng_state()
        with pytest.raises(ModelError, match="at the end"):
            neutralize(
                model, slices, strategy=strategy, tie=None if strategy == "twin" else "mirror", **IMAGENET
            )
        assert_same(model, before)
        assert torch.equal(random, torch.get_rng_state())
        assert getattr(model, "transform_input", True)


def test_a_network_made_for_three_channels():
    model = planted.HardCoded()
    assert neutralize(model, 3).permutation_error <= 1e-5
    model = planted.HardCoded()
    before = snapshot(model)
    with pytest.raises(ModelError, match=r"model\.0 \(Conv2d\).*made for.*strategy='mixer'"):
        neutralize(model, 5)
    assert_same(model, before)


def test_a_network_that_takes_three_channels_behind_its_stem():
    model = planted.Added()
    before = snapshot(model)
    with pytest.raises(
        ModelError, match=r"elsewhere too, and refuses 5 slices in Added \(RuntimeError.*strategy='mixer'"
    ):
        neutralize(model, 5)
    assert_same(model, before)
    assert neutralize(model, 5, strategy="mixer").permutation_error <= 1e-5


def test_kernels_that_sum_to_zero_keep_their_promise():
    model = nn.Conv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([0.1, -0.3, 0.2]).reshape(1, 3, 1, 1))
    assert neutralize(model, 3, strategy="pretrained").gray_error <= 1e-5


@pytest.mark.parametrize("part", [0.999, 1.001])
def test_a_small_change_for_gray_images_is_found(part, monkeypatch):
    spread = strategies.spread
    monkeypatch.setattr(
        "evenslice.neutralizing.rewriting.spread", lambda *given, **named: part * spread(*given, **named)
    )
    with pytest.raises(ModelError, match="giving it a gray image as slices"):
        neutralize(planted.conv_norm(), 3)


def test_an_output_that_is_not_finite():
    model = planted.conv_bias()
    with torch.no_grad():
        model[2].bias.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        neutralize(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slices": 4}, "odd number of slices"),
        ({"strategy": "unifrom"}, "did you mean 'uniform'"),
        ({"tie": "mirrored"}, "did you mean 'mirror'"),
        ({"check": "stem"}, "did you mean 'stems'"),
        ({"mean": [0.1, 0.2]}, "mean has 2 values; the network has 3 inputs"),
        ({"std": [0.1, None, 0.1]}, "std has to be a number, or one for each input"),
        ({"std": [1, 1, 0]}, "has to be positive"),
        ({"mean": math.inf}, "has to be finite"),
        (
            {"mean": 127.5, "std": 64},
            r"mean=\[127.5, .*scaled to 0..1 first; divide the mean and std .* by 255",
        ),
        ({"size": 128}, "size: is 128; must be two numbers of pixels"),
        ({"strategy": "center", "tie": "uniform"}, "makes every strategy 'uniform', not 'center'"),
    ],
)
def test_options_that_are_wrong(options, message):
    model = planted.conv_norm()
    before = snapshot(model)
    with pytest.raises(ConfigError, match=message) as caught:
        neutralize(model, **options)
    assert "\n" not in str(caught.value)
    assert_same(model, before)


def test_stems_that_share_a_bias_get_the_constant_of_their_colours_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.second.weight, self.second.bias = self.first.weight, self.first.bias

        def forward(self, image):
            return torch.cat([self.first(image), self.second(image).relu()], dim=1)

    torch.manual_seed(0)
    network = Twice()
    reference = copy.deepcopy(network)
    mean, std = (0.485, 0.456, 0.306), (0.229, 0.324, 0.225)
    record = neutralize(network, 3, mean=mean, std=std)
    assert network.second.bias is network.first.bias
    gray = torch.rand(2, 1, 16, 16)
    colours = (gray - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    slices = ((gray - record.mean) / record.std).expand(-1, 3, -1, -1)
    assert torch.allclose(network(slices), reference(colours), atol=1e-4)


@pytest.mark.parametrize(
    "model", ["timm:resnet18", None, nn.Conv2d(3, 8, 3).state_dict(), (nn.Conv2d(3, 8, 3), None)]
)
def test_what_is_no_network_is_refused(model, tmp_path):
    for function in (
        neutralize,
        untie,
        record_of,
        lambda it: save_network(it, tmp_path / "a.safetensors"),
    ):
        with pytest.raises(
            ModelError, match=f"{type(model).__name__} is not a network; give a torch.nn.Module, such as"
        ):
            function(model)
    with pytest.raises(
        ModelError, match=f"{type(model).__name__} is not a network; give a torch.nn.Module, or a function"
    ):
        symmetrize(model)


@pytest.mark.parametrize("slices", [3, 5])
def test_torchvision_transform_input_is_folded_and_switched_off(slices):
    torch.manual_seed(0)
    model = unequal(torchvision("inception_v3", transform_input=True, init_weights=False)())
    gray = torch.rand(1, 1, 96, 96)
    before = run(model, gray.expand(-1, 3, -1, -1))
    record = neutralize(model, slices, size=(96, 96))
    assert not model.transform_input
    assert (record.mean, record.std) == (0.0, 1.0)
    after = run(model, gray.expand(-1, slices, -1, -1))
    assert relative(before, after) <= 1e-4  # its stem does not pad
    assert record.permutation_error <= 1e-5


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_frozen_batch_norm_takes_the_constant_too(name):
    from timm.layers import FrozenBatchNormAct2d
    from torchvision.ops import FrozenBatchNorm2d

    norm = {"torchvision": FrozenBatchNorm2d, "timm": FrozenBatchNormAct2d}[name](8)
    model = unequal(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm))
    assert neutralize(model, **IMAGENET).gray_error <= 1e-5
    assert model[0].bias is None


def test_an_output_that_depends_on_the_number_of_slices():
    class Slices(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = planted.conv_bias()

        def forward(self, x):
            return self.body(x).repeat(1, x.shape[1], 1, 1)

    with pytest.raises(ModelError, match="shape of the network's output went from"):
        neutralize(Slices(), 5)
