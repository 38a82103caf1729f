"""What is explained of a network's output, and how much each input pixel contributes to it.

Explained are the log-odds of a pixel's class, the logit of a channel, or a score. Logits are known to a softmax only up to a
term that all classes share, so the log-odds of a class are explained: z_c less the logarithm of the sum of the exponentials
of the other logits. A term that is added to all logits moves no probability, and then no figure of an audit.

Outputs of floating point of shape (batch, classes) and (batch, classes, y, x) have classes; a single channel l stands for two,
with the logits 0 and l. Classes exclude each other, or overlap: then each channel is a class of its own, which is on where
its logit is above 0. Whole numbers of shape (batch,), (batch, 1), (batch, y, x) or (batch, 1, y, x) are class numbers, as a
black box may return them: a pixel then counts 1 where it has the class, else 0. Any other output has scores.

``attribute(score, windows)`` returns the attribution (batch, slices, y, x) together with the output that it explains, by any
of ``METHODS``. The explained score of a window is the sum over the output's pixels.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from evenslice._core import ConfigError, ModelError, check_known, option
from evenslice.auditing.options import METHODS
from evenslice.inference import BlackBox, ReadyNetwork
from evenslice.networks import (
    detections,
    final_activation,
    full_precision,
    keep_generators,
    logits,
    predicted_classes,
)
from evenslice.results import ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.volumes import WindowGrid

    Function: TypeAlias = Callable[[Any], Any]

NamedTarget = Literal["auto", "predicted", "labels", "sum"]
Target = int | NamedTarget
"""The output that is explained at each output pixel.

