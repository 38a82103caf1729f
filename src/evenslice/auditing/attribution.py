"""How much each input pixel contributes to the output: one interface for every attribution method.

``attribute(module, windows)`` returns the attribution (batch, slices, y, x) together with the output that it explains.
The explained score of a window is the sum over the output's pixels of the logit of one class per pixel, or
the sum of all outputs without classes; the target says which.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice.auditing.methods import METHODS, Attributed, check_gradient, check_method
from evenslice.auditing.targets import Score, classes_for_mirrors
from evenslice.inference import BatchSizes, BlackBox, ReadyNetwork, out_of_memory
from evenslice.networks import full_precision, keep_generators, seed_generators

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from evenslice.auditing.targets import Target

__all__ = ["Gradients", "Mirrored", "attribute"]

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


def attribute(  # noqa: PLR0913  # one for each option of an explanation
    module: nn.Module,
    windows: Tensor,
    *,
    method: str = "gradient",
    target: Target = "auto",
    labels: Tensor | None = None,
    only: int | Tensor | None = None,
    known: Tensor | None = None,
    predicted: Tensor | None = None,
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
        only: a class, or (batch,) one for each window; the score then adds up the output's pixels that are explained by
            it, and no others.
        known: the output for the windows, if an earlier attribution of them returned it, which saves the methods that
            run the network repeatedly one run.
        predicted: (batch, y, x) or (batch,), the classes that the targets "predicted" and "auto" explain, in place of those
            that the network predicts.
        seed: random seed of the methods that draw samples; the global random state is left unchanged.

    Raises:
        ConfigError: the method is unknown, the network does not have the class, or labels are missing or out of range.
        ModelError: the target needs classes and the output has none, the first dimension of the output is not the
            batch, or the output has no gradient, which all methods but "occlusion" need; or the memory of the device is
            too small for a single window.

    Where memory runs out, windows are attributed in smaller batches, and methods that draw samples draw others. What
    is not finite in float16 or bfloat16 is computed again in float32.

    Example: the attribution of a network that is linear in its slices is its weights.
        >>> weights = torch.tensor([1.0, -2.0, 1.0]).view(1, 3, 1, 1)
        >>> network = nn.Conv2d(3, 1, 1, bias=False).requires_grad_(False)
        >>> _ = network.weight.copy_(weights)
        >>> found = attribute(network, torch.rand(1, 3, 4, 4))
        >>> found.attribution.abs().mean(dim=(0, 2, 3)).tolist()
        [1.0, 2.0, 1.0]
    """
    check_method(method)
    network = module.module if isinstance(module, Mirrored) else module
    batches = network.batches if isinstance(network, ReadyNetwork | BlackBox) else BatchSizes()

    def compute(module: nn.Module, part: slice) -> Attributed:
        labels_of, known_of, classes = (
            None if item is None else item[part] for item in (labels, known, predicted)
        )
        only_of = only[part] if isinstance(only, torch.Tensor) else only
        with _reproducible(windows.device, seed):
            found = METHODS[method](
                Score(module, target, labels_of, only_of, known_of, classes), windows[part].detach()
            )
        return Attributed(found.attribution.detach().float(), found.output)

    def in_batches(module: nn.Module, dtype: torch.dtype | None) -> Attributed:
        kind = (method, dtype, *windows.shape[1:])
        return _joined(batches.run(partial(compute, module), len(windows), kind))

    if not isinstance(network, ReadyNetwork):
        return in_batches(module, None)
    found = in_batches(module, network.dtype)
    if network.dtype != torch.float32 and not _is_finite(found):
        exact = network.in_precision(torch.float32)
        found = in_batches(Mirrored(exact) if isinstance(module, Mirrored) else exact, torch.float32)
    return found


def _is_finite(found: Attributed) -> bool:
    return all(bool(part.isfinite().all()) for part in (found.attribution, found.output))


def _joined(parts: list[Attributed]) -> Attributed:
    """Join what was found for the parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    return Attributed(
        torch.cat([part.attribution for part in parts]), torch.cat([part.output for part in parts])
    )


class Gradients:
    """What the method "gradient" finds for several scores of the same windows, in one forward pass.

    Its memory is that of the pass, and is held as long as this object. Where it runs out, each score takes passes of its
    own, as with ``attribute``.

    Args:
        module: as for ``attribute``; so are most of the rest.
        paired: the second half of the windows are the mirrors of the first, and are explained by their classes.

    Example: the score of the pixels that a single logit calls background, and that of those it calls foreground.
        >>> network = nn.Conv2d(3, 1, 1, bias=False).requires_grad_(False)
        >>> windows = torch.rand(1, 3, 8, 8) - 0.5
        >>> gradients = Gradients(network, windows, target="predicted", labels=None, seed=0)
        >>> whole, *classes = (gradients.explain(only).attribution for only in (None, 0, 1))
        >>> torch.equal(whole, sum(classes)), torch.equal(whole, attribute(network, windows).attribution)
        (True, True)
    """

    def __init__(
        self,
        module: nn.Module,
        windows: Tensor,
        *,
        target: Target,
        labels: Tensor | None,
        seed: int,
        paired: bool = False,
    ) -> None:
        self._score, self._windows = Score(module, target, labels), windows.detach().requires_grad_()
        self._seed, self._paired = seed, paired
        self._output: Tensor | None = None
        try:
            with _reproducible(windows.device, seed):
                self._output = self._score.output(self._windows)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        else:
            check_gradient(self._output)
            if paired:
                classes = classes_for_mirrors(target, self._output[: len(windows) // 2])
                self._score = replace(
                    self._score, predicted=None if classes is None else torch.cat([classes, classes])
                )

    def explain(self, only: int | Tensor | None = None) -> Attributed:
        """Attribute the whole output, or the pixels that are explained by one class, or by one for each window."""
        if self._output is not None:
            try:
                return self._differentiate(self._output, only)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            self._output = None
        count = len(self._windows) // 2 if self._paired else len(self._windows)
        given = self._explain_again(slice(count), only, None)
        if not self._paired:
            return given
        classes = classes_for_mirrors(self._score.target, given.output)
        return _joined([given, self._explain_again(slice(count, None), only, classes)])

    def _explain_again(self, part: slice, only: int | Tensor | None, predicted: Tensor | None) -> Attributed:
        """Attribute some of the windows in passes of their own."""
        score = self._score
        return attribute(
            score.module,
            self._windows[part],
            target=score.target,
            labels=None if score.labels is None else score.labels[part],
            only=only[part] if isinstance(only, torch.Tensor) else only,
            predicted=predicted,
            seed=self._seed,
        )

    def _differentiate(self, output: Tensor, only: int | Tensor | None) -> Attributed:
        detached, score = output.detach(), replace(self._score, only=only)
        explained = score.map(output, score.classes(detached)).sum()
        with full_precision():
            (gradient,) = torch.autograd.grad(explained, self._windows, retain_graph=True)
        return Attributed(gradient.float(), detached)


@contextmanager
def _reproducible(device: torch.device, seed: int) -> Iterator[None]:
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
