import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from evenslice._core.errors import ConfigError, ModelError
from evenslice.neutralizing.strategies import STRATEGIES, find_strategy, profile_weights, spread

ANY = st.integers(1, 7)
ODD = st.sampled_from([1, 3, 5, 7, 9])
DERIVED = [name for name in STRATEGIES if name not in ("reinit", "random")]


@st.composite
def kernels(draw, channels=ANY):
    shape = (
        draw(st.integers(1, 6)),
        draw(channels),
        *draw(st.sampled_from([(), (4,), (1, 3, 3), (2, 5, 3)])),
    )
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 1000))))


def names_that(condition):
    return st.sampled_from([name for name in DERIVED if condition(find_strategy(name, 3))])


@given(kernels(st.sampled_from([1, 3, 5, 7])), ODD, names_that(lambda s: s.keeps_gray))
def test_slices_sum_to_the_colours_where_promised(weight, slices, name):
    strategy = find_strategy(name, slices)
    if strategy.promises_gray(weight.shape[1], slices):
        total = spread(weight, slices, name).sum(1)
        torch.testing.assert_close(total, weight.double().sum(1), rtol=1e-12, atol=1e-12)


@given(kernels(st.sampled_from([1, 3, 5, 7])), ODD, names_that(lambda s: s.symmetry and not s.averaged))
def test_opposite_slices_are_equal_to_the_last_bit(weight, slices, name):
    result = spread(weight, slices, name)
    assert result.dtype == torch.float64
    assert result.shape == (weight.shape[0], slices, *weight.shape[2:])
    assert torch.equal(result, result.flip(1))


@given(kernels(), ODD)
def test_uniform_gives_every_slice_the_same(weight, slices):
    result = spread(weight, slices, "uniform")
    assert torch.equal(result, result[:, :1].expand_as(result))


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


@pytest.mark.parametrize("slices", [1, 3, 5, 7, 9])
def test_pretrained_is_what_timm_does(slices):
    from timm.models import adapt_input_conv

    weight = torch.randn(4, 3, 3, 3)
    expected = adapt_input_conv(slices, weight.clone())
    torch.testing.assert_close(spread(weight, slices, "pretrained").float(), expected)


@pytest.mark.parametrize(
    ("channels", "slices", "expected"),
    [
        ([1.0, 5.0, 3.0], 1, [9.0]),
        ([1.0, 5.0, 3.0], 3, [2.0, 5.0, 2.0]),
        ([1.0, 5.0, 3.0], 7, [2 / 3, 2 / 3, 2 / 3, 5.0, 2 / 3, 2 / 3, 2 / 3]),
        (
            [1.0, 2.0, 7.0, 4.0, 5.0],
            3,
            [6.0, 7.0, 6.0],
        ),  # outer pair (1 + 5) / 2 folded onto the inner (2 + 4) / 2
        ([1.0, 2.0, 7.0, 4.0, 5.0], 7, [1.5, 1.5, 3.0, 7.0, 3.0, 1.5, 1.5]),
        ([6.0], 3, [2.0, 2.0, 2.0]),
    ],
)
def test_mirror_by_hand(channels, slices, expected):
    result = spread(torch.tensor([channels]).double(), slices, "mirror")
    torch.testing.assert_close(result[0], torch.tensor(expected).double())


def test_mirror_needs_a_middle():
    with pytest.raises(ModelError, match="the network has 4 inputs"):
        spread(torch.ones(1, 4), 3, "mirror")


def test_profile_is_binomial_or_as_given():
    weight = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(spread(weight, 3, "profile")[0], torch.tensor([1.5, 3.0, 1.5]).double())
    torch.testing.assert_close(spread(weight, 3, [0.1, 0.8, 0.1])[0], torch.tensor([0.6, 4.8, 0.6]).double())
    for name, profile in {"uniform": [1 / 3] * 3, "center": [0, 1, 0]}.items():
        assert torch.equal(spread(weight, 3, name), spread(weight, 3, profile))


@pytest.mark.parametrize(
    ("strategy", "slices", "message"),
    [
        ("unifrom", 3, "did you mean 'uniform'"),
        ("uniform", 4, "odd number of slices"),
        ("uniform", -3, "odd number of slices"),
        ([0.5, 0.5], 3, "has 2 weights"),
        ([0.2, 0.5, 0.2], 3, "sum to 0.9"),
        ([0.5, 0.3, 0.2], 3, "not symmetric"),
        ([math.nan, 1.0, math.nan], 3, "sum to nan"),
        ([math.inf, -math.inf, math.inf], 3, "sum to nan"),
        ([10**400, 1, 10**400], 3, "must be one of pretrained, .* or 3 numbers"),
        (None, 3, "strategy: is None; must be one of pretrained, .* or 3 numbers"),
        (["a", "b", "c"], 3, "or 3 numbers"),
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
    ("changed", "message"),
    [
        ({"slices": 4}, "odd number"),
        ({"spacing": (1, 2)}, "three positive numbers"),
        ({"spacing": (0, 1, 1)}, "three positive numbers"),
        ({"spacing": ("a", 1, 1)}, "three positive numbers"),
        ({"spacing": (1, 1e-300, 1e300)}, "three positive numbers"),
        ({"step": 0}, "must be 1 or more"),
        ({"step": 1.5}, "step: is 1.5, not a whole number"),
        ({"slices": 3.0}, "slices: is 3.0, not a whole number"),
    ],
)
def test_weights_from_a_wrong_spacing_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        profile_weights(**({"slices": 3, "spacing": (1, 1, 1)} | changed))
