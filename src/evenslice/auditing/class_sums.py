"""Sums of what is explained over the pixels of each class, and how the answers to windows and mirrors differ."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice.auditing.targets import MOST_CLASSES
from evenslice.networks import as_float64
from evenslice.results import halves, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]

# The Wasserstein distance is computed from so many pixels of a map, the same for all maps of a size.
SALIENCY_SAMPLE = 4096
MOST_FEATURES = 256
"""Of an output with more numbers than this and no pixels, as many are taken, at equal distances."""


def class_count(output: Tensor, answers: Tensor | None) -> int:
    """Return C, one more than the largest class; 0 for scores. Class numbers from 256 on are one class."""
    if answers is None:
        return 0
    if output.is_floating_point():
        return min(max(output.shape[1], 2), MOST_CLASSES + 1)
    return min(int(answers.max()) + 1, MOST_CLASSES + 1)


def class_sums(values: Tensor, classes: Tensor | None, count: int) -> Floats:
    """Add values over all pixels, and over those of each class.

    Args:
        values: (batch, ...) what is explained, as ``Score.map`` returns it.
        classes: as ``Score.classes`` returns them.
        count: C.

    Returns:
        (batch, 1 + C); of classes that overlap, the first column is 0.

    Example:
        >>> class_sums(torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[[1, 0, 1]]]), 2).tolist()
        [[7.0, 2.0, 5.0]]
    """
    batch = len(values)
    exact = as_float64(values)
    if classes is None:
        whole, parts = exact.reshape(batch, -1).sum(1), exact.new_zeros(batch, count)
    elif classes.dtype == torch.bool:
        whole, parts = exact.new_zeros(batch), exact.reshape(batch, classes.shape[1], -1).sum(2)[:, :count]
    else:
        flat, numbers = exact.reshape(batch, -1), classes.reshape(batch, -1).clamp(0, max(count - 1, 0))
        whole, parts = (
            flat.sum(1),
            exact.new_zeros(batch, count).scatter_add(1, numbers.to(exact.device), flat),
        )
    return as_numpy(torch.cat([whole[:, None], parts], dim=1))


def compare_answers(answers: Tensor | None, count: int) -> dict[str, Floats]:
    """Compare the answers to m windows and to their mirrors, which follow them.

    Returns:
        ``pixels``, ``changed``, ``union`` (m, C) and ``mirror_disagreement`` (m,) of ``Measurements``.

    Example: of four pixels, one is of class 1 in both answers, and one in the second alone.
        >>> found = compare_answers(torch.tensor([[[0, 0, 1, 0]], [[0, 0, 1, 1]]]), 2)
        >>> found["changed"].tolist(), found["union"].tolist(), found["mirror_disagreement"].tolist()
        ([[0.25, 0.25]], [[0.75, 0.5]], [0.25])
    """
    if answers is None:
        raise ValueError("scores have no classes")
    half = len(answers) // 2
    given, mirrored = (part.reshape(half, -1) for part in (answers[:half], answers[half:]))
    if answers.dtype == torch.bool:
        given, mirrored = (part.reshape(half, answers.shape[1], -1)[:, :count] for part in (given, mirrored))
        one, other, both = (as_numpy(part.float().mean(2)) for part in (given, mirrored, given & mirrored))
        differ = as_numpy((given != mirrored).any(1).float().mean(1))
    else:
        same, ones = given == mirrored, torch.ones(given.shape, dtype=torch.float64, device="cpu")
        one, other, both = (
            as_numpy(ones.new_zeros(half, count).scatter_add(1, part, weight)) / given.shape[1]
            for part, weight in (
                (given.clamp(max=count - 1).cpu(), ones),
                (mirrored.clamp(max=count - 1).cpu(), ones),
                (given.clamp(max=count - 1).cpu(), same.cpu().double()),
            )
        )
        differ = as_numpy((~same).float().mean(1))
    union = one + other - both
    return {
        "pixels": (one + other) / 2,
        "changed": union - both,
        "union": union,
        "mirror_disagreement": differ,
    }


def compare_outputs(
    values: Tensor,
    tile: Sequence[int],
    *,
    scores: bool,
    numbers: bool = False,
    outputs: Tensor | None = None,
) -> dict[str, Floats]:
    """Compare what is explained of m windows with that of their mirrors, which follow them.

    Args:
        values: (2m, ...), those of the mirrors for the classes of the windows.
        tile: size (y, x) of the windows, which tells maps (batch, y, x) from tokens with features (batch, T, F).
        scores: whether the output has no classes.
        numbers: whether it has class numbers, which tell nothing but whether they are the same.
        outputs: (2m, ...) the outputs that the mirror error compares; by default the values.

    Returns:
        ``mirror_error``, ``change``, ``power`` and ``level`` of ``Measurements``.

    Example:
        >>> given = torch.tensor([[2.0, 0.0], [2.0, 1.0]])
        >>> compare_outputs(given, (8, 8), scores=True)["mirror_error"].tolist()
        [0.5]
    """
    half = len(values) // 2
    unknown = np.full(half, np.nan)
    if numbers:
        return {**dict.fromkeys(("mirror_error", "change", "power"), unknown), "level": unknown[:, None]}
    compared = values if outputs is None else outputs
    found = {
        "mirror_error": _mirror_error(
            *(part.reshape(half, -1) for part in (compared[:half], compared[half:]))
        )
    }
    axes = _axes_of_places(tuple(values.shape), tile if scores else None)
    given, mirrored = as_float64(values[:half]), as_float64(values[half:])
    if axes and any(values.shape[axis] > 1 for axis in axes):
        changed, varying = given - mirrored, given - given.mean(dim=axes, keepdim=True)
        change, power = (as_numpy(part.square().reshape(half, -1).mean(1)) for part in (changed, varying))
        return found | {"change": change, "power": power, "level": np.zeros((half, 1))}
    # A single place varies over windows, as outputs without any do.
    flat = given.reshape(half, -1)
    stride = max(1, -(-flat.shape[1] // MOST_FEATURES))
    one, other = (as_numpy(part.reshape(half, -1)[:, ::stride]) for part in (given, mirrored))
    change, power = np.mean((one - other) ** 2, axis=1), np.mean(one**2, axis=1)
    return found | {"change": change, "power": power, "level": one}


def _axes_of_places(shape: tuple[int, ...], tile: Sequence[int] | None) -> tuple[int, ...]:
    """Return the axes of an output (B, ...) along which its numbers belong to places: none, tokens, or rows and columns.

    Example:
        >>> _axes_of_places((2, 1, 64, 64), (256, 256)), _axes_of_places((2, 197, 384), (256, 256))
        ((2, 3), (1,))
    """
    if len(shape) < 3:
        return ()
    rows, columns = shape[-2:]
    if len(shape) == 3 and tile is not None and abs(rows * tile[1] - columns * tile[0]) >= max(tile):
        return (1,)
    return (len(shape) - 2, len(shape) - 1)


def _mirror_error(output: Tensor, mirrored: Tensor) -> Floats:
    """Return max|f(x) - f(x')| / max|f(x)| (B,): 0 if nothing changes, NaN if only f(x) is 0."""
    change, size = (as_numpy(part.abs().amax(dim=1)) for part in (output - mirrored, output))
    error = np.divide(change, size, out=np.full_like(change, np.nan), where=size != 0)
    error[change == 0] = 0
    return error


def as_numpy(tensor: Any) -> Floats:
    """Return a tensor of any device as a float64 array."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


def wasserstein(size: Tensor, sums: Floats) -> Floats:
    """Return the Wasserstein-1 distances (m, K) between the saliency of offsets k and -k, in units of the mean saliency.

    Each side pools the pixels of the window and of its mirror, so both sides are equal for a symmetric network. Between
    samples of equal size the distance is the mean absolute difference of their sorted values.

    Args:
        size: (2m, N, y, x) absolute attribution of windows and mirrors, in the order of the network's input.
        sums: (m, 2, N) its sums.
    """
    half, slices = sums.shape[0], sums.shape[2]
    if len(size) != 2 * half:
        return np.full((half, slices // 2), np.nan)
    pixels = size[0, 0].numel()
    chosen = torch.from_numpy(_sample(pixels)).to(size.device)
    given, mirrored = (as_numpy(part.flatten(2)[:, :, chosen]) for part in (size[:half], size[half:]))
    left, right = (np.sort(side, axis=2) for side in halves(np.concatenate([given, mirrored], axis=2)))
    mean = sums.sum(axis=(1, 2))[:, None] / (2 * slices * pixels)
    return np.minimum(ratio(np.abs(right - left).mean(axis=2), mean), slices)


@lru_cache(maxsize=8)
def _sample(pixels: int) -> NDArray[np.int64]:
    """Return the pixels of a map to compare, ascending: at random, as a regular grid misses patterns of its own period."""
    if pixels <= SALIENCY_SAMPLE:
        return np.arange(pixels)
    return np.sort(np.random.default_rng(0).choice(pixels, SALIENCY_SAMPLE, replace=False))
