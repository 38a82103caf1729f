"""A network is not refused for rounding: what fails in float32 is checked again in float64, where faults remain."""

import pytest
import torch
from planted import Wired
from torch import nn

from evenslice import ModelError, neutralize

CHECK = "evenslice.neutralizing.verification.check_promises"


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


def peeking(seed):
    """Reads the first slice where the search for stems cannot see it, and amplifies what it reads."""
    return Wired(lambda m, x: m.deep(x) + x[:, :1].detach().mean(dim=(2, 3)), deep=deep(seed))


@pytest.mark.parametrize("seed", range(4))
def test_a_badly_conditioned_network_is_refused_for_a_real_fault_alone(seed):
    neutralize(deep(seed), 5, size=(4, 4))
    with pytest.raises(ModelError, match="breaks what the strategy 'uniform' promises.* look for what else"):
        neutralize(peeking(seed), 5, size=(4, 4))


def test_a_network_without_float64_gets_the_error_of_its_own_precision(monkeypatch):
    model = Wired(lambda m, x: m.deep(x.float()), deep=deep(0, depth=1))
    monkeypatch.setattr(CHECK, lambda *_: ModelError("not kept"))
    with pytest.raises(ModelError, match="not kept"):
        neutralize(model, 5, size=(4, 4))


def test_the_repetition_leaves_no_trace(monkeypatch):
    """The network is what it would be without it: the same parameters, of the same dtype, with the same values."""
    expected, model = deep(0), deep(0)
    wanted = neutralize(expected, 5, size=(4, 4))
    failures = iter([ModelError("by rounding")])
    monkeypatch.setattr(CHECK, lambda *_: next(failures, None))
    model.register_buffer("halves", torch.ones(3, dtype=torch.float16))
    model.plain = torch.ones(2)
    kept, later = model.plain, model[2].weight
    assert neutralize(model, 5, size=(4, 4)) == wanted
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    assert model[2].weight is later
    assert model.plain is kept
    assert model.halves.dtype == torch.float16
