"""From the kernels of colours to those of slices."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from planted import STRATEGIES
from torch import nn

from evenslice import ConfigError, ModelError, neutralize, profile_weights

ODD = st.sampled_from([1, 3, 5, 7, 9])
DERIVED = [name for name in STRATEGIES if name not in ("mixer", "reinit", "random")]
SYMMETRIC = ("uniform", "center", "profile", "mirror")


def spread(kernels, slices, strategy, seed=0):
    """Return what `neutralize` makes of the kernels (filters, C, ...) of a convolution, or of a linear layer."""
    filters, channels, *taps = kernels.shape
    layer = nn.Conv2d(channels, filters, taps or (1, 1), bias=False).double()
    layer.weight.data = kernels.double().reshape(layer.weight.shape)
    neutralize(
        nn.Sequential(layer, nn.ReLU()), slices, strategy=strategy, seed=seed, mean=0, std=1, size=(8, 8)
    )
    return layer.weight.detach().reshape(filters, slices, *taps)


@st.composite
def kernels(draw):
    taps = draw(st.sampled_from([(), (3, 3), (5, 3)]))
    shape = (draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 5, 7])), *taps)
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 1000))))


@pytest.mark.slow
@settings(max_examples=60)
@given(kernels(), ODD, st.sampled_from(DERIVED))
def test_what_the_table_promises(weight, slices, name):
    result, multiple = spread(weight, slices, name), slices == 1 or slices % weight.shape[1] == 0
    if name in (*SYMMETRIC, "twin") or (name in ("pretrained", "shuffle") and multiple):
        torch.testing.assert_close(result.sum(1), weight.double().sum(1), rtol=1e-12, atol=1e-12)
    if name in SYMMETRIC:
        assert torch.equal(result, result.flip(1))  # to the last bit
    if name == "uniform":
        assert torch.equal(result, result[:, :1].expand_as(result))
    if name == "shuffle":
        for before, after in zip(spread(weight, slices, "pretrained"), result, strict=True):
            assert sorted(map(str, before)) == sorted(map(str, after))
    if name == "equalize":  # every slice has the same energy, and the total is kept
        before, after = (
            each.reshape(len(weight), slices, -1).square().sum(2)
            for each in (spread(weight, slices, "pretrained"), result)
        )
        torch.testing.assert_close(after, before.mean(1, keepdim=True).expand_as(after))


def test_shuffle_differs_between_filters_and_seeds():
    weight = torch.arange(3.0).expand(64, 3)
    first = spread(weight, 3, "shuffle")
    assert len(first.unique(dim=0)) == 6
    assert not torch.equal(first, spread(weight, 3, "shuffle", seed=1))
    assert first.mean(0).sub(1).abs().max() < 0.3  # symmetric on average


@pytest.mark.parametrize("slices", [1, 3, 5, 7])
def test_pretrained_is_what_timm_does(slices):
    from timm.models import adapt_input_conv

    weight = torch.randn(4, 3, 3, 3)
    expected = adapt_input_conv(slices, weight.clone())
    torch.testing.assert_close(spread(weight, slices, "pretrained").float(), expected, rtol=1e-5, atol=1e-6)


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
    "strategy",
    [
        *("unifrom", None, [0.5, 0.5], [0.2, 0.5, 0.2], [0.5, 0.3, 0.2], [math.nan, 1.0, math.nan]),
        *([math.inf, -math.inf, math.inf], [10**400, 1, 10**400], ["a", "b", "c"]),
    ],
)
def test_a_strategy_that_is_none(strategy):
    with pytest.raises(ConfigError, match="^strategy"):
        neutralize(nn.Conv2d(3, 2, 1), 3, strategy=strategy)


@given(ODD, st.tuples(*[st.floats(0.01, 100)] * 3), st.integers(1, 3))
def test_weights_from_the_spacing_are_a_profile(slices, spacing, step):
    weights = profile_weights(slices, spacing, step=step)
    assert weights == weights[::-1]
    assert math.fsum(weights) == pytest.approx(1)
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
