"""From the kernels of colours to those of slices."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from evenslice import ConfigError, ModelError, profile_weights
from evenslice.neutralizing import STRATEGIES, find_strategy
from evenslice.neutralizing.strategies import spread

ODD = st.sampled_from([1, 3, 5, 7, 9])
DERIVED = [name for name in STRATEGIES if name not in ("reinit", "random")]


@st.composite
def kernels(draw):
    trailing = draw(st.sampled_from([(), (4,), (1, 3, 3), (2, 5, 3)]))
    shape = (draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 5, 7])), *trailing)
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 1000))))


@given(kernels(), ODD, st.sampled_from(DERIVED))
def test_what_the_table_promises(weight, slices, name):
    strategy, result = find_strategy(name, slices), spread(weight, slices, name)
    assert (result.dtype, result.shape) == (torch.float64, (weight.shape[0], slices, *weight.shape[2:]))
    if strategy.promises_gray(weight.shape[1], slices):
        torch.testing.assert_close(result.sum(1), weight.double().sum(1), rtol=1e-12, atol=1e-12)
    if strategy.symmetry and not strategy.averaged:
        assert torch.equal(result, result.flip(1))  # to the last bit
    if strategy.symmetry == "permutation":
        assert torch.equal(result, result[:, :1].expand_as(result))


@pytest.mark.slow
@given(kernels(), ODD, st.integers(0, 5))
def test_shuffle_permutes_the_kernels_of_each_filter(weight, slices, seed):
    plain, shuffled = spread(weight, slices, "pretrained"), spread(weight, slices, "shuffle", seed=seed)
    assert torch.equal(shuffled, spread(weight, slices, "shuffle", seed=seed))
    for before, after in zip(plain, shuffled, strict=True):
        assert sorted(map(str, before)) == sorted(map(str, after))


def test_shuffle_differs_between_filters_and_seeds():
    weight = torch.arange(3.0).expand(64, 3)
    first = spread(weight, 3, "shuffle")
    assert len(first.unique(dim=0)) == 6
    assert not torch.equal(first, spread(weight, 3, "shuffle", seed=1))
    assert first.mean(0).sub(1).abs().max() < 0.3  # symmetric on average


@given(kernels(), ODD)
def test_equalize_gives_every_slice_the_same_energy_and_keeps_the_total(weight, slices):
    before, after = (
        spread(weight, slices, name).reshape(weight.shape[0], slices, -1).square().sum(2)
        for name in ("pretrained", "equalize")
    )
    torch.testing.assert_close(after, before.mean(1, keepdim=True).expand_as(after))


@pytest.mark.parametrize("slices", [1, 3, 5, 7])
def test_pretrained_is_what_timm_does(slices):
    from timm.models import adapt_input_conv

    weight = torch.randn(4, 3, 3, 3)
    expected = adapt_input_conv(slices, weight.clone())
    torch.testing.assert_close(spread(weight, slices, "pretrained").float(), expected)


@pytest.mark.parametrize(
    ("strategy", "channels", "slices", "expected"),
    [
        ("mirror", [1.0, 5.0, 3.0], 1, [9.0]),
        ("mirror", [1.0, 5.0, 3.0], 3, [2.0, 5.0, 2.0]),
        ("mirror", [1.0, 5.0, 3.0], 7, [2 / 3, 2 / 3, 2 / 3, 5.0, 2 / 3, 2 / 3, 2 / 3]),
        # The outer pair (1 + 5) / 2 is folded onto the inner one (2 + 4) / 2.
        ("mirror", [1.0, 2.0, 7.0, 4.0, 5.0], 3, [6.0, 7.0, 6.0]),
        ("mirror", [1.0, 2.0, 7.0, 4.0, 5.0], 7, [1.5, 1.5, 3.0, 7.0, 3.0, 1.5, 1.5]),
        ("mirror", [6.0], 3, [2.0, 2.0, 2.0]),
        ("twin", [1.0, 5.0, 3.0], 3, [1.0, 5.0, 3.0]),
        ("twin", [1.0, 5.0, 3.0], 5, [0.5, 0.5, 5.0, 1.5, 1.5]),
        ("profile", [1.0, 2.0, 3.0], 3, [1.5, 3.0, 1.5]),
        ([0.1, 0.8, 0.1], [1.0, 2.0, 3.0], 3, [0.6, 4.8, 0.6]),
        ("uniform", [1.0, 2.0, 3.0], 3, [2.0, 2.0, 2.0]),
        ("center", [1.0, 2.0, 3.0], 3, [0.0, 6.0, 0.0]),
    ],
)
def test_by_hand(strategy, channels, slices, expected):
    result = spread(torch.tensor([channels]).double(), slices, strategy)
    torch.testing.assert_close(result[0], torch.tensor(expected).double())


@pytest.mark.parametrize("strategy", ["mirror", "twin"])
def test_mirror_needs_a_middle(strategy):
    with pytest.raises(ModelError, match="the network has 4 inputs"):
        spread(torch.ones(1, 4), 3, strategy)


@pytest.mark.parametrize(
    ("strategy", "slices", "message"),
    [
        ("unifrom", 3, "strategy='unifrom': .*did you mean 'uniform'"),
        ("uniform", 4, "slices=4: a window has an odd number of slices"),
        ("uniform", -3, "slices=-3: a window has an odd number of slices"),
        *[
            (wrong, 3, "strategy: is .*; must be one of pretrained, .* or 3 weights")
            for wrong in ([0.5, 0.5], [0.2, 0.5, 0.2], [0.5, 0.3, 0.2], [math.nan, 1.0, math.nan], None)
        ],
        *[
            (wrong, 3, "strategy: is .*; must be one of pretrained, .* or 3 weights")
            for wrong in ([math.inf, -math.inf, math.inf], [10**400, 1, 10**400], ["a", "b", "c"])
        ],
    ],
)
def test_a_strategy_that_is_none(strategy, slices, message):
    with pytest.raises(ConfigError, match=message):
        find_strategy(strategy, slices)


def test_drawn_strategies_derive_nothing():
    with pytest.raises(ConfigError, match="'reinit' draws new kernels"):
        spread(torch.ones(1, 3), 3, "reinit")


@given(ODD, st.tuples(*[st.floats(0.01, 100)] * 3), st.integers(1, 3))
def test_weights_from_the_spacing_are_a_profile(slices, spacing, step):
    weights = profile_weights(slices, spacing, step=step)
    assert find_strategy(weights, slices).profile == weights
    assert weights[slices // 2] == max(weights)


def test_weights_from_the_spacing_know_thin_and_thick_slices():
    assert profile_weights(5, (8, 4, 16)) == profile_weights(5) == profile_weights(5, (4, 8, 8), step=2)
    assert profile_weights(5, (50, 4, 4)) == pytest.approx((0, 0, 1, 0, 0), abs=1e-12)
    assert profile_weights(5, (0.01, 1, 1)) == pytest.approx([0.2] * 5, abs=1e-4)
    assert profile_weights(3, (1e-99, 1e-99, 1e-99)) == (0.25, 0.5, 0.25)
    assert profile_weights(3, (1e99, 1e-99, 1e-99)) == (0, 1, 0)
    assert profile_weights(np.int64(65)) == profile_weights(65)


@pytest.mark.parametrize(
    "changed",
    [
        *[{"slices": slices} for slices in (4, 3.0)],
        *[{"spacing": spacing} for spacing in ((1, 2), (0, 1, 1), ("a", 1, 1), (1, 1e-300, 1e300))],
        *[{"step": step} for step in (0, 1.5)],
    ],
)
def test_weights_from_a_wrong_spacing_are_refused(changed):
    with pytest.raises(ConfigError, match=next(iter(changed))):
        profile_weights(**({"slices": 3, "spacing": (1, 1, 1)} | changed))
