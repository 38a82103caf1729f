"""Targets: which output of a network is explained, and the score it adds up to.

Floating-point outputs of shape (batch, classes) and (batch, classes, y, x) have classes. Whole numbers of shape
(batch,), (batch, 1), (batch, y, x) or (batch, 1, y, x) are class numbers, as a black box may return them: the score of
a pixel is then 1 where it has the target's class, and 0 elsewhere. Any other output has no classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from evenslice._core import ConfigError, ModelError, did_you_mean, option
from evenslice.networks import detections, logits, predicted_classes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Score", "Target", "classes_for_mirrors", "count_classes", "parse_target", "resolve_target"]

Target = int | Literal["auto", "predicted", "labels", "sum"]
"""The output that is explained at each output pixel.

- "auto": "predicted" if the output has classes, "sum" otherwise.
- "predicted": the class that the network predicts there (a single logit l stands for two classes, -l and l).
- a number: that class.
- "labels": the class in the label map.
- "sum": the plain sum of all outputs, such as depths, features or detection scores.
"""

_NAMED_TARGETS: tuple[Literal["auto", "predicted", "labels", "sum"], ...] = (
    "auto",
    "predicted",
    "labels",
    "sum",
)


def parse_target(text: str) -> Target:
    """Read a target from text: auto, predicted, labels, sum or a class number.

    Example:
        >>> parse_target("2"), parse_target("sum")
        (2, 'sum')
    """
    if text.isdecimal():
        return int(text)
    for name in _NAMED_TARGETS:
        if text == name:
            return name
    raise ConfigError(f"{option('target', text)}: {did_you_mean(text, _NAMED_TARGETS)}, or a class number")


def resolve_target(target: Target, returned: Any) -> Target:
    """Replace the target "auto" by what it stands for, and check any other against the output of a network.

    Args:
        target: as given by the user.
        returned: what the network returned, before ``evenslice.networks.logits`` reduces it.

    Raises:
        ModelError: the target needs classes and the output has none.

    Example:
        >>> resolve_target("auto", torch.zeros(1, 2, 8, 8)), resolve_target("auto", torch.zeros(1, 8, 8))
        ('predicted', 'sum')
        >>> resolve_target("auto", [{"boxes": torch.zeros(1, 4), "scores": torch.ones(1)}])
        'sum'
    """
    if detections(returned) is None:
        output = _plain(logits(returned))
        named, given = _has_classes(output), f"{tuple(output.shape)}"
    else:
        named, given = False, "detections, whose scores have no common classes"
    if target == "auto":
        return "predicted" if named else "sum"
    if target != "sum" and not named:
        raise _no_classes(target, given)
    return target


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
    if detections(returned) is not None:
        return None
    output = _plain(logits(returned))
    return max(output.shape[1], 2) if output.is_floating_point() and _has_classes(output) else None


def _no_classes(target: Target, given: str) -> ModelError:
    return ModelError(
        f"{option('target', target)}: needs logits of shape (batch, classes) or (batch, classes, y, x), but the "
        f"network returns {given};"
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


@dataclass(frozen=True)
class Score:
    """The number that an attribution explains, as a function of the windows; see ``attribute`` for its parts.

    With ``only``, the classes that are not explained are -1. With ``predicted``, (batch, y, x) or (batch,), these classes are
    taken for those that the network predicts.
    """

    module: nn.Module
    target: Target
    labels: Tensor | None
    only: int | Tensor | None = None
    known: Tensor | None = None
    predicted: Tensor | None = None

    def output(self, windows: Tensor) -> Tensor:
        """Return the output for windows, in float32, or in int64 where it holds class numbers."""
        returned = self.module(windows)
        output = _plain(logits(returned))
        if output.ndim == 0 or len(output) != len(windows):
            raise ModelError(
                f"the network returns {tuple(output.shape)} for {len(windows)} windows; the first dimension "
                "must be the "
                "batch"
            )
        if windows.requires_grad and not output.requires_grad and _detected_nothing(returned):
            # An image without detections has a score of 0 and a gradient of 0.
            output = output + 0 * windows.sum()
        return output

    def __call__(self, windows: Tensor, classes: Tensor | None) -> Tensor:
        """Return the score (batch,) of windows, for the classes chosen by ``classes``."""
        return self.map(self.output(windows), classes).flatten(1).sum(1)

    def map(self, output: Tensor, classes: Tensor | None) -> Tensor:
        """Return the contribution of each output pixel: (batch, y, x), (batch, 1) or, without classes, the output."""
        if classes is None:
            return output.float().unsqueeze(-1) if output.ndim == 1 else output.float()
        if not output.is_floating_point():
            picked = (output == classes).float()
        else:
            if output.shape[1] == 1:
                output = torch.cat([-output, output], dim=1)
            picked = output.gather(1, classes.clamp_min(0).unsqueeze(1)).squeeze(1)
        if self.only is not None:
            picked = picked * (classes >= 0)
        return picked.unsqueeze(1) if picked.ndim == 1 else picked

    def classes(self, output: Tensor) -> Tensor | None:
        """Return the class to explain at each pixel of an output, (batch, y, x) or (batch,); None for the plain sum."""
        found = self._all_classes(output)
        if found is None or self.only is None:
            return found
        only = self.only
        if isinstance(only, torch.Tensor):
            only = only.to(found.device).view(-1, *(1,) * (found.ndim - 1))
        return torch.where(found == only, found, -1)

    def _all_classes(self, output: Tensor) -> Tensor | None:
        if self.target == "sum" or (self.target == "auto" and not _has_classes(output)):
            return None
        if not _has_classes(output):
            raise _no_classes(self.target, f"{tuple(output.shape)}")
        if self.target in ("auto", "predicted"):
            return predicted_classes(output, dim=1) if self.predicted is None else self.predicted
        count = count_classes(output)
        if self.target == "labels":
            return _labels_for(output, self.labels, count)
        number = cast("int", self.target)
        if count is not None and number >= count:
            raise ConfigError(
                f"{option('target', number)}: the network only has the classes 0 to {count - 1}"
            )
        return torch.full_like(predicted_classes(output, dim=1), number)


def classes_for_mirrors(target: Target, output: Tensor) -> Tensor | None:
    """Return the classes that are explained for the mirrors of windows, from the output for the windows; see ``Score``.

    They are those that are predicted for the windows as given: a mirror with another answer, explained for that answer,
    would be another function of the window, and could not be compared. None if the target is something else.

    Example: x(z+1) - x(z-1) is class 1 in the first window, and class 0 in its mirror.
        >>> classes_for_mirrors("predicted", torch.tensor([[0.5], [-0.5]])).tolist()
        [1, 0]
        >>> classes_for_mirrors("sum", torch.tensor([[0.5], [-0.5]]))
    """
    explains_predicted = target == "predicted" or (target == "auto" and _has_classes(output))
    return predicted_classes(output, dim=1) if explains_predicted and _has_classes(output) else None


def _detected_nothing(returned: Any) -> bool:
    found = detections(returned)
    return found is not None and not any(len(item["scores"]) for item in found)


def _labels_for(output: Tensor, labels: Tensor | None, count: int | None) -> Tensor:
    if labels is None:
        raise ConfigError(
            f"{option('target', 'labels')}: needs label volumes; give them as {option('labels')}"
        )
    if output.ndim < 3:
        raise ModelError(
            f"{option('target', 'labels')}: needs an output for each pixel, but the network returns {tuple(output.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if count is not None and (low < 0 or high >= count):
        raise ConfigError(
            f"the labels hold values from {low} to {high}, but the network has the classes 0 to {count - 1}"
        )
    resized = nn.functional.interpolate(labels[:, None].float(), size=output.shape[-2:], mode="nearest")
    return resized[:, 0].long()
