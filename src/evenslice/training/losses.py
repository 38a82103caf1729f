"""The logits of a network in training, and the loss of its task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional

from evenslice._core import ModelError, needs_extra
from evenslice.inference import class_logits
from evenslice.networks import logits

if TYPE_CHECKING:
    from torch import Tensor


def task_logits(network: nn.Module, windows: Tensor, task: str) -> Tensor:
    """Return the logits of windows (batch, slices, y, x): (batch, classes, y, x), of a classifier (batch, classes).

    Raises:
        ModelError: the network returns an output of another shape.

    Example:
        >>> import torch
        >>> task_logits(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 8, 8), "segmentation").shape
        torch.Size([1, 2, 8, 8])
        >>> task_logits(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.zeros(2, 3, 2, 2), "classification").shape
        torch.Size([2, 5])
    """
    if task == "segmentation":
        return class_logits(network, windows)
    output = logits(network(windows))
    if output.ndim != 2:
        raise ModelError(
            f"the network returns an output of shape {tuple(output.shape)}; a classifier must return (batch, classes); "
            "for a map of classes, set training.task: segmentation"
        )
    return output.float()


def output_channels(loss: str, classes: int) -> int:
    """Return the number of channels that a network needs: one for each class, or one if a single sigmoid is enough.

    Example:
        >>> output_channels("dice_ce", 2), output_channels("dice_bce", 2), output_channels("dice_bce", 3)
        (2, 1, 3)
    """
    return 1 if loss == "dice_bce" and classes == 2 else classes


class TaskLoss(nn.Module):
    """The loss of a kind: the sum of MONAI's Dice loss and PyTorch's cross entropy, or cross entropy alone.

    The Dice loss excludes the background and is computed over all pixels of a batch at once, so that a crop without a
    class is not penalized; the cross entropy is the mean over pixels, or over the windows of a classifier.

    Args:
        kind: "dice_ce", softmax over the classes; "dice_bce", a sigmoid for each class, or only for class 1 of two; "ce",
            cross entropy alone.
        classes: C, 2 or more.
        ignored: whether labels may be below 0. If not, no step waits for the device to find that out.

    Example:
        >>> import torch
        >>> loss = TaskLoss("dice_ce", classes=2)
        >>> labels = torch.tensor([[[0, 1]]])
        >>> right = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
        >>> loss(right, labels).item() < 0.001 < 1 < loss(-right, labels).item()
        True
        >>> TaskLoss("ce", classes=2)(torch.tensor([[9.0, -9.0], [0.0, 0.0]]), torch.tensor([0, -100])).item() < 1e-6
        True
    """

    def __init__(self, kind: str, classes: int, *, ignored: bool = True) -> None:
        super().__init__()
        self.channels = output_channels(kind, classes)
        self.exclusive = kind != "dice_bce"
        self.ignored = ignored
        self.dice: nn.Module | None = None
        if kind != "ce":
            with needs_extra("train", "training"):
                from monai.losses import (
                    DiceLoss,  # takes seconds, which a mistake in the data need not wait for
                )
            self.dice = DiceLoss(
                include_background=self.channels == 1,
                softmax=self.exclusive,
                sigmoid=not self.exclusive,
                batch=True,
            )

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of logits (batch, channels, ...) and classes (batch, ...).

        Pixels or windows below 0, ``LabelValues.IGNORED``, do not count if ``ignored``; without any other, the loss is 0.
        """
        if self.ignored and not bool((counted := labels >= 0).all()):
            if not bool(counted.any()):
                return scores.sum() * 0
            scores, labels = scores.movedim(1, -1)[counted], labels[counted]
            if self.dice is not None:  # both are sums over all pixels of the batch, wherever they are
                scores, labels = scores.T[None, :, None], labels[None, None]
        if self.dice is None:
            return functional.cross_entropy(scores, labels)
        target = labels[:, None].to(scores)
        if self.channels > 1:
            target = functional.one_hot(labels, self.channels).movedim(-1, 1).to(scores)
        if self.exclusive:
            entropy = functional.cross_entropy(scores, labels)
        else:
            entropy = functional.binary_cross_entropy_with_logits(scores, target)
        dice: Tensor = self.dice(scores, target)
        return dice + entropy