- "auto": "predicted" if the output has classes, "sum" otherwise.
- "predicted": the class that the network predicts there; of classes that overlap, all that are on.
- a number: that class.
- "labels": the class in the label map.
- "sum": the plain sum of all outputs, such as depths, features or detection scores.
"""

CLAMP = 1e-6
"""Probabilities are clamped to CLAMP..1 - CLAMP, as their logits would be infinite."""

MOST_CLASSES = 256
"""Class numbers from here on are one class: numbers so large are those of objects."""


@dataclass(frozen=True)
class Explained:
    """What is explained, and how the output of a network is to be understood.

    Attributes:
        target: which output.
        overlapping: whether several channels can be on at once; else classes exclude each other.
        probabilities: whether the output holds probabilities, whose softmax or sigmoid cannot be looked behind.
        margin: part of each side of an output map that is left out at its borders, where a tile lacks its surroundings.
        name: of what is explained: "log-odds", "channel", "score" or "class numbers".
        assumed: whether it was assumed that classes exclude each other.
        gradient: whether the output has a gradient.
    """

    target: Target = "auto"
    overlapping: bool = False
    probabilities: bool = False
    margin: tuple[float, float] = (0.0, 0.0)
    name: str = "log-odds"
    assumed: bool = False
    gradient: bool = True


def parse_target(text: str) -> Target:
    """Read a target from text: auto, predicted, labels, sum or a class number.

    Example:
        >>> parse_target("2"), parse_target("sum")
        (2, 'sum')
    """
    if text.isdecimal():
        return int(text)
    check_known("target", text, get_args(NamedTarget), ", or a class number")
    return cast("NamedTarget", text)


def count_classes(returned: Any) -> int | None:
    """Return how many classes the output of a network has; None for class numbers, and for an output without classes.

    Args:
        returned: what the network returned, before ``evenslice.networks.logits`` reduces it.

    Example:
        >>> count_classes(torch.zeros(1, 3, 8, 8)), count_classes(torch.zeros(1, 1, 8, 8))
        (3, 2)
        >>> count_classes(torch.zeros(1, 8, 8)), count_classes(torch.zeros(1, 8, 8, dtype=torch.long))
        (None, None)
    """
    output = None if detections(returned) is not None else _plain(logits(returned))
    if output is None or not _has_classes(output) or not output.is_floating_point():
        return None
    return max(output.shape[1], 2)


@dataclass(frozen=True)
class Score:
    """The number that an attribution explains, as a function of the windows.

    Attributes:
        module: maps windows (batch, slices, y, x) to outputs.
        explained: what of them.
        labels: (batch, y, x) class numbers for the target "labels".
        only: (batch,) a class for each window, negative for none; pixels of other classes then do not count.
        predicted: the classes that are taken for those that the network predicts, as ``classes`` returns them.
        region: (batch, y, x) which pixels of the windows count, if not all.
        mirrored: whether the module reads every window in reversed order; attributions stay in the order of the slices.
    """

    module: nn.Module
    explained: Explained = Explained()
    labels: Tensor | None = None
    only: Tensor | None = None
    predicted: Tensor | None = None
    region: Tensor | None = None
    mirrored: bool = False

    def output(self, windows: Tensor) -> Tensor:
        """Return the logits or scores for windows, in float32, or class numbers in int64."""
        return self.run(windows)[0]

    def run(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output for windows, and the part of its probabilities (batch,) that was clamped; 0 of logits.

        Where the last step of the network is a softmax or a sigmoid, that is undone by taking what it was given.
        """
        with LastActivation() as last:
            returned = self.module(windows.flip(1) if self.mirrored else windows)
        output = logits(returned)
        if self.explained.target != "sum":
            output = last.undone(output)
        check_batch(output, windows)
        output = self._inner(_plain(output), windows.shape[2:])
        found = detections(returned)
        if (
            windows.requires_grad
            and not output.requires_grad
            and found
            and not any(len(one["scores"]) for one in found)
        ):
            # An image without detections has a score of 0 and a gradient of 0.
            output = output + 0 * windows.sum()
        if not self.explained.probabilities:
            return output, torch.zeros(len(output))
        clamped = ((output < CLAMP) | (output > 1 - CLAMP)).flatten(1).float().mean(1)
        return output.clamp(CLAMP, 1 - CLAMP).logit(), clamped

    def _inner(self, output: Tensor, tile: Sequence[int]) -> Tensor:
        """Leave out the margin of a map (batch, ..., y, x); tokens with features have none."""
        rows, columns = output.shape[-2:] if output.ndim > 2 else (0, 0)
        if not rows or not any(self.explained.margin) or abs(rows * tile[1] - columns * tile[0]) >= max(tile):
            return output
        y, x = (round(part * side) for part, side in zip(self.explained.margin, (rows, columns), strict=True))
        return output[..., y : rows - y, x : columns - x]

    def __call__(self, windows: Tensor, classes: Tensor | None) -> Tensor:
        """Return the score (batch,) of windows, for the classes chosen by ``classes``."""
        return self.map(self.output(windows), classes).flatten(1).sum(1)

    def map(self, output: Tensor, classes: Tensor | None) -> Tensor:
        """Return what is explained at each output pixel, 0 where no class is.

        Returns:
            (batch, y, x) or (batch, 1) log-odds; (batch, classes, y, x) logits of classes that overlap; scores as they are.
        """
        if classes is None:
            values = output.float().unsqueeze(-1) if output.ndim == 1 else output.float()
        elif classes.dtype == torch.bool:
            values = output * classes
        else:
            values = self._log_odds(output, classes)
            values = torch.where(classes >= 0, values, 0) if self.only is not None else values
            values = values.unsqueeze(1) if values.ndim == 1 else values
        return values if self.region is None else values * self._inside(values)

    def _inside(self, values: Tensor) -> Tensor:
        """Return the region in the form of what is explained, a map."""
        region = cast("Tensor", self.region)
        if values.ndim not in (3, 4):
            raise ModelError(
                f"{option('region')}: needs an output for each pixel; what the network returns has the shape "
                f"{tuple(values.shape)}"
            )
        resized = nn.functional.interpolate(region[:, None].float(), size=values.shape[-2:], mode="nearest")
        return resized.to(values.device) if values.ndim == 4 else resized[:, 0].to(values.device)

    def _log_odds(self, output: Tensor, classes: Tensor) -> Tensor:
        if not output.is_floating_point():
            return (output == classes).float()
        if output.shape[1] == 1:
            only = output.squeeze(1)
            return torch.where(classes == 1, only, -only)
        chosen = classes.clamp_min(0).unsqueeze(1)
        picked = output.gather(1, chosen)
        if not self.explained.probabilities:
            picked = picked - output.scatter(1, chosen, -torch.inf).logsumexp(1, keepdim=True)
        return picked.squeeze(1)

    def classes(self, output: Tensor) -> Tensor | None:
        """Return the class to explain at each pixel of an output, (batch, y, x) or (batch,); None for scores.

        Of classes that overlap, (batch, classes, ...) whether each is explained. With ``only``, others are -1, or False.

        Example: class 399 is one of those from 256 on, which are explained together.
            >>> output = torch.nn.functional.one_hot(torch.tensor([399, 7])).float()
            >>> Score(torch.nn.Identity(), only=torch.tensor([256, 256])).classes(output).tolist()
            [399, -1]
        """
        found = self._all_classes(output)
        if found is None or self.only is None:
            return found
        only = self.only.to(found.device).view(-1, *(1,) * (found.ndim - 1))
        if found.dtype == torch.bool:
            numbers = torch.arange(found.shape[1], device=found.device)
            return found & (numbers.view(-1, *(1,) * (found.ndim - 2)) == only)
        return torch.where(found.clamp(max=MOST_CLASSES) == only, found, -1)

    def answers(self, output: Tensor) -> Tensor | None:
        """Return the answer at each pixel, in the form of ``classes``: what is predicted, whatever is explained."""
        if self.explained.target == "sum" or not _has_classes(output):
            return None
        return output.detach() > 0 if self._overlaps(output) else predicted_classes(output, dim=1)

    def _overlaps(self, output: Tensor) -> bool:
        return self.explained.overlapping and output.is_floating_point() and output.shape[1] > 1

    def _all_classes(self, output: Tensor) -> Tensor | None:
        target = self.explained.target
        if target == "sum" or (target == "auto" and not _has_classes(output)):
            return None
        if not _has_classes(output):
            raise ModelError(
                f"{option('target', target)}: needs logits (batch, classes) or (batch, classes, y, x), which the network does "
                "not return; use the target 'sum'"
            )
        if target in ("auto", "predicted"):
            return self.answers(output) if self.predicted is None else self.predicted
        count = count_classes(output)
        if target == "labels":
            if self._overlaps(output):
                raise ConfigError(
                    f"{option('target', 'labels')}: a label map has one class a pixel, but those of the network overlap; "
                    f"use {option('target', 'predicted')} or a class number"
                )
            return self._labels_for(output)
        number = cast("int", target)
        if count is not None and number >= count:
            raise ConfigError(
                f"{option('target', number)}: the network only has the classes 0 to {count - 1}"
            )
        if self._overlaps(output):
            found = torch.zeros_like(output, dtype=torch.bool)
            found[:, number] = True
            return found
        return torch.full_like(predicted_classes(output, dim=1), number)

    def _labels_for(self, output: Tensor) -> Tensor:
        if self.labels is None:
            raise ConfigError(
                f"{option('target', 'labels')}: needs label volumes; give them as {option('labels')}"
            )
        if output.ndim < 3:
            raise ModelError(
                f"{option('target', 'labels')}: needs an output for each pixel, but the network returns {tuple(output.shape)}"
            )
        margin = self.explained.margin
        size = [round(side / (1 - 2 * part)) for side, part in zip(output.shape[-2:], margin, strict=True)]
        resized = nn.functional.interpolate(self.labels[:, None].float(), size=size, mode="nearest")
        return self._inner(resized, size)[:, 0].long()

    def at(self, rows: slice) -> Score:
        """Return the score of some windows."""
        given = {name: getattr(self, name) for name in ("labels", "predicted", "region", "only")}
        return replace(self, **{name: part[rows] for name, part in given.items() if part is not None})


