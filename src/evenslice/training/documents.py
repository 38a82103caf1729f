"""The documents in the folder of a run: what ``result.json`` and ``data.json`` hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import (
    TypedDict,
)  # pydantic checks documents by these types, and needs this one before Python 3.12

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RESULT_SCORES", "ClassScores", "DataPart", "TrainResult", "data_of_result"]

RESULT_SCORES = {
    "segmentation": ("dice", "iou"),
    "classification": ("accuracy", "balanced_accuracy", "macro_f1"),
}
"""The scores of each task that every ``result.json`` has, None without test volumes."""


class ClassScores(TypedDict):
    """A score by class, and its mean, in segmentations without the background; None where undefined."""

    mean: float | None
    per_class: list[float | None]


class DataPart(TypedDict):
    """A part of the data set: its shape (z, y, x), the voxel values of 0 and 1, and the fingerprints of its files."""

    name: str
    shape: list[int]
    intensity: list[float]
    image: str
    labels: str


class TrainResult(TypedDict, total=False):
    """The content of ``result.json``.

    ``dice`` to ``volumes`` are scores on the test volumes (``evenslice.inference.metrics.Scores``): without test
    volumes, ``dice`` and ``iou`` are None and the others absent. A classification has ``accuracy``,
    ``balanced_accuracy``, the recall of each class, ``macro_f1`` and ``confusion`` in their place
    (``ClassificationScores``). ``stress`` says what disturbed slices cost there (``evenslice.results.StressSummary``),
    None if that was not measured. ``validation`` has the ``step`` and the main score of the kept network, None without
    validation; ``bias`` what ``AsymmetryMonitor`` measured of that network, None if it was not measured at its step.
    ``seconds`` is the time spent training; ``data`` has the parts of each split.
    """

    accuracy: float | None
    balanced_accuracy: ClassScores | None
    macro_f1: ClassScores | None
    dice: ClassScores | None
    iou: ClassScores | None
    hd95: ClassScores
    surface_dice: ClassScores
    surface_dice_3: ClassScores
    adapted_rand_error: float | None
    variation_of_information: dict[str, float | None]
    confusion: list[list[int]]
    volumes: list[dict[str, Any]]
    stress: dict[str, Any] | None
    validation: dict[str, float] | None
    bias: dict[str, float | None] | None
    steps: int
    seconds: float
    name: str
    seed: int
    config: dict[str, Any]
    data: dict[str, list[DataPart]]
    network: dict[str, Any]
    record: dict[str, Any]
    command: str | None
    machine: dict[str, Any]
    versions: dict[str, str]
    created: str


def data_of_result(result: Mapping[str, Any]) -> set[str]:
    """Return the fingerprints of the files with which a network was trained and tested, from ``result.json``.

    Example:
        >>> sorted(data_of_result({"data": {"train": [{"image": "a", "labels": "b"}], "test": [{"image": "a", "labels": "c"}]}}))
        ['a', 'b', 'c']
    """
    return {part[kind] for parts in result["data"].values() for part in parts for kind in ("image", "labels")}
