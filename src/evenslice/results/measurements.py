"""Measurements on windows: one row for each, from the attributions and outputs of the window and its mirror."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from evenslice.results.biases import data_part, halves, model_part, pair_bias
from evenslice.results.output_changes import as_numpy, measure_outputs
from evenslice.results.ratios import ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]

__all__ = ["BiasParts", "Measurements", "measure_shares", "measure_windows", "split_biases"]

# Attribution below this part of the output is rounding: float32 rounds to 1e-7, and a network adds up many roundings.
NEGLIGIBLE = 1e-6
# The Wasserstein distance is computed from so many pixels of a map, the same for all maps of a size.
SALIENCY_SAMPLE = 4096


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements on n windows of N = 2K + 1 slices; row i belongs to window i.

    Shares are in the order in which the network was given the slices: column j is offset j - K of its input.

    Attributes:
        volume: (n,) index of the volume a window was taken from.
        position: (n, 3) window centre slice z and in-plane origin y, x, in voxels.
        shares: (n, N) shares of the window; each row sums to 1, or is NaN without attribution.
        mirrored_shares: (n, N) shares of the mirrored window, in the order in which the network saw it.
        wasserstein: (n, K) Wasserstein-1 distance between the saliency distributions of offsets k and -k, pooled over
            the window and its mirror, in units of their mean saliency; N at most.
        mirror_error: (n,) largest output change when the window is reversed, relative to the largest output.
        mirror_disagreement: (n,) share of output pixels whose predicted class changes when the window is reversed; NaN
            if the output has no classes.
        foreground: (n,) share of output pixels whose predicted class is not 0, for the window or for its mirror; 1
            for an output with classes but no pixels; NaN without classes.
        lowest_class: (n,) the lowest class predicted for the window or for its mirror; NaN without classes.
        highest_class: (n,) the highest.
        change: (n,) mean square of the output change when the window is reversed; NaN for class numbers.
        power: (n,) mean square of the output, less its mean over the window's pixels or tokens if it has any; NaN for
            class numbers.
        level: (n, F) the output of F numbers, at most 256 of them; (n, 1) zeros if it has pixels or tokens; the
            class number of the window, or NaN if its pixels have one each.
        mismatch: (n, K) attribution of offsets k and -k that is not used in the same way by the window and by its
            mirror: the sum of |a_k(x) - a_-k(x')| and |a_-k(x) - a_k(x')| over the pixels, a signed, relative to the
            total absolute attribution of both.
        outer: (n, K) the absolute attribution that ``mismatch`` compares, in the same unit.
        own_mirror: (n,) 1 if the window is its own mirror, such as an empty one, else 0: it does not tell whether the order
            of its slices matters, and has no ``mismatch``. NaN where unknown.
    """

    volume: NDArray[np.int64]
    position: NDArray[np.int64]
    shares: NDArray[np.float64]
    mirrored_shares: NDArray[np.float64]
    wasserstein: NDArray[np.float64]
    mirror_error: NDArray[np.float64]
    mirror_disagreement: NDArray[np.float64]
    foreground: NDArray[np.float64]
    lowest_class: NDArray[np.float64]
    highest_class: NDArray[np.float64]
    change: NDArray[np.float64]
    power: NDArray[np.float64]
    level: NDArray[np.float64]
    mismatch: NDArray[np.float64]
    outer: NDArray[np.float64]
    own_mirror: NDArray[np.float64]


class BiasParts(NamedTuple):
    """Parts of the pair biases, each (n, K): row i belongs to window i, column k - 1 to the pair of offsets -k, k."""

    model: Floats
    data: Floats


def split_biases(measurements: Measurements) -> BiasParts:
    """Split the pair biases of every window into their model and data parts."""
    biases = pair_bias(measurements.shares), pair_bias(measurements.mirrored_shares)
    return BiasParts(model=model_part(*biases), data=data_part(*biases))


