"""Checks of an audit that was read from files of unknown origin, so that reports can rely on its parts fitting together."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.results.intervals import Interval
from evenslice.results.output_changes import OUTPUT_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from evenslice.results.measurements import Measurements
    from evenslice.results.subsets import SubsetMeasurements

__all__ = ["check_audit"]

LARGEST = 1e30
"""No figure of an audit can be larger; twice as many digits can no longer be drawn."""

MOST_SLICES = 1001
MOST_CLASSES = 256
ROUNDING = 1e-5
LONGEST_NAME = 1000


def check_audit(audit: Any) -> None:
    """Check that the parts of an audit fit together, and that every figure is one that a report can show.

    Args:
        audit: an ``AuditResult``.

    Raises:
        ValueError: they do not.
    """
    found, volumes = audit.statistics, audit.run.volumes
    slices = len(found.shares)
    if slices % 2 != 1 or slices > MOST_SLICES:
        raise ValueError(f"it has shares of {slices} slices")
    if {len(part) for part in (found.pairs, found.data_pairs, found.wasserstein)} != {slices // 2}:
        raise ValueError("its numbers of slices and of pairs do not fit together")
    if len(audit.name) > LONGEST_NAME:
        raise ValueError("its name is too long")
    if not 0 < found.tolerance <= 1:
        raise ValueError(f"its tolerance is {found.tolerance:g}")
    others = [item.pairs for item in (found.second_opinion, *found.classes) if item is not None]
    if any(len(pairs) != slices // 2 for pairs in others) or len(found.classes) > MOST_CLASSES:
        raise ValueError("its second opinion or its classes do not fit its slices")
    _check_intervals(others)
    _check_intervals(getattr(found, entry.name) for entry in fields(found))
    _check_measurements(audit.measurements, slices, max(len(volumes), 1))
    _check_subset(audit.subset, slices, len(audit.measurements.volume))
    _check_classes([item.class_number for item in found.classes], audit.subset)
    _check_examples(audit.examples, slices, max(len(volumes), 1))
    for index, kernels in enumerate(audit.kernels):
        for name in ("before", "after"):
            array = getattr(kernels, name)
            _check_array(f"kernels/{index}/{name}", array, "f", (None,) * 4, numbers=True)
            if array.size == 0:
                raise ValueError(f"kernels/{index}/{name} is empty")
    known = [value for volume in volumes for value in (*(volume.spacing or ()), *volume.intensity)]
    if any(abs(value) > LARGEST for value in known):
        raise ValueError("it states a volume with values beyond all bounds")


def _check_intervals(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, Interval):
            if any(abs(number) > LARGEST for number in (value.estimate, value.low, value.high)):
                raise ValueError("one of its figures is too large")
        elif isinstance(value, tuple):
            _check_intervals(value)


def _check_measurements(measured: Measurements, slices: int, volumes: int) -> None:
    windows = measured.volume.shape[:1]
    shapes = {
        "volume": ("iu", ()),
        "position": ("iu", (3,)),
        "shares": ("f", (slices,)),
        "mirrored_shares": ("f", (slices,)),
        "wasserstein": ("f", (slices // 2,)),
        "mismatch": ("f", (slices // 2,)),
        "outer": ("f", (slices // 2,)),
        **dict.fromkeys(OUTPUT_FIELDS, ("f", ())),
        "level": ("f", (None,)),
        "own_mirror": ("f", ()),
    }
    for name, (kind, shape) in shapes.items():
        _check_array(f"measurements/{name}", getattr(measured, name), kind, (*windows, *shape))
    if not windows[0]:
        raise ValueError("it has no windows")
    for shares in (measured.shares, measured.mirrored_shares):
        if bool(((shares < -ROUNDING) | (shares > 1 + ROUNDING)).any()):
            raise ValueError("it has shares that are not between 0 and 1")
    _check_volumes("measurements", measured.volume, volumes)


def _check_subset(subset: SubsetMeasurements, slices: int, windows: int) -> None:
    count, classes = subset.window.shape[:1], subset.class_pixels.shape[1:2]
    _check_array("subset/window", subset.window, "iu", count)
    if count[0] and not (subset.window.min() >= 0 and subset.window.max() < windows):
        raise ValueError(f"subset/window names a window that is not among the {windows} of the audit")
    for name in ("first_shares", "mirrored_first_shares", "second_shares", "mirrored_second_shares"):
        _check_array(f"subset/{name}", getattr(subset, name), "f", (*count, slices))
    _check_array("subset/class_pixels", subset.class_pixels, "f", (*count, *classes), numbers=True)
    for name in ("class_shares", "mirrored_class_shares"):
        _check_array(f"subset/{name}", getattr(subset, name), "f", (*count, *classes, slices))


def _check_classes(numbers: Iterable[int], subset: SubsetMeasurements) -> None:
    if any(not 0 <= number < subset.class_pixels.shape[1] for number in numbers):
        raise ValueError("it has a class that none of its windows has")


def _check_examples(examples: Any, slices: int, volumes: int) -> None:
    count = examples.volume.shape[:1]
    _check_array("examples/volume", examples.volume, "iu", count)
    _check_array("examples/position", examples.position, "iu", (*count, 3))
    _check_array("examples/images", examples.images, "u", (*count, slices, None, None))
    _check_array("examples/saliency", examples.saliency, "f", examples.images.shape, numbers=True)
    if examples.images.dtype != np.uint8 or (count[0] and examples.images.size == 0):
        raise ValueError(f"examples/images is {examples.images.dtype} of shape {examples.images.shape}")
    _check_volumes("examples", examples.volume, volumes)


def _check_volumes(name: str, volume: NDArray[Any], count: int) -> None:
    if volume.size and not (volume.min() >= 0 and volume.max() < count):
        raise ValueError(f"{name}/volume names a volume that is not among the {count} of the audit")


def _check_array(
    name: str, array: NDArray[Any], kinds: str, shape: tuple[int | None, ...], *, numbers: bool = False
) -> None:
    """Check the type and the shape (None is any length) of an array, and that it holds only ``numbers``."""
    fits = array.ndim == len(shape) and all(
        want is None or length == want for length, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype.kind not in kinds or not fits:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    if numbers and array.size and not float(np.max(np.abs(array))) <= LARGEST:  # NaN is not, either
        raise ValueError(f"{name} holds values beyond all bounds")
