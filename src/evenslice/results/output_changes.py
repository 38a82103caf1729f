"""How much a reversed window changes a network's output: one row of numbers for each window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from evenslice.networks import as_float64, predicted_classes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]

__all__ = ["OUTPUT_FIELDS", "SAME_OUTPUT", "as_numpy", "measure_outputs"]

OUTPUT_FIELDS = (
    "mirror_error",
    "mirror_disagreement",
    "foreground",
    "lowest_class",
    "highest_class",
    "change",
    "power",
    "level",
)
"""The fields of ``Measurements`` that ``measure_outputs`` gives."""

SAME_OUTPUT = 1e-4
"""Largest mirror error of a window that rounding may explain; deep networks have up to 1e-5 in float32."""

MOST_FEATURES = 256
"""Of an output with more numbers than this and no pixels, as many are taken, at equal distances."""


def measure_outputs(
    output: Tensor, mirrored_output: Tensor, *, classes: bool = True, tile: Sequence[int] | None = None
) -> dict[str, Floats]:
    """Measure the effect of mirroring on the outputs of a batch.

    Args:
        output: f(x) for the windows x, batch first; (B, C) and (B, C, y, x) are logits of C classes, or of one class
            against the background if C is 1; integers are class numbers; any other output has no classes.
        mirrored_output: f(x') for the mirrored windows x'.
        classes: False if the output has no classes, whatever its shape.
        tile: size (y, x) of the windows, which tells maps (B, y, x) from tokens with features (B, T, F); None for maps.

    Returns:
        The fields of ``OUTPUT_FIELDS``, (B,) each, but for the level (B, F); see ``Measurements``. An output without
        classes has no disagreement, foreground or class, one of class numbers no errors and no change: these are NaN.

    Example:
        >>> import torch
        >>> rows = measure_outputs(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 1.0]]))
        >>> rows["mirror_error"].tolist(), rows["mirror_disagreement"].tolist()
        ([0.5], [0.0])
    """
    if not classes and not output.is_floating_point():  # whole numbers, but not of classes
        output, mirrored_output = as_float64(output), as_float64(mirrored_output)
    classes = classes and (not output.is_floating_point() or output.ndim in (2, 4))
    varying = _axes_of_places(tuple(output.shape), tile)
    if output.ndim > 1 and not output.is_floating_point() and output.shape[1:].numel() == 1:
        output, mirrored_output = output.flatten(), mirrored_output.flatten()  # a class of each window
    elif varying and all(output.shape[axis] == 1 for axis in varying):
        # A single place varies over windows, as outputs without any do.
        output, mirrored_output, varying = output.flatten(1), mirrored_output.flatten(1), ()
    unknown = np.full(len(output), np.nan)
    rows = dict.fromkeys(OUTPUT_FIELDS, unknown) | {"level": unknown[:, None]}
    if output.is_floating_point():
        given, other = (part.float().reshape(len(part), -1) for part in (output, mirrored_output))
        rows["mirror_error"] = _mirror_error(given, other)
        rows |= (
            _measure_places(output, mirrored_output, varying) if varying else _measure_features(given, other)
        )
    if classes:
        found, mirrored = (predicted_classes(part, dim=1) for part in (output, mirrored_output))
        rows["mirror_disagreement"] = _part(found != mirrored)
        # Class 0 is the background of a segmentation; a classifier has none.
        whole = found.ndim == 1
        rows["foreground"] = np.ones(len(output)) if whole else _part((found != 0) | (mirrored != 0))
        both = torch.stack([found, mirrored], dim=1).flatten(1)
        rows["lowest_class"], rows["highest_class"] = (as_numpy(part) for part in both.aminmax(dim=1))
        if whole and not output.is_floating_point():
            rows["level"] = as_numpy(found)[:, None]
    return rows


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


def _measure_places(output: Tensor, mirrored: Tensor, places: tuple[int, ...]) -> dict[str, Floats]:
    """Return change, power and level of numbers that vary over places, each channel or feature around its own mean."""
    output, mirrored = as_float64(output), as_float64(mirrored)
    varying, changed = output - output.mean(dim=places, keepdim=True), output - mirrored
    change, power = (
        as_numpy(part.square().reshape(len(part), -1).mean(dim=1)) for part in (changed, varying)
    )
    return {"change": change, "power": power, "level": np.zeros((len(output), 1))}


def _measure_features(output: Tensor, mirrored: Tensor) -> dict[str, Floats]:
    """Return change, power and level of outputs (B, F) without pixels: they vary over windows, each feature by itself."""
    stride = max(1, -(-output.shape[1] // MOST_FEATURES))
    given, other = (as_numpy(part[:, ::stride]) for part in (output, mirrored))
    return {
        "change": np.mean((given - other) ** 2, axis=1),
        "power": np.mean(given**2, axis=1),
        "level": given,
    }


def _part(chosen: Tensor) -> Floats:
    """Return the part of the pixels (B,) for which something holds."""
    return as_numpy(chosen.float().reshape(len(chosen), -1).mean(dim=1))


def _mirror_error(output: Tensor, mirrored: Tensor) -> Floats:
    """Return max|f(x) - f(x')| / max|f(x)| (B,): 0 if nothing changes, NaN if only f(x) is 0."""
    change, size = (as_numpy(part.abs().amax(dim=1)) for part in (output - mirrored, output))
    error = np.divide(change, size, out=np.full_like(change, np.nan), where=size != 0)
    error[change == 0] = 0
    return error


def as_numpy(tensor: Tensor) -> Floats:
    """Return a tensor of any device as a float64 array."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)