def check_batch(output: Tensor, windows: Tensor) -> None:
    """Raise ModelError unless an output has a row for each window."""
    if output.ndim == 0 or len(output) != len(windows):
        raise ModelError(
            f"the network returns {tuple(output.shape)} for a batch of {len(windows)}; the first dimension must be "
            "the batch"
        )


class LastActivation(TorchFunctionMode):
    """Remembers what softmaxes and sigmoids were given, and what they returned."""

    SIGMOIDS = (torch.sigmoid, torch.Tensor.sigmoid, nn.functional.sigmoid, torch.special.expit)
    SOFTMAXES = (torch.softmax, torch.Tensor.softmax, nn.functional.softmax, torch.special.softmax)

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Any, Any] = (None, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        found = func(*args, **options)
        dim = options.get("dim", args[1] if len(args) > 1 else None)
        over_classes = func in self.SOFTMAXES and isinstance(dim, int) and dim % found.ndim == 1
        if args and (func in self.SIGMOIDS or over_classes):
            self._last = (found, args[0])
        return found

    def undone(self, output: Tensor) -> Tensor:
        """Return what the last activation was given, if the output is what it returned."""
        returned, given = self._last
        return given if returned is output else output


def _has_classes(output: Tensor) -> bool:
    return not output.is_floating_point() or output.ndim in (2, 4)


def _plain(output: Tensor) -> Tensor:
    """Return an output in float32 at least, or in int64 where it holds class numbers: (batch,) or (batch, y, x)."""
    if output.is_floating_point():
        return output if output.dtype == torch.float64 else output.float()
    classes = output.squeeze(1) if output.ndim in (2, 4) and output.shape[1] == 1 else output
    return classes.long() if classes.ndim in (1, 3) else output.float()


def understand(
    network: ReadyNetwork | BlackBox,
    returned: Any,
    grid: WindowGrid,
    target: Target,
    overlapping: bool | None,
) -> Explained:
    """Tell how the output of a network is to be understood.

    A sigmoid at the end of several channels, which the graph of the network shows, says that they overlap; a softmax that
    they exclude each other. What does not say is taken for the logits of classes that exclude each other.

    Args:
        network: ready to run.
        returned: what it returned for the window of noise of ``prepare``.
        grid: the windows. Where tiles overlap, answers in the outer half are not compared.
        target: as given by the user.
        overlapping: as given by the user; None if the network is to tell.

    Raises:
        ConfigError: an output without channels is said to have ``overlapping`` ones.
    """
    named = detections(returned) is None and _has_classes(_plain(logits(returned)))
    if target == "auto":
        target = "predicted" if named else "sum"
    fresh, undone = _run(network, grid.slices, grid.tile)
    channels = fresh.is_floating_point() and fresh.ndim in (2, 4) and fresh.shape[1] > 1 and target != "sum"
    if overlapping and not channels:
        raise ConfigError(
            f"{option('overlapping', overlapping)}: tells how several channels of classes are to be read; the network "
            f"returns {tuple(fresh.shape)}: leave it out"
        )
    y, x = (shared / 2 / side for shared, side in zip(grid.overlap, grid.tile, strict=True))
    plain = Explained(target, margin=(y, x), name="score", gradient=fresh.requires_grad)
    if target == "sum":
        return plain
    if not fresh.is_floating_point():
        return replace(plain, name="class numbers", gradient=False)
    activation = final_activation(fresh)
    sigmoid, softmax = activation == "sigmoid", activation == "softmax"
    found = network.probabilities(fresh, grid.slices, grid.tile)
    several = channels and (sigmoid or found == "sigmoid")
    overlaps = several if overlapping is None else overlapping
    return replace(
        plain,
        overlapping=overlaps,
        probabilities=not undone and (sigmoid or found is not None),
        name="channel" if overlaps else "log-odds",
        assumed=channels and overlapping is None and not (several or softmax or found == "softmax"),
    )


def _run(network: ReadyNetwork | BlackBox, slices: int, tile: tuple[int, int]) -> tuple[torch.Tensor, bool]:
    """Return the output for a window of noise with its graph, and whether its last activation can be undone."""
    windows = network.trial(slices, tile)
    if isinstance(network, BlackBox):
        return logits(network(windows)), False
    with torch.enable_grad(), LastActivation() as last:
        output = logits(network(windows.requires_grad_()))
    return output, last.undone(output) is not output


BASELINES = {"integrated_gradients": "middle", "occlusion": "gray"}
"""The methods that compare a window with a baseline, and the one that each takes by default."""

INTEGRATION_STEPS = 16
SHAP_GRAYS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Captum draws noise in the precision of its scale; for numbers of Python it is the default of PyTorch, which may be another.
SMOOTHGRAD: Final = {"nt_samples": 8, "nt_samples_batch_size": 1, "stdevs": (np.float32(0.1),)}
SHAP: Final = {"n_samples": 8, "stdevs": (np.float32(0),)}


def choose_method(
    model: nn.Module | Function, method: str | None, baseline: str | None, *, gradient: bool
) -> tuple[str, str | None]:
    """Return the method and the baseline of maps; by default what planted evidence found best (docs/planted-evidence.md).

    Raises:
        ConfigError: there is no such method or baseline, the method has none, or the model no gradient that it needs.

    Example:
        >>> choose_method(nn.Conv2d(3, 2, 1), None, None, gradient=True)
        ('integrated_gradients', 'middle')
    """
    if method is not None:
        check_known("method", method, METHODS)
    if method not in (None, "occlusion") and not isinstance(model, nn.Module):
        raise ConfigError(
            f"{option('method', method)}: needs gradients, which only a torch.nn.Module has; use the method 'occlusion', "
            "or leave it out"
        )
    if method is None:
        method, baseline = "integrated_gradients" if gradient else "occlusion", baseline or "middle"
    if baseline is None:
        return method, BASELINES.get(method)
    check_known("baseline", baseline, ("middle", "gray"))
    if method not in BASELINES:
        raise ConfigError(
            f"{option('baseline', baseline)}: {method} has none; leave it out, or use the method {' or '.join(BASELINES)}"
        )
    return method, baseline


def _captum(method: str, windows: Tensor, baseline: str) -> tuple[Callable[[Score], Any], dict[str, Any]]:
    """Return a method of Captum, and its options for windows.

    Gradient: Simonyan et al., arXiv 1312.6034. Intensity times gradient: Shrikumar et al., arXiv 1605.01713. Integrated
    gradients from a baseline: Sundararajan et al., arXiv 1703.01365. Mean absolute gradient under noise: Smilkov et al., arXiv
    1706.03825. GradientShap over uniformly gray baselines: Lundberg and Lee, arXiv 1705.07874.
    """
    from captum import attr

    grays = windows.new_tensor(SHAP_GRAYS).view(-1, 1, 1, 1).expand(-1, *windows.shape[1:])
    methods: dict[str, tuple[Callable[[Score], Any], dict[str, Any]]] = {
        "gradient": (attr.Saliency, {"abs": False}),
        "input_x_gradient": (attr.InputXGradient, {}),
        "integrated_gradients": (
            attr.IntegratedGradients,
            {
                "baselines": _baseline(windows, baseline),
                "n_steps": INTEGRATION_STEPS,
                "internal_batch_size": len(windows),
            },
        ),
        "smoothgrad": (
            lambda forward: attr.NoiseTunnel(attr.Saliency(forward)),
            {"nt_type": "smoothgrad", **SMOOTHGRAD},
        ),
        "gradient_shap": (attr.GradientShap, {"baselines": grays, **SHAP}),
    }
    return methods[method]


def _explain(method: str, score: Score, windows: Tensor, baseline: str) -> Tensor:
    """Run a method with the classes that are chosen for the windows, which stay fixed along a path or under noise."""
    if method == "occlusion":
        return _occlusion(score, windows, baseline)
    output = score.output(windows.requires_grad_())
    if not output.requires_grad:
        raise ModelError(
            "the network's output has no gradient with respect to its input (it returns classes instead of logits, or "
            "uses no_grad); let it return logits, use the method 'occlusion', or leave the method out"
        )
    build, options = _captum(method, windows.detach(), baseline)
    classes = score.classes(output.detach())
    found: Tensor = build(score).attribute(windows, additional_forward_args=(classes,), **options)
    return found


@torch.no_grad()
def _occlusion(score: Score, windows: Tensor, baseline: str) -> Tensor:
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
    return torch.stack(changes, dim=1)


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


_GENERATORS = threading.Lock()


def attribute(
    score: Score, windows: Tensor, *, method: str = "gradient", baseline: str | None = None, seed: int = 0
) -> Tensor:
    """Attribute the output of a network to the pixels of its input windows.

    Args:
        score: what of which network is explained. The network maps windows to logits (or to something that
            ``evenslice.networks.logits`` reduces to them). Its parameters should not require gradients, which would be
            computed for nothing.
        windows: (batch, slices, y, x), values in 0..1.
        method: one of ``METHODS``.
        baseline: "middle" or "gray": what "integrated_gradients" (by default "middle") and "occlusion" ("gray") compare a
            window with.
        seed: random seed of the methods that draw samples; the global random state is left unchanged.

    Returns:
        (batch, slices, y, x) attribution, float32; signed, except that of "smoothgrad".

    Raises:
        ConfigError: the network does not have the class, or labels are missing or out of range.
        ModelError: the target needs classes and the output has none, the first dimension of the output is not the
            batch, or the output has no gradient, which all methods but "occlusion" need; or the memory of the device is
            too small for a single window.

    Where the memory of a ``ReadyNetwork`` runs out, windows are attributed in smaller batches, and methods that draw samples
    draw others.

    Example: the attribution of a network that is linear in its slices is its weights.
        >>> weights = torch.tensor([1.0, -2.0, 1.0]).view(1, 3, 1, 1)
        >>> network = nn.Conv2d(3, 1, 1, bias=False).requires_grad_(False)
        >>> _ = network.weight.copy_(weights)
        >>> found = attribute(Score(network), torch.rand(1, 3, 4, 4))
        >>> found.abs().mean(dim=(0, 2, 3)).tolist()
        [1.0, 2.0, 1.0]
    """
    chosen = baseline or BASELINES.get(method, "gray")
    network = score.module

    def compute(part: slice) -> Tensor:
        with reproducible(windows.device, seed):
            found = _explain(method, score.at(part), windows[part].detach(), chosen)
        return found.detach().float()

    if not isinstance(network, ReadyNetwork | BlackBox):
        return compute(slice(len(windows)))
    return torch.cat(network.batches.run(compute, len(windows), (method, *windows.shape[1:])))


def slice_shares(network: nn.Module, windows: Tensor, target: Target = "auto") -> NDArray[np.float64]:
    """Return the shares (n, 2, N) of slices in the gradients of windows and of their mirrors; NaN where these are 0.

    Args:
        network: maps windows to logits.
        windows: (n, N, y, x).
        target: what is explained.
    """
    score = Score(network, Explained(target))
    with torch.no_grad(), full_precision():
        score = replace(score, predicted=score.answers(score.output(windows)))
    both = attribute(score, windows), attribute(replace(score, mirrored=True), windows).flip(1)
    sums = np.stack([as_float64(part.abs()).sum(dim=(2, 3)).cpu().numpy() for part in both], axis=1)
    return ratio(sums, sums.sum(axis=2, keepdims=True))


def as_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, where it is; on the CPU if its device, Apple's, has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


@contextmanager
def reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators that Captum draws from (PyTorch's and NumPy's), and let a GPU compute float32 in full.

    Both are as before afterwards. They belong to the process, so that other threads wait.
    """
    with _GENERATORS:
        state = np.random.get_state()  # noqa: NPY002  # the generator that Captum's GradientShap uses
        with keep_generators([device], seed), full_precision():
            np.random.seed(seed % 2**32)  # noqa: NPY002
            try:
                yield
            finally:
                np.random.set_state(state)  # noqa: NPY002
