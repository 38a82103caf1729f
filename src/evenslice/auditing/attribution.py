"""How much each input pixel moved the output: one contract for every method.

``attribute(module, windows)`` returns the absolute attribution (batch, slices, y, x) together with the output that it
explains. The explained score of a window is the sum over the output's pixels of the logit of one class per pixel, or
the sum of all outputs where there are no classes; the target says which.

Floating-point outputs of shape (batch, classes) and (batch, classes, y, x) have classes. Whole numbers of shape
(batch,), (batch, 1), (batch, y, x) or (batch, 1, y, x) are class numbers, as a black box may return them: the score of
a pixel is then 1 where it has the class of the target, and else 0. Any other output has no classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import nn

from evenslice._core import ConfigError, ModelError, nearest, option
from evenslice.networks import logits, predicted_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

__all__ = [
    "METHODS",
    "Attributed",
    "Mirrored",
    "Target",
    "attribute",
    "check_method",
    "parse_target",
    "settle_target",
]

Target = int | Literal["auto", "predicted", "labels", "sum"]
"""What is explained at each output pixel.

- "auto": "predicted" where the output has classes, "sum" where it has none.
- "predicted": the class that the network predicts there (a single logit l counts as two classes with -l and l).
- a number: that class, everywhere.
- "labels": the class of the label map.
- "sum": no class; the plain sum of all outputs, such as depths, features or the scores of detections.
"""

_NAMED_TARGETS: tuple[Literal["auto", "predicted", "labels", "sum"], ...] = (
    "auto",
    "predicted",
    "labels",
    "sum",
)

SMOOTHGRAD_SAMPLES, SMOOTHGRAD_NOISE = 8, 0.1
SHAP_SAMPLES, SHAP_GRAYS = 8, (0.0, 0.25, 0.5, 0.75, 1.0)
INTEGRATION_STEPS = 16


@dataclass(frozen=True)
class Attributed:
    """An attribution and the output that it explains.

    Attributes:
        attribution: (batch, slices, y, x) absolute attribution, float32, at least 0.
        output: the network's logits, detached: (batch, classes, y, x), (batch, classes) or any other shape; int64 where
            they are class numbers.
    """

    attribution: Tensor
    output: Tensor


class Mirrored(nn.Module):
    """A network that reads every window in reversed order.

    Its attribution stands in the order of the slices, not in the order in which the network read them.
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
    seed: int = 0,
) -> Attributed:
    """Attribute the output of a network to the pixels of its input windows.

    Args:
        module: maps windows to logits (or to something that ``evenslice.networks.models.logits`` reduces to them). Its
            parameters should not require gradients: nothing is gained by computing them.
        windows: (batch, slices, y, x), values in 0..1.
        method: one of ``METHODS``.
        target: what is explained at each output pixel.
        labels: (batch, y, x) class numbers for the target "labels".
        seed: of the methods that draw samples; the global random state is left alone.

    Raises:
        ConfigError: an unknown method, a class that the network does not have, labels missing or out of range.
        ModelError: the target needs classes and the output has none; the output has no row for each window; or it does
            not follow the input by a gradient, which all methods but "occlusion" need.

    Example: a network that is linear in its slices, whose attribution is its weights.
        >>> weights = torch.tensor([1.0, -2.0, 1.0]).view(1, 3, 1, 1)
        >>> network = nn.Conv2d(3, 1, 1, bias=False).requires_grad_(False)
        >>> _ = network.weight.copy_(weights)
        >>> found = attribute(network, torch.rand(1, 3, 4, 4))
        >>> found.attribution.mean(dim=(0, 2, 3)).tolist()
        [1.0, 2.0, 1.0]
    """
    check_method(method)
    with _seeded(windows.device, seed):
        found = METHODS[method](_Score(module, target, labels), windows.detach())
    return Attributed(found.attribution.detach().abs().float(), found.output)


def check_method(method: str) -> None:
    """Raise ConfigError unless there is a method of this name."""
    if method not in METHODS:
        raise ConfigError(f"method {method!r}: {nearest(method, METHODS)}")


def parse_target(text: str) -> Target:
    """Read a target as a user writes it: auto, predicted, labels, sum or a class number.

    Example:
        >>> parse_target("2"), parse_target("sum")
        (2, 'sum')
    """
    if text.isdecimal():
        return int(text)
    for name in _NAMED_TARGETS:
        if text == name:
            return name
    raise ConfigError(f"target {text!r}: {nearest(text, _NAMED_TARGETS)}, or the number of a class")


def settle_target(target: Target, returned: Any) -> Target:
    """Return the target that "auto" stands for, seen from what a network returned for windows; check any other.

    Args:
        target: as the user gave it.
        returned: what the network returned, before it is reduced by ``evenslice.networks.models.logits``.

    Raises:
        ModelError: the target needs classes and the output has none.

    Example:
        >>> settle_target("auto", torch.zeros(1, 2, 8, 8)), settle_target("auto", torch.zeros(1, 8, 8))
        ('predicted', 'sum')
        >>> settle_target("auto", [{"boxes": torch.zeros(1, 4), "scores": torch.ones(1)}])
        'sum'
    """
    if _detections(returned) is None:
        output = _plain(logits(returned))
        named, given = _has_classes(output), f"{tuple(output.shape)}"
    else:
        named, given = False, "detections, whose scores have no common classes"
    if target == "auto":
        return "predicted" if named else "sum"
    if target != "sum" and not named:
        raise _no_classes(target, given)
    return target


