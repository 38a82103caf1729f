"""How much each input pixel contributes to the output: one interface for every attribution method.

``attribute(module, windows)`` returns the attribution (batch, slices, y, x) together with the output that it explains.
The explained score of a window is the sum over the output's pixels of the logit of one class per pixel, or
the sum of all outputs without classes; the target says which.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice.auditing.methods import METHODS, Attributed, check_method
from evenslice.auditing.targets import Score

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from evenslice.auditing.targets import Target

__all__ = ["Mirrored", "attribute"]


class Mirrored(nn.Module):
    """A network that reads every window in reversed order.

    Its attribution is in the order of the slices, not in the order in which the network read them.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, windows: Tensor) -> Any:
        """Run the network on the mirrored windows (batch, slices, y, x)."""
        return self.module(windows.flip(1))


def attribute(
    module: nn.Module,
    windows: Tensor,
    *,
    method: str = "gradient",
    target: Target = "auto",
    labels: Tensor | None = None,
    only: int | None = None,
    seed: int = 0,
) -> Attributed:
    """Attribute the output of a network to the pixels of its input windows.

    Args:
        module: maps windows to logits (or to something that ``evenslice.networks.logits`` reduces to them). Its
            parameters should not require gradients, which would be computed for nothing.
        windows: (batch, slices, y, x), values in 0..1.
        method: one of ``METHODS``.
        target: the output that is explained; see ``evenslice.auditing.targets.Target``.
        labels: (batch, y, x) class numbers for the target "labels".
        only: a class; the score then adds up the output's pixels that are explained by it, and no others.
        seed: random seed of the methods that draw samples; the global random state is left unchanged.

    Raises:
        ConfigError: the method is unknown, the network does not have the class, or labels are missing or out of range.
        ModelError: the target needs classes and the output has none, the first dimension of the output is not the
            batch, or the output has no gradient, which all methods but "occlusion" need.

    Example: the attribution of a network that is linear in its slices is its weights.
        >>> weights = torch.tensor([1.0, -2.0, 1.0]).view(1, 3, 1, 1)
        >>> network = nn.Conv2d(3, 1, 1, bias=False).requires_grad_(False)
        >>> _ = network.weight.copy_(weights)
        >>> found = attribute(network, torch.rand(1, 3, 4, 4))
        >>> found.attribution.abs().mean(dim=(0, 2, 3)).tolist()
        [1.0, 2.0, 1.0]
    """
    check_method(method)
    with _seeded(windows.device, seed):
        found = METHODS[method](Score(module, target, labels, only), windows.detach())
    return Attributed(found.attribution.detach().float(), found.output)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators that Captum draws from (PyTorch's and NumPy's) and restore them afterwards."""
    state = np.random.get_state()  # noqa: NPY002  # the generator that Captum's GradientShap uses
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
