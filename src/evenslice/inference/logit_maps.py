"""Maps of the logits of each class: what a network returns, checked, and the map of classes that follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn import functional

from evenslice._core import ModelError, option
from evenslice.networks import logits, predicted_classes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["class_logits", "class_map", "logit_map"]


def class_logits(network: torch.nn.Module, windows: Tensor) -> Tensor:
    """Run a network on windows (batch, slices, y, x) and return its logits as float32 (batch, classes, y, x).

    Raises:
        ModelError: the network does not return a map of logits for each window, or its convolutions cut off the border.

    Example:
        >>> import torch
        >>> class_logits(torch.nn.Conv2d(3, 2, 4, stride=4), torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
    """
    return logit_map(network(windows), len(windows), (windows.shape[-2], windows.shape[-1]))


def logit_map(returned: Any, count: int, size: tuple[int, int]) -> Tensor:
    """Return what a network returned for some windows of a size (y, x) as float32 logits (batch, classes, y, x)."""
    output = logits(returned)
    if not output.is_floating_point():
        raise ModelError(
            f"the network returns {str(output.dtype).removeprefix('torch.')}, such as class numbers; it must return "
            "logits (batch, classes, y, x)"
        )
    if output.ndim != 4 or 0 in output.shape[1:]:
        raise ModelError(
            f"the network returns an output of shape {tuple(output.shape)}; a segmentation network must return "
            "(batch, classes, y, x), at least 1 of each"
        )
    if len(output) != count:
        raise ModelError(
            f"the network returns {tuple(output.shape)} for {count} windows; the first dimension must be the batch"
        )
    output = output.float()
    if output.shape[2:] == size:
        return output
    if any(_cuts_border(*sides) for sides in zip(output.shape[2:], size, strict=True)):
        raise ModelError(
            f"the network returns {output.shape[2]} x {output.shape[3]} pixels for windows of {size[0]} x {size[1]}, so that "
            f"they have no places; pad its convolutions, or choose another size with {option('tile')}"
        )
    return functional.interpolate(output, size=size, mode="bilinear", align_corners=False)


def _cuts_border(returned: int, given: int) -> bool:
    """Return whether a side of an output has another length because of its border, and not because of a stride."""
    return abs(returned - given) > 1 and 2 * given < 3 * returned and 2 * returned < 3 * given


def class_map(output: Tensor, classes: int) -> NDArray[np.int64]:
    """Return the predicted class map (y, x) of logits (channels, y, x).

    Raises:
        ModelError: there are not as many channels as classes, or one for two classes.

    Example:
        >>> import torch
        >>> class_map(torch.tensor([[[-1.0, 2.0]]]), 2).tolist()
        [[0, 1]]
    """
    channels = len(output)
    if channels != classes and (channels, classes) != (1, 2):
        raise ModelError(
            f"the network gives {channels} classes, the labels have {classes}; build it with {option('classes', classes)}"
        )
    return predicted_classes(output, dim=0).cpu().numpy()
