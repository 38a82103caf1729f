"""Measurements on windows: one row for each, from the attributions and outputs of the window and its mirror."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evenslice.networks import predicted_classes
from evenslice.results.biases import data_part, halves, model_part, pair_bias

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]

__all__ = ["BiasParts", "Measurements", "measure_outputs", "measure_windows", "split_biases"]

# Attribution below this part of the output is rounding: float32 rounds to 1e-7, and a network adds up many roundings.
NEGLIGIBLE = 1e-6
SALIENCY_SAMPLE = 4096  # pixels of a map from which the Wasserstein distance is computed


@dataclass(frozen=True)
class Measurements:
    """Measurements on n windows of N = 2K + 1 slices; row i belongs to window i.

    Shares are in the order in which the network was given the slices: column j is offset j - K of its input.

    Attributes:
        volume: (n,) index of the volume a window was taken from.
        position: (n, 3) window centre slice z and in-plane origin y, x, in voxels.
        shares: (n, N) shares of the window; each row sums to 1, or is NaN without attribution.
        mirrored_shares: (n, N) shares of the mirrored window, in the order in which the network saw it.
        wasserstein: (n, K) Wasserstein-1 distance between the saliency distributions of offsets k and -k, pooled over
            the window and its mirror, in units of their mean saliency.
        mirror_error: (n,) largest output change when the window is reversed, relative to the largest output.
        mirror_disagreement: (n,) share of output pixels whose predicted class changes when the window is reversed; NaN
            if the output has no classes.
    """

    volume: NDArray[np.int64]
    position: NDArray[np.int64]
    shares: NDArray[np.float64]
    mirrored_shares: NDArray[np.float64]
    wasserstein: NDArray[np.float64]
    mirror_error: NDArray[np.float64]
    mirror_disagreement: NDArray[np.float64]


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
        attribution: (B, N, y, x) absolute attribution of the windows, of any real type.
        mirrored_attribution: (B, N, y, x) that of the mirrored windows, in the order in which the network saw the
            slices.
        output: the output for the windows, batch first; (B, C) and (B, C, y, x) are logits of C classes, or of one
            class against the background if C is 1; integers are class numbers; any other output has no classes.
        mirrored_output: the same for the mirrored windows.
        classes: False if the output has no classes, whatever its shape.

    Returns:
        The fields of ``Measurements`` except the volume and the position, one row for each window. Shares are NaN if
        the attribution is 0 everywhere, or adds up to less than a millionth of the output, which is the rounding
        error of an output that does not depend on the window. The Wasserstein distances of large maps are computed on
        a regular sample of about 4,096 of their pixels. The mirror disagreement is NaN if the output has no classes,
        the mirror error if the output is class numbers.

    Example:
        >>> import torch
        >>> window, mirror = torch.tensor([[1.0, 2.0, 1.0], [1.0, 2.0, 5.0]])[:, None, :, None, None]
        >>> rows = measure_windows(window, mirror, torch.tensor([[2.0]]), torch.tensor([[-1.0]]))
        >>> rows["shares"].tolist(), rows["mirrored_shares"].tolist()
        ([[0.25, 0.5, 0.25]], [[0.125, 0.25, 0.625]])
        >>> rows["wasserstein"].tolist(), rows["mirror_error"].tolist(), rows["mirror_disagreement"].tolist()
        ([[1.0]], [1.5], [1.0])
    """
    sums = _sums(attribution, output)
    mirrored_sums = _sums(mirrored_attribution, mirrored_output)
    pixels = attribution[0, 0].numel()
    mean = (sums + mirrored_sums).sum(axis=1, keepdims=True) / (2 * sums.shape[1] * pixels)
    return {
        "shares": _ratio(sums, sums.sum(axis=1, keepdims=True)),
        "mirrored_shares": _ratio(mirrored_sums, mirrored_sums.sum(axis=1, keepdims=True)),
        "wasserstein": _ratio(_wasserstein(attribution, mirrored_attribution), mean),
        **measure_outputs(output, mirrored_output, classes=classes),
    }


def measure_outputs(output: Tensor, mirrored_output: Tensor, *, classes: bool = True) -> dict[str, Floats]:
    """Measure the effect of mirroring on the outputs of a batch: the last two entries of ``measure_windows``.

    Example:
        >>> import torch
        >>> rows = measure_outputs(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 1.0]]))
        >>> rows["mirror_error"].tolist(), rows["mirror_disagreement"].tolist()
        ([0.5], [0.0])
    """
    return {
        "mirror_error": _mirror_error(output, mirrored_output),
        "mirror_disagreement": _mirror_disagreement(output, mirrored_output, classes=classes),
    }


def _sums(attribution: Tensor, output: Tensor) -> Floats:
    """Return the attribution of each slice (B, N); 0 if it does not exceed the rounding error of the output."""
    sums = _numpy(attribution.float().sum(dim=(2, 3)))
    if output.is_floating_point():
        size = _numpy(output.float().abs().reshape(len(output), -1).sum(dim=1))
        sums[sums.sum(axis=1) <= NEGLIGIBLE * size] = 0
    return sums


def _numpy(tensor: Tensor) -> Floats:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Divide by a whole that broadcasts to the part; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def _wasserstein(attribution: Tensor, mirrored_attribution: Tensor) -> Floats:
    """Return the Wasserstein-1 distances (B, K) between the saliency of offsets k and -k, in units of saliency.

    Each side pools the pixels of the window and of its mirror, so both sides are equal for a symmetric network. Between
    samples of equal size the distance is the mean absolute difference of their sorted values.
    """
    height, width = attribution.shape[2:]
    step = max(1, int(np.ceil(np.sqrt(height * width / SALIENCY_SAMPLE))))
    maps = [_numpy(part[:, :, ::step, ::step].float()) for part in (attribution, mirrored_attribution)]
    pooled = np.concatenate([part.reshape(*part.shape[:2], -1) for part in maps], axis=2)
    left, right = (np.sort(side, axis=2) for side in halves(pooled))
    return np.asarray(np.abs(right - left).mean(axis=2))


def _mirror_error(output: Tensor, mirrored_output: Tensor) -> Floats:
    """Return max|f(x) - f(x')| / max|f(x)| (B,): 0 if nothing changes, NaN if only f(x) is 0 or f is class numbers."""
    if not output.is_floating_point():
        return np.full(len(output), np.nan)
    output = output.float()
    change = _largest(output - mirrored_output.float())
    error = _ratio(change, _largest(output))
    error[change == 0] = 0
    return error


def _largest(output: Tensor) -> Floats:
    """Return the largest absolute value of each window (B,)."""
    output = output.unsqueeze(-1)  # (B,) alone would leave no dimension to reduce
    return _numpy(output.abs().amax(dim=tuple(range(1, output.ndim))))


def _mirror_disagreement(output: Tensor, mirrored_output: Tensor, *, classes: bool) -> Floats:
    """Return the share of predictions (B,) that change; NaN if the output has no classes."""
    if not classes or (output.is_floating_point() and output.ndim not in (2, 4)):
        return np.full(len(output), np.nan)
    changed = predicted_classes(output, dim=1) != predicted_classes(mirrored_output, dim=1)
    return _numpy(changed.float().reshape(len(output), -1).mean(dim=1))
