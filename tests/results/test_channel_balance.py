"""The colour balance of stems: closed forms, and what it may not depend on."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from evenslice._core.errors import ModelError
from evenslice.results.surveys import colour_balance

KERNELS = arrays(
    np.float64, st.tuples(st.integers(1, 4), st.just(3), st.just(2), st.just(2)), elements=st.floats(-9, 9)
).filter(lambda kernels: np.square(kernels).sum() > 1e-3)


def test_equal_channels_have_nothing_that_gray_does_not_meet():
    balance = colour_balance([np.ones((4, 3, 5, 5))])
    assert balance.energy == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert balance.chromatic == pytest.approx(0, abs=1e-15)


def test_a_stem_that_compares_colours_is_all_chromatic():
    assert colour_balance([np.array([[1.0, -2.0, 1.0]])]).chromatic == 1


def test_channels_with_filters_of_their_own_are_chromatic_but_for_one_in_c():
    assert colour_balance([np.eye(3)]).chromatic == pytest.approx(2 / 3)


def test_energies_are_shares_of_the_sums_of_squares():
    kernels = np.stack([np.full((2, 2), value) for value in (1.0, 3.0, 2.0)])[None]
    balance = colour_balance([kernels])
    assert balance.energy == pytest.approx((1 / 14, 9 / 14, 4 / 14))
    assert balance.chromatic == pytest.approx(1 - 36 / 42)


def test_stems_add_up():
    one, other = np.array([[1.0, 0, 0]]), np.array([[[[0.0]], [[2.0]], [[1.0]]]])
    balance = colour_balance([one, other])
    assert balance.energy == pytest.approx((1 / 6, 4 / 6, 1 / 6))
    assert balance.chromatic == pytest.approx(1 - (1 + 9) / 18)


@given(KERNELS, st.permutations(range(3)), st.floats(0.1, 10))
def test_neither_scale_nor_order_of_filters_matters_and_order_of_channels_only_to_their_energies(
    kernels, order, scale
):
    balance = colour_balance([kernels])
    other = colour_balance([scale * kernels[::-1, order]])
    assert sum(balance.energy) == pytest.approx(1)
    assert 0 <= balance.chromatic <= 1
    assert other.chromatic == pytest.approx(balance.chromatic, abs=1e-9)
    assert other.energy == pytest.approx([balance.energy[channel] for channel in order], abs=1e-9)


@given(KERNELS)
def test_the_chromatic_part_is_that_of_the_residue_of_the_projection_on_equal_channels(kernels):
    residue = kernels - kernels.mean(axis=1, keepdims=True)
    right = np.square(residue).sum() / np.square(kernels).sum()
    assert colour_balance([kernels]).chromatic == pytest.approx(right, abs=1e-9)


@pytest.mark.parametrize("kernels", [np.zeros((2, 3)), np.array([[1.0, np.nan, 0.0]])])
def test_kernels_that_say_nothing_are_refused(kernels):
    with pytest.raises(ModelError, match="all 0 or not finite"):
        colour_balance([kernels])


def test_stems_that_read_different_channels_are_refused():
    with pytest.raises(ModelError, match="the stems read 3 and 4 channels"):
        colour_balance([np.ones((1, 3)), np.ones((1, 4))])
