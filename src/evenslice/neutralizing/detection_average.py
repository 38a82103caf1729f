"""The average of what a detector finds in a window and in its mirror.

There may be more objects in one than in the other, so their boxes have no mean as tensors have one. Objects that were found
in both are averaged; what was found in one alone counts half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evenslice._core import ModelError
from evenslice.networks import detections

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["average_detections", "finds_objects"]

SAME_OBJECT = 0.5
"""Intersection over union from which two boxes of one class, each the other's nearest, are one object."""

NEEDED = {"boxes", "labels", "scores"}


def finds_objects(output: Any) -> bool:
    """Say whether an output is a list of boxes, labels and scores, one for each window.

    Example:
        >>> finds_objects([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}])
        True
        >>> finds_objects([{"scores": torch.zeros(1, 2)}]), finds_objects(torch.zeros(1, 2))
        (False, False)
    """
    found = detections(output)
    return found is not None and all(item.keys() >= NEEDED for item in found)


def average_detections(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the mean of what a detector finds in a window and in its mirror, sorted by descending score.

    Of an object that was found in both, everything is averaged: box, score, mask, keypoints. One that was found in one
    window alone keeps its box and half of its score. So the sum of the scores is the mean of the two sums, and the order
    of the two windows does not matter.

    Args:
        one: tensors with an entry for each object: ``boxes`` (objects, 4) as x1, y1, x2, y2, ``labels``, ``scores`` and others.
        other: the same for the other window.

    Raises:
        ModelError: one of these three is missing, or something is no tensor of that length, is there in one window alone, or
            holds whole numbers, which have no mean, and is not the labels.

    Example: one object in both windows, another one in the second alone.
        >>> one = {"boxes": [[0, 0, 8, 8]], "labels": [1], "scores": [0.8]}
        >>> other = {"boxes": [[0, 0, 8, 6], [20, 0, 28, 8]], "labels": [1, 1], "scores": [0.4, 1.0]}
        >>> one, other = ({name: torch.tensor(values) for name, values in found.items()} for found in (one, other))
        >>> mean = average_detections(one | {"boxes": one["boxes"].float()}, other | {"boxes": other["boxes"].float()})
        >>> mean["boxes"].tolist(), mean["scores"].tolist()
        ([[0.0, 0.0, 8.0, 7.0], [20.0, 0.0, 28.0, 8.0]], [0.6000000238418579, 0.5])
    """
    for found in (one, other):
        _check(found, one.keys())
    first, second = _same_objects(one, other)
    alone = [_others(first, len(one["scores"])), _others(second, len(other["scores"]))]
    mean = {}
    for name, values in one.items():
        both = values[first]  # of one class
        if name != "labels":
            both = both / 2 + other[name][second] / 2
        parts = [both, values[alone[0]], other[name][alone[1]]]
        mean[name] = torch.cat([both, *(part / 2 for part in parts[1:])] if name == "scores" else parts)
    order = _order(mean)
    return {name: values[order] for name, values in mean.items()}


def _check(found: Mapping[str, Any], names: Collection[str]) -> None:
    objects = found["scores"] if found.keys() >= NEEDED and found.keys() == names else None
    if not isinstance(objects, Tensor) or not all(
        isinstance(value, Tensor)
        and value.ndim
        and len(value) == len(objects)
        and (name == "labels" or value.is_floating_point())
        for name, value in found.items()
    ):
        raise ModelError(
            f"what is returned for each window ({', '.join(map(str, found))}) cannot be averaged; return boxes, labels and "
            "scores, and nothing else but floating-point values of each object, or symmetrize a network at 'encoder'"
        )


def _same_objects(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the indices in both of the objects that were found in both."""
    from torchvision.ops import box_iou

    overlap = box_iou(one["boxes"].detach(), other["boxes"].detach())
    overlap = overlap * (one["labels"][:, None] == other["labels"])
    if not overlap.numel():
        nothing = torch.zeros(0, dtype=torch.long, device=overlap.device)
        return nothing, nothing
    most, nearest = overlap.max(dim=1)
    mutual = overlap.max(dim=0).indices[nearest] == torch.arange(len(nearest), device=overlap.device)
    first = ((most >= SAME_OBJECT) & mutual).nonzero().flatten()
    return first, nearest[first]


def _others(indices: Tensor, count: int) -> Tensor:
    """Return which of some objects are not among the indices."""
    rest = torch.ones(count, dtype=torch.bool, device=indices.device)
    rest[indices] = False
    return rest


def _order(found: Mapping[str, Tensor]) -> Tensor:
    """Return the objects by descending score, and equal ones by label and box, so that no order of windows shows in it."""
    keys = torch.cat(
        [-found["scores"].detach()[:, None], found["labels"][:, None], found["boxes"].detach()], dim=1
    )
    order = torch.arange(len(keys), device=keys.device)
    for key in keys.unbind(dim=1)[::-1]:  # the last sort decides first
        order = order[key[order].argsort(stable=True)]
    return order
