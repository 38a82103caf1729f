"""How much each input pixel contributes to the output: the attribution methods, and one interface for all of them.

``attribute(module, windows)`` returns the attribution (batch, slices, y, x) together with the output that it explains.
The explained score of a window is the sum over the output's pixels of the log-odds of one class a pixel, or of other
numbers; ``evenslice.auditing.targets`` says of which. ``METHODS`` lists the methods by name.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import nn

from evenslice._core import ConfigError, ModelError, check_known, option
from evenslice.auditing.targets import Explained, Score
from evenslice.inference import (
    BlackBox,
    ReadyNetwork,
)
from evenslice.networks import (
    full_precision,
    keep_generators,
    seed_generators,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from evenslice.auditing.targets import Target

    Function: TypeAlias = Callable[[Any], Any]

# Captum draws noise in the precision of these numbers; for numbers of Python it is the default of PyTorch, which may be another.
SMOOTHGRAD_SAMPLES, SMOOTHGRAD_NOISE = 8, (np.float32(0.1),)
NO_NOISE = (np.float32(0),)
SHAP_SAMPLES, SHAP_GRAYS = 8, (0.0, 0.25, 0.5, 0.75, 1.0)
INTEGRATION_STEPS = 16

BASELINES = {"integrated_gradients": "middle", "occlusion": "gray"}
"""The methods that compare a window with a baseline, and the one that each takes by default."""


@dataclass(frozen=True)
class Attributed:
    """An attribution and the output it explains.

    Attributes:
        attribution: (batch, slices, y, x) attribution, float32; signed, except that of "smoothgrad".
        output: the network's logits, detached: (batch, classes, y, x), (batch, classes) or any other shape; int64 where
            they are class numbers.
    """

    attribution: Tensor
    output: Tensor


def choose_baseline(method: str, baseline: str | None) -> str | None:
    """Return the baseline of a method: what it takes by default, or the one that was asked for.

    Raises:
        ConfigError: there is no such baseline, or the method has none.

    Example:
        >>> choose_baseline("integrated_gradients", None), choose_baseline("gradient", None)
        ('middle', None)
    """
    if baseline is None:
        return BASELINES.get(method)
    check_known("baseline", baseline, ("middle", "gray"))
    if method not in BASELINES:
        raise ConfigError(
            f"{option('baseline', baseline)}: {method} has none; leave it out, or use the method {' or '.join(BASELINES)}"
        )
    return baseline


def choose_map(method: str | None, baseline: str | None, *, gradient: bool) -> tuple[str, str | None]:
    """Return the method and the baseline of a map; by default what planted evidence found best (docs/planted-evidence.md)."""
    if method is None:
        method, baseline = "integrated_gradients" if gradient else "occlusion", baseline or "middle"
    return method, choose_baseline(method, baseline)


# Each method maps (score, windows) to the attribution and the output for the windows; some take a baseline.


def _gradient(score: Score, windows: Tensor) -> Attributed:
    """Gradient of the score: Captum's Saliency (Simonyan et al., arXiv 1312.6034)."""
    from captum.attr import Saliency

    return _by_captum(Saliency, score, windows, abs=False)


def _input_x_gradient(score: Score, windows: Tensor) -> Attributed:
    """Intensity times gradient: Captum's InputXGradient (Shrikumar et al., arXiv 1605.01713)."""
    from captum.attr import InputXGradient

    return _by_captum(InputXGradient, score, windows)


def _integrated_gradients(score: Score, windows: Tensor, baseline: str) -> Attributed:
    """Captum's IntegratedGradients from a baseline (Sundararajan et al., arXiv 1703.01365)."""
    from captum.attr import IntegratedGradients

    options = {"n_steps": INTEGRATION_STEPS, "internal_batch_size": len(windows)}
    return _by_captum(IntegratedGradients, score, windows, baselines=_baseline(windows, baseline), **options)


def _smoothgrad(score: Score, windows: Tensor) -> Attributed:
    """Mean absolute gradient under noise: Captum's NoiseTunnel over Saliency (Smilkov et al., arXiv 1706.03825)."""
    from captum.attr import NoiseTunnel, Saliency

    samples = {"nt_samples": SMOOTHGRAD_SAMPLES, "nt_samples_batch_size": 1, "stdevs": SMOOTHGRAD_NOISE}
    return _by_captum(
        lambda forward: NoiseTunnel(Saliency(forward)), score, windows, nt_type="smoothgrad", **samples
    )


def _gradient_shap(score: Score, windows: Tensor) -> Attributed:
    """Captum's GradientShap over uniformly gray baselines (Lundberg and Lee, arXiv 1705.07874)."""
    from captum.attr import GradientShap

    grays = windows.new_tensor(SHAP_GRAYS).view(-1, 1, 1, 1).expand(-1, *windows.shape[1:])
    options = {"n_samples": SHAP_SAMPLES, "stdevs": NO_NOISE}
    return _by_captum(GradientShap, score, windows, baselines=grays, **options)


