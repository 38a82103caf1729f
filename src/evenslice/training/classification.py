"""Classification of windows by the class of their centre: the loss, and the scores on a grid of centres.

The centres lie on a lattice over all slices of the tested volumes, equally far apart along z, y and x, so the classes are
as frequent among them as in the volumes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evenslice._core import ModelError, progress_bar
from evenslice.inference import ReadyNetwork, to_device
from evenslice.networks import logits, predicted_classes
from evenslice.results import ratio
from evenslice.training.centred_crops import read_around
from evenslice.volumes import WindowGrid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.training.config import TrainConfig
    from evenslice.volumes import LabelledVolume

__all__ = ["ClassificationLoss", "ClassificationScores", "classifier_logits", "evaluate_centres", "lattice"]

BATCH = 32  # windows per forward pass
OF_MISSED = 16  # voxels of each volume that stand for a class without a centre


def classifier_logits(network: nn.Module, windows: Tensor) -> Tensor:
    """Run a network on windows (batch, slices, y, x) and return its logits as float32 (batch, classes).

    Raises:
        ModelError: the network does not return one logit for each class.

    Example:
        >>> classifier_logits(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.zeros(2, 3, 2, 2)).shape
        torch.Size([2, 5])
    """
    output = logits(network(windows))
    if output.ndim != 2:
        raise ModelError(
            f"the network returns an output of shape {tuple(output.shape)}; a classifier must return (batch, classes); "
            "for a map of classes, set training.task: segmentation"
        )
    return output.float()


class ClassificationLoss(nn.Module):
    """Cross entropy, the mean over the windows of a batch whose centre counts.

    Args:
        ignored: whether labels may be below 0. If not, no step waits for the device to find that out.

    Example:
        >>> loss = ClassificationLoss()
        >>> loss(torch.tensor([[9.0, -9.0], [0.0, 0.0]]), torch.tensor([0, -100])).item() < 1e-6
        True
    """

    def __init__(self, *, ignored: bool = True) -> None:
        super().__init__()
        self.ignored = ignored

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of logits (batch, classes) and classes (batch,); 0 if all of these are ``IGNORED``."""
        if not self.ignored:
            return functional.cross_entropy(scores, labels)
        counted = labels >= 0
        if not bool(counted.any()):
            return scores.sum() * 0
        return functional.cross_entropy(scores[counted], labels[counted])


@dataclass(frozen=True)
class ClassificationScores:
    """How often the classes of centres were found.

    Attributes:
        confusion: (C, C) number of centres by their class (row) and the predicted class (column).
    """

    confusion: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """The part of the centres whose class is predicted, 0..1; NaN without centres."""
        return float(ratio(np.trace(self.confusion), self.confusion.sum()))

    @property
    def recall(self) -> NDArray[np.float64]:
        """(C,) The part of the centres of each class that is predicted as such, 0..1; NaN for a class without centres."""
        return ratio(np.diag(self.confusion), self.confusion.sum(axis=1))

    @property
    def f1(self) -> NDArray[np.float64]:
        """(C,) The F1 score of each class, 0..1; NaN for a class that neither is among the centres nor is predicted."""
        found = np.diag(self.confusion)
        return ratio(2 * found, self.confusion.sum(axis=0) + self.confusion.sum(axis=1))

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have centres: 1/C by chance, 1 at best; NaN without centres."""
        return _mean(self.recall)

    @property
    def macro_f1(self) -> float:
        """The mean F1 score of the classes, 0..1; NaN without centres."""
        return _mean(self.f1)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain values, with the keys of ``result.json``.

        Example: nine of ten centres are of class 0, of which one is missed.
            >>> scores = ClassificationScores(np.array([[8, 1], [0, 1]]))
            >>> scores.accuracy, round(scores.balanced_accuracy, 3), round(scores.macro_f1, 3)
            (0.9, 0.944, 0.804)
        """
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": {"mean": self.balanced_accuracy, "per_class": self.recall.tolist()},
            "macro_f1": {"mean": self.macro_f1, "per_class": self.f1.tolist()},
            "confusion": self.confusion.tolist(),
        }


