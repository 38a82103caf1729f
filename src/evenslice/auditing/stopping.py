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

MOST_FOR_CHANGES = 400
"""Windows after which an audit does not go on because no answer has changed; in half precision, one of five tells."""


def knows_enough(
    batches: Sequence[MeasuredBatch], precision: float, thresholds: Thresholds, methods: MethodNames
) -> bool:
    """Return whether an audit knows what it can know without many more windows.

    That depends on widths and counts, and on whether all windows say the same, but not on what they say: an audit that
    looked until it liked its verdict would err more often than it says.

    Args:
        batches: what it has measured.
        precision: the half-width below which a pair bias is known precisely enough.
        thresholds: what counts as fair.
        methods: the names of its methods.
    """
    measurements = collect_measurements(batches)
    if not precise_enough(measurements, precision, thresholds):
        return False
    seen, answer = len(measurements.volume), answer_evidence(measurements, thresholds)
    # If no answer has changed so far, it takes more windows to say that few of all do.
    if answer is not None and answer.fit.unseen is not None and not answer.within().all():
        return seen >= MOST_FOR_CHANGES
    if seen >= MOST_FOR_SLICES:
        return True
    subset, needed = collect_subset(batches), min(count_slices(measurements), FEW_SLICES)
    told = [item.evidence for item in class_evidence(measurements, subset, thresholds, methods.first)]
    if methods.second is not None:
        second = second_evidence(measurements, subset, thresholds, methods.second)
        if second is None:
            return False
        told.append(second)
    return all(item.exact or item.slices >= needed for item in told) and (answer is None or answer.enough)
