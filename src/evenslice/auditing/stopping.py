"""When an audit knows enough to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenslice.auditing.collecting import collect_measurements, collect_subset
from evenslice.results import (
    FEW_SLICES,
    answer_evidence,
    class_evidence,
    count_slices,
    precise_enough,
    second_evidence,
    summarize,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.auditing.measuring import MeasuredBatch
    from evenslice.results import Measurements, MethodNames, SubsetMeasurements, Thresholds

__all__ = ["knows_enough"]

MOST_FOR_SLICES = 200
"""Windows after which an audit does not go on for slices with an answer, with a second opinion or with a class."""


def knows_enough(
    batches: Sequence[MeasuredBatch], precision: float, thresholds: Thresholds, methods: MethodNames
) -> bool:
    """Return whether an audit knows what it can know without many more windows.

    Args:
        batches: what it has measured.
        precision: the half-width below which a pair bias is known precisely enough.
        thresholds: what counts as fair.
        methods: the names of its methods.
    """
    measurements = collect_measurements(batches)
    if not precise_enough(measurements, precision, thresholds):
        return False
    if len(measurements.volume) >= MOST_FOR_SLICES:
        return True
    subset, needed = collect_subset(batches), min(count_slices(measurements), FEW_SLICES)
    if methods.second is not None:
        second = second_evidence(measurements, subset, thresholds, methods.second)
        if second is None or second.slices < needed:
            return False
    answer = answer_evidence(measurements, thresholds)
    if answer is not None and not answer.enough:
        return False
    return _knows_classes(measurements, subset, thresholds, methods, needed)


def _knows_classes(
    measurements: Measurements,
    subset: SubsetMeasurements,
    thresholds: Thresholds,
    methods: MethodNames,
    needed: int,
) -> bool:
    """Return whether each class was seen in enough slices, or the verdict is known without."""
    classes = class_evidence(measurements, subset, thresholds, methods.first)
    return (
        all(item.evidence.slices >= needed for item in classes)
        or summarize(measurements, subset, thresholds, methods).verdict != "inconclusive"
    )