def measure_windows(
    attribution: Tensor,
    mirrored_attribution: Tensor,
    output: Tensor,
    mirrored_output: Tensor,
    *,
    classes: bool = True,
) -> dict[str, Floats]:
    """Measure a batch of windows and their mirrors.

    Args:
        attribution: (B, N, y, x) signed attribution of the windows, of any real type.
        mirrored_attribution: (B, N, y, x) that of the mirrored windows, in the order in which the network saw the
            slices.
        output: the output for the windows; see ``measure_outputs``.
        mirrored_output: the same for the mirrored windows.
        classes: False if the output has no classes, whatever its shape.

    Returns:
        The fields of ``Measurements`` except the volume, the position and ``own_mirror``, which belong to the windows
        themselves; one row for each window. Shares, mismatch and outer are NaN if the attribution is 0 everywhere, or adds
        up to less than a millionth of the output, which is the rounding error of an output that does not depend on the
        window. The Wasserstein distances of large maps are computed on a random sample of 4,096 of their pixels.

    Example:
        >>> import torch
        >>> window, mirror = torch.tensor([[1.0, 2.0, 1.0], [1.0, 2.0, 5.0]])[:, None, :, None, None]
        >>> rows = measure_windows(window, mirror, torch.tensor([[2.0]]), torch.tensor([[-1.0]]))
        >>> rows["shares"].tolist(), rows["mirrored_shares"].tolist()
        ([[0.25, 0.5, 0.25]], [[0.125, 0.25, 0.625]])
        >>> rows["wasserstein"].tolist(), rows["mirror_error"].tolist(), rows["mirror_disagreement"].tolist()
        ([[1.0]], [1.5], [1.0])
        >>> (rows["mismatch"] / rows["outer"]).tolist()
        [[0.5]]
    """
    size, mirrored_size = attribution.float().abs(), mirrored_attribution.float().abs()
    sums, mirrored_sums = _sums(size, output), _sums(mirrored_size, mirrored_output)
    total = (sums + mirrored_sums).sum(axis=1, keepdims=True)
    pixels = attribution[0, 0].numel()
    unlike = (attribution.float() - mirrored_attribution.float().flip(1)).abs()
    return {
        "shares": ratio(sums, sums.sum(axis=1, keepdims=True)),
        "mirrored_shares": ratio(mirrored_sums, mirrored_sums.sum(axis=1, keepdims=True)),
        "wasserstein": np.minimum(  # N at most: all saliency in one slice; a sample of the pixels may exceed it
            ratio(_wasserstein(size, mirrored_size), total / (2 * sums.shape[1] * pixels)), sums.shape[1]
        ),
        "mismatch": ratio(_pairs(as_numpy(unlike.sum(dim=(2, 3)))), total),
        "outer": ratio(_pairs(sums + mirrored_sums), total),
        **measure_outputs(output, mirrored_output, classes=classes, tile=attribution.shape[2:]),
    }


def measure_shares(attribution: Tensor, output: Tensor) -> Floats:
    """Return the shares (B, N) of an attribution (B, N, y, x), as ``measure_windows`` does.

    Example:
        >>> import torch
        >>> measure_shares(torch.tensor([-1.0, 2.0, 1.0]).view(1, 3, 1, 1), torch.zeros(1, 1)).tolist()
        [[0.25, 0.5, 0.25]]
    """
    sums = _sums(attribution.float().abs(), output)
    return ratio(sums, sums.sum(axis=1, keepdims=True))


def _sums(size: Tensor, output: Tensor) -> Floats:
    """Return the absolute attribution of each slice (B, N); 0 if it does not exceed the rounding error of the output."""
    sums = as_numpy(size.sum(dim=(2, 3)))
    if output.is_floating_point():
        reach = as_numpy(output.float().abs().reshape(len(output), -1).sum(dim=1))
        sums[sums.sum(axis=1) <= NEGLIGIBLE * reach] = 0
    return sums


def _pairs(values: Floats) -> Floats:
    """Add the values (B, N) of offsets k and -k: (B, K)."""
    left, right = halves(values)
    return left + right


def _wasserstein(size: Tensor, mirrored_size: Tensor) -> Floats:
    """Return the Wasserstein-1 distances (B, K) between the saliency of offsets k and -k, in units of saliency.

    Each side pools the pixels of the window and of its mirror, so both sides are equal for a symmetric network. Between
    samples of equal size the distance is the mean absolute difference of their sorted values.
    """
    chosen = torch.from_numpy(_sample(size[0, 0].numel())).to(size.device)
    maps = [as_numpy(part.flatten(2)[:, :, chosen]) for part in (size, mirrored_size)]
    left, right = (np.sort(side, axis=2) for side in halves(np.concatenate(maps, axis=2)))
    return np.asarray(np.abs(right - left).mean(axis=2))


@lru_cache(maxsize=8)
def _sample(pixels: int) -> NDArray[np.int64]:
    """Return the pixels of a map to compare, ascending: at random, as a regular grid misses patterns of its own period."""
    if pixels <= SALIENCY_SAMPLE:
        return np.arange(pixels)
    return np.sort(np.random.default_rng(0).choice(pixels, SALIENCY_SAMPLE, replace=False))
