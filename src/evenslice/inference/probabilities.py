"""Networks that end in a sigmoid or a softmax, and return probabilities where logits are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import ModelError
from evenslice.inference.ready_network import trial_windows
from evenslice.networks import logits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from evenslice.inference.black_boxes import BlackBox
    from evenslice.inference.ready_network import ReadyNetwork

__all__ = ["refuse_sigmoid", "refuse_softmax"]

FAR = 1e3
"""Windows of noise in -FAR..FAR drive logits out of 0..1, unless a sigmoid keeps them there."""


def refuse_sigmoid(
    network: ReadyNetwork | BlackBox, returned: Any, slices: int, tile: tuple[int, int], *, or_else: str = ""
) -> None:
    """Check that the only class of a network is told from the background by the sign of its output.

    Probabilities are above 0 everywhere, so all of a volume would be taken for foreground.

    Args:
        network: the network, or the function.
        returned: what it returned for the window of noise from ``trial_windows``.
        slices: N, the number of slices of its windows.
        tile: the size (y, x) of its windows.
        or_else: what a user can do besides, such as "; or ...".

    Raises:
        ModelError: the network has a single output channel, which varies, but stays within 0..1 whatever it is given.

    Example:
        >>> from evenslice.inference import ReadyNetwork
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.Sigmoid())
        >>> network = ReadyNetwork(model, slices=3, device="cpu", dtype="float32")
        >>> refuse_sigmoid(network, network.prepare(3, (8, 8)), 3, (8, 8))
        Traceback (most recent call last):
        ...
        evenslice.ModelError: the network Sequential returns a probability, between 0 and 1, where a logit is needed ...
    """
    output = logits(returned)
    if output.ndim < 2 or output.shape[1] != 1 or not _within(output):
        return
    try:
        with np.errstate(over="ignore"):
            found = [logits(network(window)) for window in _extreme_windows(network, slices, tile)]
    except Exception:  # noqa: BLE001  # a function may raise anything for inputs outside of 0..1
        return
    constant = all(bool((other == output[:1]).all()) for other in found)
    if not constant and all(map(_within, found)):
        raise ModelError(
            f"the network {network.name} returns a probability, between 0 and 1, where a logit is needed, whose sign tells "
            f"foreground from background; build it without its last sigmoid{or_else}"
        )


def refuse_softmax(network: ReadyNetwork | BlackBox, returned: Any) -> None:
    """Check that the outputs of a network are not probabilities already, of which another softmax makes wrong ones.

    Args:
        network: the network, or the function.
        returned: what it returned for a window.

    Raises:
        ModelError: its output channels, at least two, are nowhere negative and add up to 1 everywhere.

    Example:
        >>> from evenslice.inference import ReadyNetwork
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Softmax(1))
        >>> network = ReadyNetwork(model, slices=3, device="cpu", dtype="float32")
        >>> refuse_softmax(network, network.prepare(3, (8, 8)))
        Traceback (most recent call last):
        ...
        evenslice.ModelError: the network Sequential returns probabilities ...
    """
    output = logits(returned)
    if output.ndim < 2 or output.shape[1] < 2 or not _within(output):
        return
    rounding = output.shape[1] * torch.finfo(output.dtype).eps
    if bool(((output.float().sum(dim=1) - 1).abs() <= rounding).all()):
        raise ModelError(
            f"the network {network.name} returns probabilities, which add up to 1, where logits are needed; build it without "
            "its last softmax"
        )


def _within(output: Tensor) -> bool:
    """Return whether all numbers of an output are between 0 and 1."""
    return output.is_floating_point() and bool(((output >= 0) & (output <= 1)).all())


def _extreme_windows(
    network: ReadyNetwork | BlackBox, slices: int, tile: tuple[int, int]
) -> Iterator[Tensor]:
    """Yield windows for which logits would leave 0..1: noise of both signs far beyond, black and white."""
    noise = trial_windows(slices, tile).to(network.device)
    yield (2 * noise - 1) * FAR
    yield torch.zeros_like(noise)
    yield torch.ones_like(noise)
