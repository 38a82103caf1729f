"""The pair biases and the directional bias of slice shares, and their model and data parts.

For the shares s_-K..s_K of one window, in the order in which the network saw its slices, and every pair k = 1..K

    pair bias          B_k = (s_k - s_-k) / (s_k + s_-k)                               0 where both are 0
    directional bias   D = (sum of s_k, k > 0, - sum of s_k, k < 0) / (sum of both)    0 where all are 0

lie in [-1, 1], and for either, with its values at a window x and its mirror x' (the same slices in reversed order),
exactly

    model part   (D(x) + D(x')) / 2     0 for a mirror-symmetric network, whatever the data
    data part    (D(x) - D(x')) / 2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["data_part", "directional_bias", "halves", "model_part", "pair_bias"]


def pair_bias(shares: Floats) -> Floats:
    """Return the pair biases B_1..B_K (n, K) of shares (n, N); NaN where a share is NaN.

    Example:
        >>> pair_bias(np.array([[0.125, 0.5, 0.375], [0.0, 1.0, 0.0]])).tolist()
        [[0.5], [0.0]]
    """
    left, right = halves(shares)
    return _contrast(right, left)


def directional_bias(shares: Floats) -> Floats:
    """Return the directional bias D (n,) of shares (n, N): positive if later slices get more attention.

    Example:
        >>> directional_bias(np.array([[0.1, 0.1, 0.2, 0.3, 0.3]])).round(6).tolist()
        [0.5]
    """
    left, right = halves(shares)
    return _contrast(right.sum(axis=1), left.sum(axis=1))


def model_part(bias: Floats, mirrored_bias: Floats) -> Floats:
    """Return the model part of a bias, from the bias at the windows and at their mirrors."""
    return (bias + mirrored_bias) / 2


def data_part(bias: Floats, mirrored_bias: Floats) -> Floats:
    """Return the data part of a bias, from the bias at the windows and at their mirrors."""
    return (bias - mirrored_bias) / 2


def halves(array: Floats) -> tuple[Floats, Floats]:
    """Return the parts of an array (n, N, ...) for offsets -1..-K and for 1..K, both (n, K, ...)."""
    half = array.shape[1] // 2
    return array[:, :half][:, ::-1], array[:, half + 1 :]


def _contrast(right: Floats, left: Floats) -> Floats:
    total = right + left
    return np.divide(right - left, total, out=np.zeros_like(total), where=total != 0)
