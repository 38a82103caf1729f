"""The colour balance of stems: closed forms, and what it may not depend on."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from evenslice import ModelError
from evenslice.auditing.surveyor import colour_balance

KERNELS = arrays(
    np.float64, st.tuples(st.integers(1, 4), st.just(3), st.just(2), st.just(2)), elements=st.floats(-9, 9)
).filter(lambda kernels: np.square(kernels).sum() > 1e-3)


@pytest.mark.parametrize(
    ("stems", "energy", "chromatic"),
    [
        ([np.ones((4, 3, 5, 5))], (1 / 3, 1 / 3, 1 / 3), 0),
        ([np.array([[1.0, -2.0, 1.0]])], (1 / 6, 4 / 6, 1 / 6), 1),  # compares colours
        ([np.eye(3)], (1 / 3, 1 / 3, 1 / 3), 2 / 3),  # each channel has a filter of its own
        (
            [np.array([[1.0, 0, 0]]), np.array([[[[0.0]], [[2.0]], [[1.0]]]])],
            (1 / 6, 4 / 6, 1 / 6),
            1 - 10 / 18,
        ),
    ],
)
def test_closed_forms(stems, energy, chromatic):
    found = colour_balance(stems)
    assert found == (pytest.approx(energy), pytest.approx(chromatic, abs=1e-15))


@given(KERNELS, st.permutations(range(3)), st.floats(0.1, 10))
def test_neither_scale_nor_order_matters_and_the_chromatic_part_is_the_residue_of_equal_channels(
    kernels, order, scale
):
    energy, chromatic = colour_balance([kernels])
    other = colour_balance([scale * kernels[::-1, order]])
    assert sum(energy) == pytest.approx(1)
    assert other == (
        pytest.approx([energy[channel] for channel in order], abs=1e-9),
        pytest.approx(chromatic, abs=1e-9),
    )
    residue = kernels - kernels.mean(axis=1, keepdims=True)
    assert chromatic == pytest.approx(np.square(residue).sum() / np.square(kernels).sum(), abs=1e-9)


@pytest.mark.parametrize(
    "stems", [[np.zeros((2, 3))], [np.array([[1.0, np.nan, 0.0]])], [np.ones((1, 3)), np.ones((1, 4))]]
)
def test_stems_that_say_nothing_or_read_different_channels_are_refused(stems):
    with pytest.raises(ModelError):
        colour_balance(stems)