def _no_classes(target: Target, given: str) -> ModelError:
    return ModelError(
        f"target {target!r} needs logits of shape (batch, classes) or (batch, classes, y, x), the network gives {given};"
        " use the target 'sum'"
    )


def _has_classes(output: Tensor) -> bool:
    return not output.is_floating_point() or output.ndim in (2, 4)


def _plain(output: Tensor) -> Tensor:
    """Return an output in float32, or in int64 where it holds class numbers: (batch,) or (batch, y, x)."""
    if output.is_floating_point():
        return output.float()
    classes = output.squeeze(1) if output.ndim in (2, 4) and output.shape[1] == 1 else output
    return classes.long() if classes.ndim in (1, 3) else output.float()


def _detections(returned: Any) -> list[Mapping[str, Any]] | None:
    """Return what a network returned as a list with the detections of each window; None where they are none."""
    if isinstance(returned, list | tuple) and returned:
        found = [item for item in returned if isinstance(item, Mapping) and "scores" in item]
        return found if len(found) == len(returned) else None
    return None


@dataclass(frozen=True)
class _Score:
    """The number that an attribution explains, as a function of the window."""

    module: nn.Module
    target: Target
    labels: Tensor | None

    def output(self, windows: Tensor) -> Tensor:
        returned = self.module(windows)
        output = _plain(logits(returned))
        if output.ndim == 0 or len(output) != len(windows):
            raise ModelError(
                f"the network gives {tuple(output.shape)} for {len(windows)} windows; the first dimension has to be that "
                "of the windows"
            )
        if windows.requires_grad and not output.requires_grad and _detected_nothing(returned):
            output = (
                output + 0 * windows.sum()
            )  # nothing detected is no broken graph, but a score of 0 without slope
        return output

    def __call__(self, windows: Tensor, classes: Tensor | None) -> Tensor:
        """Return the score (batch,) of windows, for classes that were chosen before."""
        return self.map(self.output(windows), classes).flatten(1).sum(1)

    def map(self, output: Tensor, classes: Tensor | None) -> Tensor:
        """Return what each output pixel adds to the score: (batch, y, x), (batch, 1) or, without classes, the output."""
        if classes is None:
            return output.float().unsqueeze(-1) if output.ndim == 1 else output.float()
        if not output.is_floating_point():
            kept = (output == classes).float()
            return kept.unsqueeze(1) if kept.ndim == 1 else kept
        if output.shape[1] == 1:
            output = torch.cat([-output, output], dim=1)
        picked = output.gather(1, classes.unsqueeze(1)).squeeze(1)
        return picked if output.ndim == 4 else picked.unsqueeze(1)

    def classes(self, output: Tensor) -> Tensor | None:
        """Choose the class to explain at each pixel of an output: (batch, y, x), (batch,) or None for the plain sum."""
        if self.target == "sum" or (self.target == "auto" and not _has_classes(output)):
            return None
        if not _has_classes(output):
            raise _no_classes(self.target, f"{tuple(output.shape)}")
        if self.target in ("auto", "predicted"):
            return predicted_classes(output, dim=1)
        count = max(output.shape[1], 2) if output.is_floating_point() else None
        if self.target == "labels":
            return _labels_for(output, self.labels, count)
        number = cast("int", self.target)
        if count is not None and number >= count:
            raise ConfigError(f"target {number}: the network has the classes 0 to {count - 1}")
        return torch.full_like(predicted_classes(output, dim=1), number)


def _detected_nothing(returned: Any) -> bool:
    found = _detections(returned)
    return found is not None and not any(len(item["scores"]) for item in found)


