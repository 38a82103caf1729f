"""Attribution methods, one function each; ``METHODS`` lists them by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice._core import ConfigError, ModelError, check_known, option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from evenslice.auditing.targets import Score

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


def check_method(method: str) -> None:
    """Raise ConfigError unless there is a method of this name."""
    check_known("method", method, METHODS)


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

    return _in_one_pass(score, windows, Saliency, abs=False)


def _input_x_gradient(score: Score, windows: Tensor) -> Attributed:
    """Intensity times gradient: Captum's InputXGradient (Shrikumar et al., arXiv 1605.01713)."""
    from captum.attr import InputXGradient

    return _in_one_pass(score, windows, InputXGradient)


def _integrated_gradients(score: Score, windows: Tensor, baseline: str) -> Attributed:
    """Captum's IntegratedGradients from a baseline (Sundararajan et al., arXiv 1703.01365)."""
    from captum.attr import IntegratedGradients

    options = {"n_steps": INTEGRATION_STEPS, "internal_batch_size": len(windows)}
    return _in_many_passes(
        score, windows, IntegratedGradients, baselines=_baseline(windows, baseline), **options
    )


def _smoothgrad(score: Score, windows: Tensor) -> Attributed:
    """Mean absolute gradient under noise: Captum's NoiseTunnel over Saliency (Smilkov et al., arXiv 1706.03825)."""
    from captum.attr import NoiseTunnel, Saliency

    samples = {"nt_samples": SMOOTHGRAD_SAMPLES, "nt_samples_batch_size": 1, "stdevs": SMOOTHGRAD_NOISE}
    return _in_many_passes(
        score, windows, lambda forward: NoiseTunnel(Saliency(forward)), nt_type="smoothgrad", **samples
    )


def _gradient_shap(score: Score, windows: Tensor) -> Attributed:
    """Captum's GradientShap over uniformly gray baselines (Lundberg and Lee, arXiv 1705.07874)."""
    from captum.attr import GradientShap

    grays = windows.new_tensor(SHAP_GRAYS).view(-1, 1, 1, 1).expand(-1, *windows.shape[1:])
    options = {"n_samples": SHAP_SAMPLES, "stdevs": NO_NOISE}
    return _in_many_passes(score, windows, GradientShap, baselines=grays, **options)


@torch.no_grad()
def _occlusion(score: Score, windows: Tensor, baseline: str) -> Attributed:
    """Change of each output pixel's score when one slice is replaced by that of a baseline.

    It is what the slice adds. After Zeiler and Fergus (arXiv 1311.2901). Captum's Occlusion explains one number for each
    window, in which increases at some pixels and decreases at others cancel; here the change is kept for each output pixel.
    Where several numbers share a pixel, their absolute changes are added, with the sign of the sum.
    """
    output, classes = _run(score, windows)
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


def _in_one_pass(
    score: Score, windows: Tensor, captum_method: Callable[..., Any], **options: Any
) -> Attributed:
    """Run a Captum method that calls the network once, and keep the output of that call."""
    outputs: list[Tensor] = []

    def forward(windows: Tensor) -> Tensor:
        output = score.output(windows)
        outputs.append(output.detach())
        check_gradient(output)
        return score.map(output, score.classes(outputs[-1])).flatten(1).sum(1)

    attribution = captum_method(forward).attribute(windows.requires_grad_(), **options)
    return Attributed(attribution, outputs[0])


def check_gradient(output: Tensor) -> None:
    """Raise ModelError unless an output has a gradient."""
    if not output.requires_grad:
        raise ModelError(
            "the network's output has no gradient with respect to its input (it returns classes instead of logits, or "
            "uses no_grad); let it return logits, use the method 'occlusion', or leave the method out"
        )


def _in_many_passes(
    score: Score, windows: Tensor, captum_method: Callable[..., Any], **options: Any
) -> Attributed:
    """Run a Captum method that calls the network repeatedly, with the classes that it predicts for the windows."""
    output, classes = _run(score, windows)
    attribution = captum_method(score).attribute(
        windows.requires_grad_(), additional_forward_args=(classes,), **options
    )
    return Attributed(attribution, output)


@torch.no_grad()
def _run(score: Score, windows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the output for the windows and the classes chosen from it, which stay fixed along a path or under noise."""
    output = score.output(windows) if score.known is None else score.known
    return output, score.classes(output)


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
        return resize_to(change, plane)
    return _added(change.flatten(1)).view(-1, 1, 1).expand(-1, *plane) / plane.numel()


def resize_to(maps: Tensor, plane: Sequence[int]) -> Tensor:
    """Resize maps (batch, y, x) of an output to the plane of its windows, without mixing pixels."""
    return nn.functional.interpolate(maps[:, None].float(), size=tuple(plane), mode="nearest")[:, 0]


def _added(change: Tensor) -> Tensor:
    """Add absolute changes over dimension 1, with the sign of their sum."""
    return change.abs().sum(1).copysign(change.sum(1))