def evaluate_centres(
    model: nn.Module,
    parts: Sequence[LabelledVolume],
    config: TrainConfig,
    *,
    most: int,
    device: str = "auto",
    progress: bool | None = False,
) -> ClassificationScores:
    """Classify the windows around a lattice of centres and compare the classes with the labels there.

    Args:
        model: maps (batch, slices, y, x), with the scaling of its record, to logits (batch, classes).
        parts: volumes with their labels and scaling.
        config: the configuration of the run: the size of crops, the window, the number of classes.
        most: the largest number of centres.
        device: "auto" (a CUDA GPU if there is one, else the CPU) or a PyTorch device name.
        progress: show progress on standard error: True for a bar, False for nothing, None for a bar on a terminal and
            lines elsewhere.

    Raises:
        VolumeError: a volume cannot be read.
        ModelError: the network does not return one logit for each class.
    """
    window, crop, classes = config.model, config.training.crop, config.data.classes
    network = ReadyNetwork(model, slices=window.slices, device=device)
    network.prepare(window.slices, crop)
    grids = [
        WindowGrid(part.volume, part.scaling, window.slices, crop, window.step, "reflect") for part in parts
    ]
    confusion = np.zeros((classes, classes), np.int64)
    counted = [*_counted(parts, lattice([part.volume.shape for part in parts], most))]
    counted += _missed(parts, counted, classes)
    waiting = iter(counted)
    with progress_bar("classify", len(counted), "windows", show=progress) as advance, torch.inference_mode():
        while chunk := list(islice(waiting, BATCH)):
            read = [read_around(grids[number], place, crop) for number, place, _ in chunk]
            found = _classify(network, to_device(np.stack(read), network.device))
            answers = predicted_classes(found, dim=1).cpu().numpy()
            for (*_, label), answer in zip(chunk, answers.tolist(), strict=True):
                confusion[label, answer] += 1
            advance(len(chunk))
    return ClassificationScores(confusion)


def _classify(network: ReadyNetwork, windows: Tensor) -> Tensor:
    """Return the logits (batch, classes) of windows (batch, N, y, x), however many go into the memory at once."""
    parts = network.batches.run(
        lambda part: classifier_logits(network, windows[part]),
        len(windows),
        (network.dtype, *windows.shape[1:]),
    )
    return torch.cat(parts)


def lattice(shapes: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, tuple[int, int, int]]]:
    """Return the voxels of a lattice over volumes: the index of the volume, and z, y, x.

    Its step is the same along all axes and in all volumes, the smallest that gives at most ``most`` voxels; each volume
    has at least one. The voxels keep the same distance from both ends of an axis, or differ by one.

    Example:
        >>> lattice([(2, 6, 6)], most=4)
        [(0, (0, 1, 1)), (0, (0, 1, 4)), (0, (0, 4, 1)), (0, (0, 4, 4))]
    """
    step = 1
    while sum(math.prod(-(-length // step) for length in shape) for shape in shapes) > max(most, len(shapes)):
        step += 1
    return [
        (number, (z, y, x))
        for number, shape in enumerate(shapes)
        for z, y, x in product(*(_spread(length, step) for length in shape))
    ]


def _spread(length: int, step: int) -> range:
    """Return places along an axis, ``step`` apart, in its middle."""
    count = -(-length // step)
    return range((length - 1 - (count - 1) * step) // 2, length, step)


def _counted(
    parts: Sequence[LabelledVolume], places: Sequence[tuple[int, tuple[int, int, int]]]
) -> Iterator[tuple[int, tuple[int, int, int], int]]:
    """Yield the places whose label counts, each with its class; a slice of labels is read once."""
    last, plane = None, np.empty((0, 0), np.int64)
    for number, (z, y, x) in places:
        if (number, z) != last:
            last, plane = (number, z), parts[number].labels[z]
        label = int(plane[y, x])
        if label >= 0:
            yield number, (z, y, x), label


def _missed(
    parts: Sequence[LabelledVolume], counted: Sequence[tuple[int, tuple[int, int, int], int]], classes: int
) -> list[tuple[int, tuple[int, int, int], int]]:
    """Return some voxels, with their class, of each class that occurs but has no centre: else its recall would be unknown."""
    seen = {label for *_, label in counted}
    found = []
    for label in set(range(classes)) - seen:
        for number, part in enumerate(parts):
            positions = _some_voxels(part, label) if part.index.counts[label] else np.empty(0, np.int64)
            places = zip(*np.unravel_index(positions, part.volume.shape), strict=True)
            found += [(number, (int(z), int(y), int(x)), label) for z, y, x in places]
    return found


def _some_voxels(part: LabelledVolume, label: int) -> NDArray[np.int64]:
    """Return the flat indices of up to ``OF_MISSED`` voxels of a class, evenly spaced among those that are known."""
    known = part.index.positions[label] if part.index.positions else np.empty(0, np.int64)
    if not len(known):  # test data are not indexed
        plane = math.prod(part.volume.shape[1:])
        found = (z * plane + np.flatnonzero(part.labels[z] == label) for z in range(len(part.volume)))
        known = next((positions for positions in found if len(positions)), known)
    chosen = np.linspace(0, len(known) - 1, min(len(known), OF_MISSED)).astype(int)
    return np.asarray(known[chosen])


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
