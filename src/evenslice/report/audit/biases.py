"""Pair biases window by window, split into the part that is the model's and the part that is the data's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from evenslice.results import data_part, model_part, pair_bias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evenslice.results import Measurements


class Parts(NamedTuple):
    """Parts of the pair biases, each (n, K): row i belongs to window i, column k - 1 to the pair of offsets -k, k."""

    model: NDArray[np.float64]
    data: NDArray[np.float64]


def split_biases(measurements: Measurements) -> Parts:
    """Split the pair biases of every window by means of its mirror."""
    biases = pair_bias(measurements.shares), pair_bias(measurements.mirrored_shares)
    return Parts(model=model_part(*biases), data=data_part(*biases))
