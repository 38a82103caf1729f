"""A network is not refused for rounding: what fails in float32 is checked again in float64, where faults remain."""

import pytest
import torch
from torch import nn

from evenslice._core.errors import ModelError
from evenslice.neutralizing.neutralization import neutralize
from evenslice.neutralizing.symmetrization import symmetrize
from evenslice.neutralizing.verification import in_float64

SEEDS = range(20)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


def deep(seed, width=8, depth=10):
    """A network with one output that amplifies a change of its input by about two a layer."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, 3)]
    for _ in range(depth):
        layers += [Sine(), nn.Conv2d(width, width, 1)]
        nn.init.normal_(layers[-1].weight, std=4 / width**0.5)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1))


class Peeking(nn.Module):
    """Reads the first slice where the search for stems cannot see it, and amplifies what it reads."""

    def __init__(self, seed):
        super().__init__()
        self.deep = deep(seed)

    def forward(self, x):
        return self.deep(x) + x[:, :1].detach().mean(dim=(2, 3))


class Single(nn.Module):
    """Computes in float32 whatever it is given."""

    def __init__(self, seed):
        super().__init__()
        self.deep = deep(seed, depth=1)

    def forward(self, x):
        return self.deep(x.float())


class Noisy(nn.Module):
    """Adds noise to the output of a network, anew in every pass, or the same for every batch."""

    def __init__(self, noise, *, seeded=False):
        super().__init__()
        self.body, self.noise, self.seeded = deep(0, depth=1), noise, seeded

    def forward(self, x):
        output = self.body(x)
        generator = torch.Generator().manual_seed(0) if self.seeded else None
        return output + self.noise * torch.rand(output.shape, generator=generator).to(output)


def refused(build, seed):
    try:
        neutralize(build(seed), 5, size=(4, 4))
    except ModelError as error:
        return str(error)
    return ""


def test_a_deep_and_badly_conditioned_network_is_never_refused():
    assert [refused(deep, seed) for seed in SEEDS] == [""] * len(SEEDS)


def test_a_real_fault_is_refused_however_much_the_network_amplifies():
    for seed in SEEDS:
        message = refused(Peeking, seed)
        assert "breaks what the strategy 'uniform' promises" in message
        assert "look for what else reads the image" in message


@pytest.mark.parametrize("noise", [1e-3, 1.0])
@pytest.mark.parametrize(
    "change", [neutralize, lambda model: neutralize(model, strategy="pretrained"), symmetrize]
)
def test_a_network_whose_output_is_random_is_refused(noise, change):
    model = Noisy(noise)
    before = model.body[0].weight
    with pytest.raises(
        ModelError, match="another output for the same window in a second run, .*; random: Noisy;"
    ) as caught:
        change(model)
    assert "\n" not in str(caught.value)
    assert model.body[0].weight is before


def test_noise_that_every_pass_repeats_does_not_pass_for_rounding():
    for change in (neutralize, symmetrize):
        with pytest.raises(ModelError, match="dependent on the batch: Noisy;"):
            change(Noisy(10.0, seeded=True))


def test_a_network_without_float64_gets_the_error_of_its_own_precision(monkeypatch):
    broken = ModelError("not kept")
    monkeypatch.setattr("evenslice.neutralizing.neutralization.check_promises", lambda *_: broken)
    with pytest.raises(ModelError, match="not kept"):
        neutralize(Single(0), 5, size=(4, 4))


def test_the_repetition_leaves_no_trace(monkeypatch):
    """The network is what it would be without it: the same parameters, of the same dtype, with the same values."""
    calls = []

    def fail_first(record, *_):
        calls.append(record)
        return ModelError("by rounding") if len(calls) == 1 else None

    monkeypatch.setattr("evenslice.neutralizing.neutralization.check_promises", fail_first)
    expected, model = deep(0), deep(0)
    model.register_buffer("halves", torch.ones(3, dtype=torch.float16))
    model.plain = torch.ones(2)
    kept, later = model.plain, model[2].weight
    record = neutralize(model, 5, size=(4, 4))
    calls[:] = [None]  # no failure
    assert record == neutralize(expected, 5, size=(4, 4))
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    assert model[2].weight is later
    assert model.plain is kept
    assert model.halves.dtype == torch.float16


def test_a_tied_parameter_is_converted_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with in_float64(model):
        assert model[1].weight is model[0].weight
        assert model(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
