"""How much each input pixel contributes to the output: one interface for every attribution method.

``attribute(module, windows)`` returns the attribution (batch, slices, y, x) together with the output that it explains.
The explained score of a window is the sum over the output's pixels of the log-odds of one class a pixel, or of other
numbers; ``evenslice.auditing.targets`` says of which.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice.auditing.methods import METHODS, Attributed, check_method, choose_baseline
from evenslice.auditing.targets import Explained, Score
from evenslice.inference import BatchSizes, BlackBox, ReadyNetwork
from evenslice.networks import full_precision, keep_generators, seed_generators

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from evenslice.auditing.targets import Target

__all__ = ["Mirrored", "attribute", "reproducible"]

_GENERATORS = threading.Lock()


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


def attribute(  # one for each option of an explanation
    module: nn.Module,
    windows: Tensor,
    *,
    method: str = "gradient",
    baseline: str | None = None,
    target: Target | Explained = "auto",
    labels: Tensor | None = None,
    only: int | Tensor | None = None,
    known: Tensor | None = None,
    predicted: Tensor | None = None,
    region: Tensor | None = None,
    seed: int = 0,
) -> Attributed:
    """Attribute the output of a network to the pixels of its input windows.

    Args:
        module: maps windows to logits (or to something that ``evenslice.networks.logits`` reduces to them). Its
            parameters should not require gradients, which would be computed for nothing.
        windows: (batch, slices, y, x), values in 0..1.
        method: one of ``METHODS``.
        baseline: "middle" or "gray": what "integrated_gradients" (by default "middle") and "occlusion" ("gray") compare a
            window with.
        target: the output that is explained; see ``evenslice.auditing.targets``.
        labels: (batch, y, x) class numbers for the target "labels".
        only: a class, or (batch,) one for each window; the score then adds up the output's pixels that are explained by
            it, and no others.
        known: the output for the windows, if an earlier attribution of them returned it, which saves the methods that
            run the network repeatedly one run.
        predicted: (batch, y, x) or (batch,), the classes that the targets "predicted" and "auto" explain, in place of those
            that the network predicts.
        region: (batch, y, x) the pixels of the windows whose output is explained; by default all.
        seed: random seed of the methods that draw samples; the global random state is left unchanged.

    Raises:
        ConfigError: the method is unknown, the network does not have the class, or labels are missing or out of range.
        ModelError: the target needs classes and the output has none, the first dimension of the output is not the
            batch, or the output has no gradient, which all methods but "occlusion" need; or the memory of the device is
            too small for a single window.

    Where memory runs out, windows are attributed in smaller batches, and methods that draw samples draw others.

    Example: the attribution of a network that is linear in its slices is its weights.
        >>> weights = torch.tensor([1.0, -2.0, 1.0]).view(1, 3, 1, 1)
        >>> network = nn.Conv2d(3, 1, 1, bias=False).requires_grad_(False)
        >>> _ = network.weight.copy_(weights)
        >>> found = attribute(network, torch.rand(1, 3, 4, 4))
        >>> found.attribution.abs().mean(dim=(0, 2, 3)).tolist()
        [1.0, 2.0, 1.0]
    """
    check_method(method)
    chosen = choose_baseline(method, baseline)
    options = {} if chosen is None else {"baseline": chosen}
    network = module.module if isinstance(module, Mirrored) else module
    batches = network.batches if isinstance(network, ReadyNetwork | BlackBox) else BatchSizes()
    explained = target if isinstance(target, Explained) else Explained(target)
    whole = Score(module, explained, labels, only, known, predicted, region)

    def compute(part: slice) -> Attributed:
        with reproducible(windows.device, seed):
            found = METHODS[method](whole.at(part), windows[part].detach(), **options)
        return Attributed(found.attribution.detach().float(), found.output)

    parts = batches.run(compute, len(windows), (method, *windows.shape[1:]))
    return Attributed(
        torch.cat([part.attribution for part in parts]), torch.cat([part.output for part in parts])
    )


@contextmanager
def reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators that Captum draws from (PyTorch's and NumPy's), and let a GPU compute float32 in full.

    Both are as before afterwards. They belong to the process, so that other threads wait.
    """
    with _GENERATORS:
        state = np.random.get_state()  # noqa: NPY002  # the generator that Captum's GradientShap uses
        with keep_generators([device]), full_precision():
            seed_generators([device], seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            try:
                yield
            finally:
                np.random.set_state(state)  # noqa: NPY002
