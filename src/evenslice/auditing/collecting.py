"""The batches of an audit put together: measurements of all windows, of the subset, and the example windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evenslice.results import ExampleWindows, Measurements, SubsetMeasurements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.auditing.measuring import MeasuredBatch

    Floats = NDArray[np.float64]

__all__ = ["collect_examples", "collect_measurements", "collect_subset", "count_attributed"]


def count_attributed(batch: MeasuredBatch) -> tuple[int, int]:
    """Count the windows of which both orders have an attribution, and those of which at least one has."""
    given, mirrored = (~np.isnan(batch.rows[name]).any(axis=1) for name in ("shares", "mirrored_shares"))
    return int((given & mirrored).sum()), int((given | mirrored).sum())


def collect_measurements(batches: Sequence[MeasuredBatch]) -> Measurements:
    """Return the measurements of all windows, in the order of the visit."""
    places = np.concatenate([batch.places for batch in batches])
    parts = {key: [batch.rows[key] for batch in batches] for key in batches[0].rows}
    parts["level"] = _of_one_width(parts["level"])
    rows = {key: np.concatenate(values) for key, values in parts.items()}
    return Measurements(volume=places[:, 0], position=places[:, 1:], **rows)


def _of_one_width(parts: Sequence[Floats]) -> list[Floats]:
    """Return levels (n, F) with one F: means over the features if there are several, as many as are known where none is."""
    widths = {part.shape[1] for part in parts if not np.isnan(part).all()}
    if len(widths) > 1:
        return [part.mean(axis=1, keepdims=True) for part in parts]
    width = max(widths, default=1)
    return [part if part.shape[1] == width else np.full((len(part), width), np.nan) for part in parts]


def collect_subset(batches: Sequence[MeasuredBatch]) -> SubsetMeasurements:
    """Return the measurements of the subset."""
    starts = np.cumsum([0, *(len(batch.places) for batch in batches)])
    chosen = [(start, batch) for start, batch in zip(starts, batches, strict=False) if len(batch.subset)]
    if not chosen:
        return SubsetMeasurements.empty(batches[0].rows["shares"].shape[1])
    classes = max(batch.subset_rows["class_pixels"].shape[1] for _, batch in chosen)
    rows = {
        key: np.concatenate([_with_classes(key, batch.subset_rows[key], classes) for _, batch in chosen])
        for key in chosen[0][1].subset_rows
    }
    return SubsetMeasurements(
        window=np.concatenate([start + batch.subset for start, batch in chosen]), **rows
    )


def _with_classes(name: str, values: Floats, classes: int) -> Floats:
    """Fill up the classes that a batch did not see: a function may return class numbers of any size."""
    if "class" not in name:
        return values
    missing = [(0, 0), (0, classes - values.shape[1]), (0, 0)][: values.ndim]
    return np.pad(values, missing, constant_values=0 if name == "class_pixels" else np.nan)


def collect_examples(batches: Sequence[MeasuredBatch]) -> ExampleWindows:
    """Return the windows for the report."""
    places = np.concatenate([batch.places[: len(batch.images)] for batch in batches])
    return ExampleWindows(
        volume=places[:, 0],
        position=places[:, 1:],
        images=np.concatenate([batch.images for batch in batches]),
        saliency=np.concatenate([batch.saliency for batch in batches]),
    )
