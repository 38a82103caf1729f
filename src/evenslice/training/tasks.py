"""The scores of a network in validation and in the test, by the task of its training.

A classifier names the class of the centre of a window. It is tested on a lattice of centres over all slices of the tested
volumes, equally far apart along z, y and x, so the classes are as frequent among them as in the volumes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice._core import progress_bar
from evenslice.inference import Compute, Predictor, ReadyNetwork, count_ways, evaluate_parts, to_device
from evenslice.networks import predicted_classes
from evenslice.results import nan_mean, ratio
from evenslice.training.crops import read_around
from evenslice.training.losses import task_logits
from evenslice.volumes import WindowGrid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.training.config import TrainConfig
    from evenslice.volumes import LabelledVolume


VALIDATION_FRACTION = 0.1  # of the pixels or crops trained on between two validations
FEWEST_VALIDATED = 8  # slices
FEWEST_CENTRES = 512

MOST_CENTRES = 2**13
"""Centres of the test of a classifier."""

STRESSED_PIXELS = 2**22
"""Pixels of test slices whose windows are disturbed; there are at least ``FEWEST_STRESSED`` and at most ``MOST_STRESSED``."""

FEWEST_STRESSED, MOST_STRESSED = 8, 60

BATCH = 32  # windows per forward pass of a classifier
OF_MISSED = 16  # voxels of each volume that stand for a class without a centre


def validation_score(network: nn.Module, parts: Sequence[LabelledVolume], config: TrainConfig) -> float:
    """Return the main score of a network in training on a sample of the validation data.

    Dice is that of the slices of all volumes together: of a volume with few of them, or without a class in these, a single
    pixel could make it 0.
    """
    options = config.training
    device = str(next(network.parameters()).device)
    crops = VALIDATION_FRACTION * options.validate_every * options.batch
    if options.task == "classification":
        most = max(FEWEST_CENTRES, round(crops))
        found = evaluate_centres(network, parts, config, most=most, device=device)
        return float(found["balanced_accuracy"]["mean"])
    plane = max(math.prod(part.volume.shape[1:]) for part in parts)
    scores = evaluate_parts(
        _predictor(network, config, device),
        parts,
        classes=config.data.classes,
        surfaces=False,
        most_slices=max(FEWEST_VALIDATED, round(crops * math.prod(options.crop) / plane)),
    )
    confusion = np.sum([volume.confusion for volume in scores.volumes], axis=0)
    return replace(scores, volumes=(replace(scores.volumes[0], confusion=confusion),)).mean_dice


def final_scores(
    network: nn.Module,
    parts: Sequence[LabelledVolume],
    config: TrainConfig,
    *,
    device: str,
    progress: bool | None,
) -> dict[str, Any]:
    """Return the scores of a trained network on the test data, with the keys of ``result.json``."""
    if config.training.task == "classification":
        found = evaluate_centres(network, parts, config, most=MOST_CENTRES, device=device, progress=progress)
        return {**found, "stress": None}
    stressed, (volume, scaling) = stressed_slices(parts, config), (parts[0].volume, parts[0].scaling)
    windows = sum(len(part.volume) for part in parts) + stressed * count_ways(config.model.slices)
    compute = Compute(device=device, progress=progress)
    predictor = _predictor(network, config, device).with_engine(compute, volume, scaling, windows)
    scores = evaluate_parts(
        predictor,
        parts,
        classes=config.data.classes,
        boundaries=config.data.boundaries or config.data.instances is not None,
        stressed=stressed,
        seed=config.seed,
        progress=progress,
    )
    stress = scores.stress and asdict(scores.stress.summary())
    return {**scores.to_dict(), "stress": stress, "engine": predictor.network.engine}


def _predictor(network: nn.Module, config: TrainConfig, device: str) -> Predictor:
    """Return what predicts volumes by a frozen copy of a network, in float32."""
    slices, step = config.model.slices, config.model.step
    return Predictor(ReadyNetwork(network, slices=slices, device=device), slices, step)


def stressed_slices(parts: Sequence[LabelledVolume], config: TrainConfig) -> int:
    """Return the number of test slices whose windows are disturbed, each a dozen times: few of large planes."""
    if not parts or not config.training.stress or config.model.slices < 3:
        return 0
    plane = max(math.prod(part.volume.shape[1:]) for part in parts)
    most = min(max(STRESSED_PIXELS // plane, FEWEST_STRESSED), MOST_STRESSED)
    return min(most, sum(len(part.volume) for part in parts))


def classification_scores(confusion: NDArray[np.int64]) -> dict[str, Any]:
    """Return how often the classes of centres were found, with the keys of ``result.json``.

    Args:
        confusion: (C, C) number of centres by their class (row) and the predicted class (column).

    Returns:
        ``accuracy``, the part of the centres whose class is predicted, 0..1; ``balanced_accuracy``, the recall of each class
        that has centres, and their mean, 1/C by chance; ``macro_f1``, the F1 score of each class, and their mean;
        ``confusion``. What is undefined is NaN.

    Example: nine of ten centres are of class 0, of which one is missed.
        >>> scores = classification_scores(np.array([[8, 1], [0, 1]]))
        >>> scores["accuracy"], round(scores["balanced_accuracy"]["mean"], 3), round(scores["macro_f1"]["mean"], 3)
        (0.9, 0.944, 0.804)
    """
    found = np.diag(confusion)
    recall = ratio(found, confusion.sum(axis=1))
    f1 = ratio(2 * found, confusion.sum(axis=0) + confusion.sum(axis=1))
    return {
        "accuracy": float(ratio(found.sum(), confusion.sum())),
        "balanced_accuracy": {"mean": float(nan_mean(recall)), "per_class": recall.tolist()},
        "macro_f1": {"mean": float(nan_mean(f1)), "per_class": f1.tolist()},
        "confusion": confusion.tolist(),
    }


def evaluate_centres(
    model: nn.Module,
    parts: Sequence[LabelledVolume],
    config: TrainConfig,
    *,
    most: int,
    device: str = "auto",
    progress: bool | None = False,
) -> dict[str, Any]:
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
    return classification_scores(confusion)


def _classify(network: ReadyNetwork, windows: Tensor) -> Tensor:
    """Return the logits (batch, classes) of windows (batch, N, y, x), however many go into the memory at once."""
    parts = network.batches.run(
        lambda part: task_logits(network, windows[part], "classification"),
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
            positions = _some_voxels(part, label) if part.counts[label] else np.empty(0, np.int64)
            places = zip(*np.unravel_index(positions, part.volume.shape), strict=True)
            found += [(number, (int(z), int(y), int(x)), label) for z, y, x in places]
    return found


def _some_voxels(part: LabelledVolume, label: int) -> NDArray[np.int64]:
    """Return the flat indices of up to ``OF_MISSED`` voxels of a class, evenly spaced among those that are known."""
    known = part.positions[label] if part.positions else np.empty(0, np.int64)
    if not len(known):  # test data are not indexed
        plane = math.prod(part.volume.shape[1:])
        found = (z * plane + np.flatnonzero(part.labels[z] == label) for z in range(len(part.volume)))
        known = next((positions for positions in found if len(positions)), known)
    chosen = np.linspace(0, len(known) - 1, min(len(known), OF_MISSED)).astype(int)
    return np.asarray(known[chosen])
