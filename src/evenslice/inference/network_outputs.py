"""What networks return for windows: maps of the logits of each class, checked, and probabilities where logits are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from evenslice._core import ModelError, option
from evenslice.inference.ready_networks import BlackBox, trial_windows
from evenslice.networks import PROBABILITY, final_activation, logits, predicted_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.inference.ready_networks import ReadyNetwork

__all__ = [
    "class_logits",
    "class_map",
    "holds_probabilities",
    "logit_map",
    "refuse_probabilities",
]


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


FAR = 1e3
"""Windows of noise in -FAR..FAR drive a function that ends in a sigmoid to both of its ends."""

NEAR_END = 0.01

SOFTMAX_ROUNDING = 0.01
"""How far a sum of probabilities may be from 1 in half precision; that of logits is hardly near it everywhere."""


def refuse_probabilities(
    network: ReadyNetwork | BlackBox, returned: Any, slices: int, tile: tuple[int, int]
) -> None:
    """Check that a network returns logits.

    Of a single probability, which is above 0 everywhere, all of a volume would be taken for foreground; of several, a
    softmax makes wrong ones. Of a network, the graph of its output tells; of a function, that its values add up to 1, or
    stay between 0 and 1 and are driven to both ends. What neither tells passes.

    Args:
        network: the network, or the function.
        returned: what it returned for the window of noise from ``trial_windows``.
        slices: N, the number of slices of its windows.
        tile: the size (y, x) of its windows.

    Raises:
        ModelError: its output channels are probabilities.

    Example:
        >>> from evenslice.inference import ReadyNetwork
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.Sigmoid())
        >>> network = ReadyNetwork(model, slices=3, device="cpu", dtype="float32")
        >>> refuse_probabilities(network, network.prepare(3, (8, 8)), 3, (8, 8))
        Traceback (most recent call last):
        ...
        evenslice.ModelError: the network Sequential returns a probability, between 0 and 1, where a logit is needed ...
    """
    output = logits(returned)
    kind = holds_probabilities(network, output, slices, tile)
    if kind is None:
        return
    if output.shape[1] == 1:
        raise ModelError(f"the network {network.name} {PROBABILITY}")
    if kind == "softmax":
        raise ModelError(
            f"the network {network.name} returns probabilities, which add up to 1, where logits are needed; build it without "
            "its last softmax"
        )
    raise ModelError(
        f"the network {network.name} returns a probability of each class by itself, where logits of a softmax are "
        "needed; segment without probabilities, or build it without its last sigmoid if a softmax is what it was "
        "trained with"
    )


def holds_probabilities(
    network: ReadyNetwork | BlackBox, output: Tensor, slices: int, tile: tuple[int, int]
) -> Literal["softmax", "sigmoid"] | None:
    """Tell from the values of an output whether they are probabilities, and of which kind; None for logits.

    Args:
        network: the network, or the function.
        output: for the window of noise from ``trial_windows``, (batch, channels) or (batch, channels, y, x).
        slices: N, the number of slices of its windows.
        tile: the size (y, x) of its windows.
    """
    if not _within(output):
        return None
    if output.shape[1] > 1 and bool(((output.float().sum(dim=1) - 1).abs() <= SOFTMAX_ROUNDING).all()):
        return "softmax"
    windows = trial_windows(slices, tile).to(network.device)
    if isinstance(network, BlackBox):
        return "sigmoid" if _is_probability(output) and _is_driven_to_both_ends(network, windows) else None
    return "sigmoid" if _ends_in_sigmoid(network, windows) else None


def _within(output: Tensor) -> bool:
    """Return whether all numbers of an output are between 0 and 1."""
    return output.is_floating_point() and bool(((output >= 0) & (output <= 1)).all())


def _is_probability(output: Tensor) -> bool:
    """Return whether all numbers of an output are between 0 and 1 and none is 0, which a mask or a clipped output has."""
    return _within(output) and bool((output > 0).all())


def _ends_in_sigmoid(network: ReadyNetwork | BlackBox, windows: Tensor) -> bool:
    with torch.enable_grad():
        return final_activation(logits(network(windows.requires_grad_()))) == "sigmoid"


def _is_driven_to_both_ends(network: ReadyNetwork | BlackBox, windows: Tensor) -> bool:
    """Return whether a function gives a map in 0..1, near both of its ends, for noise far beyond 0..1."""
    try:
        with np.errstate(over="ignore"):
            output = logits(network((2 * windows - 1) * FAR))
    except Exception:  # noqa: BLE001  # a function may raise anything for inputs outside of 0..1
        return False
    return (
        output.ndim == 4 and _within(output) and bool(output.min() < NEAR_END and output.max() > 1 - NEAR_END)
    )