def _labels_for(output: Tensor, labels: Tensor | None, count: int | None) -> Tensor:
    if labels is None:
        raise ConfigError(f"target 'labels' needs label volumes; give them as {option('labels')}")
    if output.ndim < 3:
        raise ModelError(
            f"target 'labels' needs an output for each pixel, the network gives {tuple(output.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if count is not None and (low < 0 or high >= count):
        raise ConfigError(
            f"the labels hold values from {low} to {high}, the network has the classes 0 to {count - 1}"
        )
    resized = nn.functional.interpolate(labels[:, None].float(), size=output.shape[-2:], mode="nearest")
    return resized[:, 0].long()


# One function a method: (score, windows) to the signed or absolute attribution and the output on the windows.


def _gradient(score: _Score, windows: Tensor) -> Attributed:
    """Gradient of the score: Captum's Saliency (Simonyan et al., arXiv 1312.6034)."""
    from captum.attr import Saliency

    return _in_one_pass(score, windows, Saliency)


def _input_x_gradient(score: _Score, windows: Tensor) -> Attributed:
    """Intensity times gradient: Captum's InputXGradient (Shrikumar et al., arXiv 1605.01713)."""
    from captum.attr import InputXGradient

    return _in_one_pass(score, windows, InputXGradient)


def _integrated_gradients(score: _Score, windows: Tensor) -> Attributed:
    """Captum's IntegratedGradients from the window's mean gray (Sundararajan et al., arXiv 1703.01365)."""
    from captum.attr import IntegratedGradients

    output, classes = _run(score, windows)
    attribution: Tensor = IntegratedGradients(score).attribute(
        windows,
        baselines=_mean_gray(windows),
        n_steps=INTEGRATION_STEPS,
        internal_batch_size=len(windows),
        additional_forward_args=(classes,),
    )
    return Attributed(attribution, output)


def _smoothgrad(score: _Score, windows: Tensor) -> Attributed:
    """Mean absolute gradient under noise: Captum's NoiseTunnel over Saliency (Smilkov et al., arXiv 1706.03825)."""
    from captum.attr import NoiseTunnel, Saliency

    output, classes = _run(score, windows)
    attribution: Tensor = NoiseTunnel(Saliency(score)).attribute(
        windows.requires_grad_(),
        nt_type="smoothgrad",
        nt_samples=SMOOTHGRAD_SAMPLES,
        nt_samples_batch_size=1,
        stdevs=SMOOTHGRAD_NOISE,
        additional_forward_args=(classes,),
    )
    return Attributed(attribution, output)


def _gradient_shap(score: _Score, windows: Tensor) -> Attributed:
    """Captum's GradientShap over uniformly gray baselines (Lundberg and Lee, arXiv 1705.07874)."""
    from captum.attr import GradientShap

    output, classes = _run(score, windows)
    grays = windows.new_tensor(SHAP_GRAYS).view(-1, 1, 1, 1).expand(-1, *windows.shape[1:])
    attribution: Tensor = GradientShap(score).attribute(
        windows.requires_grad_(), baselines=grays, n_samples=SHAP_SAMPLES, additional_forward_args=(classes,)
    )
    return Attributed(attribution, output)


@torch.no_grad()
def _occlusion(score: _Score, windows: Tensor) -> Attributed:
    """Change of each output pixel's score when one slice is replaced by the window's mean gray.

    After Zeiler and Fergus (arXiv 1311.2901). Captum's Occlusion explains one number for each window, in which rises at
    some pixels and falls at others cancel; here the change is kept for each output pixel.
    """
    output, classes = _run(score, windows)
    whole, gray = score.map(output, classes), _mean_gray(windows)
    changes = []
    for k in range(windows.shape[1]):
        occluded = windows.clone()
        occluded[:, k] = gray[:, k]
        change = (score.map(score.output(occluded), classes) - whole).abs()
        changes.append(_over_plane(change, windows.shape[2:]))
    return Attributed(torch.stack(changes, dim=1), output)


METHODS: dict[str, Callable[[_Score, Tensor], Attributed]] = {
    "gradient": _gradient,
    "input_x_gradient": _input_x_gradient,
    "integrated_gradients": _integrated_gradients,
    "smoothgrad": _smoothgrad,
    "gradient_shap": _gradient_shap,
    "occlusion": _occlusion,
}


def _in_one_pass(score: _Score, windows: Tensor, captum_method: Callable[..., Any]) -> Attributed:
    """Run a Captum method that calls the network once, and keep the output of that very call."""
    outputs: list[Tensor] = []

    def forward(windows: Tensor) -> Tensor:
        output = score.output(windows)
        outputs.append(output.detach())
        if not output.requires_grad:
            raise ModelError(
                "the network's output does not follow its input by a gradient (classes in place of logits, or no_grad "
                "inside); let it return logits, or use the method 'occlusion'"
            )
        return score.map(output, score.classes(outputs[-1])).flatten(1).sum(1)

    attribution = captum_method(forward).attribute(windows.requires_grad_())
    return Attributed(attribution, outputs[0])


@torch.no_grad()
def _run(score: _Score, windows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the output on the windows and the classes chosen from it, which stay fixed along a path or under noise."""
    output = score.output(windows)
    return output, score.classes(output)


def _mean_gray(windows: Tensor) -> Tensor:
    """Return each window's mean as a window: the same for all slices, so that it favours none."""
    return windows.mean(dim=(1, 2, 3), keepdim=True).expand_as(windows)


def _over_plane(change: Tensor, plane: torch.Size) -> Tensor:
    """Lay an output's change over the window's plane: resized if it is a map, else its sum spread evenly."""
    if change.ndim == 4:
        change = change.sum(1)
    if change.ndim == 3:
        return nn.functional.interpolate(change[:, None], size=plane, mode="nearest")[:, 0]
    return change.flatten(1).sum(1).view(-1, 1, 1).expand(-1, *plane) / plane.numel()


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