def _by_captum(method: Callable[[Score], Any], score: Score, windows: Tensor, **options: Any) -> Attributed:
    """Run a Captum method with the classes that are chosen for the windows, which stay fixed along a path or under noise."""
    output = score.output(windows.requires_grad_())
    if not output.requires_grad:
        raise ModelError(
            "the network's output has no gradient with respect to its input (it returns classes instead of logits, or "
            "uses no_grad); let it return logits, use the method 'occlusion', or leave the method out"
        )
    output = output.detach()
    given = {"additional_forward_args": (score.classes(output),), **options}
    return Attributed(method(score).attribute(windows, **given), output)


@torch.no_grad()
def _occlusion(score: Score, windows: Tensor, baseline: str) -> Attributed:
    """Change of each output pixel's score when one slice is replaced by that of a baseline.

    It is what the slice adds. After Zeiler and Fergus (arXiv 1311.2901). Captum's Occlusion explains one number for each
    window, in which increases at some pixels and decreases at others cancel; here the change is kept for each output pixel.
    Where several numbers share a pixel, their absolute changes are added, with the sign of the sum.
    """
    output = score.output(windows)
    classes = score.classes(output)
    whole, replacement = score.map(output, classes), _baseline(windows, baseline)
    changes = []
    for k in range(windows.shape[1]):
        occluded = windows.clone()
        occluded[:, k] = replacement[:, k]
        change = whole - score.map(score.output(occluded), classes)
        changes.append(_over_plane(change, windows.shape[2:]))
    return Attributed(torch.stack(changes, dim=1), output)


METHODS: dict[str, Callable[..., Attributed]] = {
    "gradient": _gradient,
    "input_x_gradient": _input_x_gradient,
    "integrated_gradients": _integrated_gradients,
    "smoothgrad": _smoothgrad,
    "gradient_shap": _gradient_shap,
    "occlusion": _occlusion,
}


def _baseline(windows: Tensor, name: str) -> Tensor:
    """Return windows in which nothing is seen, and no slice is favoured.

    "gray" is each window's mean; in "middle", all slices are the middle one: the neighbours then add nothing to it.
    """
    if name == "middle":
        return windows[:, windows.shape[1] // 2, None].expand_as(windows)
    return windows.mean(dim=(1, 2, 3), keepdim=True).expand_as(windows)


def _over_plane(change: Tensor, plane: torch.Size) -> Tensor:
    """Map an output's change to the window's plane: a map is resized, anything else is summed and spread evenly."""
    if change.ndim == 4:
        change = _added(change)
    if change.ndim == 3:
        return nn.functional.interpolate(change[:, None].float(), size=tuple(plane), mode="nearest")[:, 0]
    return _added(change.flatten(1)).view(-1, 1, 1).expand(-1, *plane) / plane.numel()


def _added(change: Tensor) -> Tensor:
    """Add absolute changes over dimension 1, with the sign of their sum."""
    return change.abs().sum(1).copysign(change.sum(1))


def check_method_of(model: nn.Module | Function, method: str | None) -> None:
    """Raise ConfigError unless a network or function can be explained by a method."""
    if method is None:
        return
    check_known("method", method, METHODS)
    if not isinstance(model, nn.Module) and method != "occlusion":
        raise ConfigError(
            f"{option('method', method)}: needs gradients, which only a torch.nn.Module has; use the method 'occlusion', "
            "or leave it out"
        )


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
        predicted: (batch, y, x) or (batch,), the classes that the targets "predicted" and "auto" explain, in place of those
            that the network predicts.
        region: (batch, y, x) the pixels of the windows whose output is explained; by default all.
        seed: random seed of the methods that draw samples; the global random state is left unchanged.

    Raises:
        ConfigError: the method is unknown, the network does not have the class, or labels are missing or out of range.
        ModelError: the target needs classes and the output has none, the first dimension of the output is not the
            batch, or the output has no gradient, which all methods but "occlusion" need; or the memory of the device is
            too small for a single window.

    Where the memory of a ``ReadyNetwork`` runs out, windows are attributed in smaller batches, and methods that draw samples
    draw others.

    Example: the attribution of a network that is linear in its slices is its weights.
        >>> weights = torch.tensor([1.0, -2.0, 1.0]).view(1, 3, 1, 1)
        >>> network = nn.Conv2d(3, 1, 1, bias=False).requires_grad_(False)
        >>> _ = network.weight.copy_(weights)
        >>> found = attribute(network, torch.rand(1, 3, 4, 4))
        >>> found.attribution.abs().mean(dim=(0, 2, 3)).tolist()
        [1.0, 2.0, 1.0]
    """
    check_known("method", method, METHODS)
    chosen = choose_baseline(method, baseline)
    options = {} if chosen is None else {"baseline": chosen}
    network = module.module if isinstance(module, Mirrored) else module
    explained = target if isinstance(target, Explained) else Explained(target)
    whole = Score(module, explained, labels, only, predicted, region)

    def compute(part: slice) -> Attributed:
        with reproducible(windows.device, seed):
            found = METHODS[method](whole.at(part), windows[part].detach(), **options)
        return Attributed(found.attribution.detach().float(), found.output)

    if not isinstance(network, ReadyNetwork | BlackBox):
        return compute(slice(len(windows)))
    parts = network.batches.run(compute, len(windows), (method, *windows.shape[1:]))
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
