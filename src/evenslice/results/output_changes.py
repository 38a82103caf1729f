"""How much a reversed window changes a network's output: one row of numbers for each window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evenslice.networks import predicted_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]

__all__ = ["OUTPUT_FIELDS", "measure_outputs"]

OUTPUT_FIELDS = ("mirror_error", "mirror_disagreement", "foreground", "change", "power", "level")
"""The fields of ``Measurements`` that ``measure_outputs`` gives."""


def measure_outputs(output: Tensor, mirrored_output: Tensor, *, classes: bool = True) -> dict[str, Floats]:
    """Measure the effect of mirroring on the outputs of a batch.

    Args:
        output: f(x) for the windows x, batch first; (B, C) and (B, C, y, x) are logits of C classes, or of one class
            against the background if C is 1; integers are class numbers; any other output has no classes.
        mirrored_output: f(x') for the mirrored windows x'.
        classes: False if the output has no classes, whatever its shape.

    Returns:
        The fields of ``OUTPUT_FIELDS``, (B,) each; see ``Measurements``. An output without classes has no
        disagreement and no foreground, one of class numbers nothing else: these are NaN.

    Example:
        >>> import torch
        >>> rows = measure_outputs(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 1.0]]))
        >>> rows["mirror_error"].tolist(), rows["mirror_disagreement"].tolist()
        ([0.5], [0.0])
    """
    unknown = np.full(len(output), np.nan)
    rows = dict.fromkeys(OUTPUT_FIELDS, unknown)
    if output.is_floating_point():
        given, other = (part.float().reshape(len(part), -1) for part in (output, mirrored_output))
        rows["mirror_error"] = _mirror_error(given, other)
        rows["change"] = _numpy((given - other).double().square().mean(dim=1))
        # Channels have levels of their own, which say nothing about how much the output varies.
        pixels = tuple(range(output.ndim - min(output.ndim - 1, 2), output.ndim)) if output.ndim > 2 else ()
        varying = (
            output.double() - output.double().mean(dim=pixels, keepdim=True) if pixels else output.double()
        )
        rows["power"] = _numpy(varying.square().reshape(len(output), -1).mean(dim=1))
        rows["level"] = _numpy(varying.reshape(len(output), -1).mean(dim=1))
    if classes and (not output.is_floating_point() or output.ndim in (2, 4)):
        found, mirrored = (predicted_classes(part, dim=1) for part in (output, mirrored_output))
        rows["mirror_disagreement"] = _part(found != mirrored)
        # Class 0 is the background of a segmentation; a classifier has none.
        whole = found.ndim == 1
        rows["foreground"] = np.ones(len(output)) if whole else _part((found != 0) | (mirrored != 0))
    return rows


def _part(chosen: Tensor) -> Floats:
    """Return the part of the pixels (B,) for which something holds."""
    return _numpy(chosen.float().reshape(len(chosen), -1).mean(dim=1))


def _mirror_error(output: Tensor, mirrored: Tensor) -> Floats:
    """Return max|f(x) - f(x')| / max|f(x)| (B,): 0 if nothing changes, NaN if only f(x) is 0."""
    change, size = (_numpy(part.abs().amax(dim=1)) for part in (output - mirrored, output))
    error = np.divide(change, size, out=np.full_like(change, np.nan), where=size != 0)
    error[change == 0] = 0
    return error


def _numpy(tensor: Tensor) -> Floats:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)
