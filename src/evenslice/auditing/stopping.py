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
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.auditing.measuring import MeasuredBatch
    from evenslice.results import MethodNames, Thresholds

__all__ = ["knows_enough"]

MOST_FOR_SLICES = 200
"""Windows after which an audit does not go on for slices with an answer, with a second opinion or with a class."""


def knows_enough(
    batches: Sequence[MeasuredBatch], precision: float, thresholds: Thresholds, methods: MethodNames
) -> bool:
    """Return whether an audit knows what it can know without many more windows.

    That depends on widths and counts alone, not on estimates: an audit that looked until it liked its verdict would err
    more often than it says.

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
    classes = class_evidence(measurements, subset, thresholds, methods.first)
    return all(item.evidence.slices >= needed for item in classes)
