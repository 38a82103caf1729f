"""What depends on the task of a training: the logits of a network, and its scores in validation and in the test."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.inference import class_logits, evaluate_parts
from evenslice.training.classification import classifier_logits, evaluate_centres

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from evenslice.training.config import TrainConfig
    from evenslice.volumes import LabelledVolume

__all__ = ["final_scores", "stressed_slices", "task_logits", "validation_score"]

VALIDATION_FRACTION = 0.1  # of the pixels or crops trained on between two validations
FEWEST_VALIDATED = 8  # slices
FEWEST_CENTRES = 512

MOST_CENTRES = 2**13
"""Centres of the test of a classifier."""

STRESSED_PIXELS = 2**22
"""Pixels of test slices whose windows are disturbed; there are at least ``FEWEST_STRESSED`` and at most ``MOST_STRESSED``."""

FEWEST_STRESSED, MOST_STRESSED = 8, 60


def task_logits(network: nn.Module, windows: Tensor, task: str) -> Tensor:
    """Return the logits of windows (batch, slices, y, x): (batch, classes, y, x), of a classifier (batch, classes).

    Raises:
        ModelError: the network returns an output of another shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> task_logits(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 8, 8), "segmentation").shape
        torch.Size([1, 2, 8, 8])
    """
    return (classifier_logits if task == "classification" else class_logits)(network, windows)


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
        return evaluate_centres(network, parts, config, most=most, device=device).balanced_accuracy
    plane = max(math.prod(part.volume.shape[1:]) for part in parts)
    found = evaluate_parts(
        network,
        parts,
        classes=config.data.classes,
        step=config.model.step,
        surfaces=False,
        device=device,
        most_slices=max(FEWEST_VALIDATED, round(crops * math.prod(options.crop) / plane)),
    )
    confusion = np.sum([volume.confusion for volume in found.volumes], axis=0)
    return replace(found, volumes=(replace(found.volumes[0], confusion=confusion),)).mean_dice


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
        return {**found.to_dict(), "stress": None}
    scores = evaluate_parts(
        network,
        parts,
        classes=config.data.classes,
        step=config.model.step,
        boundaries=config.data.boundaries or config.data.instances is not None,
        stressed=stressed_slices(parts, config),
        seed=config.seed,
        device=device,
        progress=progress,
    )
    return {**scores.to_dict(), "stress": scores.stress and scores.stress.summary().to_dict()}


def stressed_slices(parts: Sequence[LabelledVolume], config: TrainConfig) -> int:
    """Return the number of test slices whose windows are disturbed, each a dozen times: few of large planes."""
    if not parts or not config.training.stress or config.model.slices < 3:
        return 0
    plane = max(math.prod(part.volume.shape[1:]) for part in parts)
    most = min(max(STRESSED_PIXELS // plane, FEWEST_STRESSED), MOST_STRESSED)
    return min(most, sum(len(part.volume) for part in parts))
