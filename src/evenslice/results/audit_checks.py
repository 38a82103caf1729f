"""Checks of an audit that was read from files of unknown origin, so that reports can rely on its parts fitting together."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.results.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from evenslice.results.asymmetry import Asymmetry
    from evenslice.results.measurements import Measurements

__all__ = ["check_audit"]

LARGEST = 1e30
"""No figure of an audit can be larger; twice as many digits can no longer be drawn."""

MOST_SLICES = 1001
MOST_CLASSES = 256
LONGEST_NAME = 1000


def check_audit(audit: Any) -> None:
    """Check that the parts of an audit fit together, and that every figure is one that a report can show.

    Args:
        audit: an ``AuditResult``.

    Raises:
        ValueError: they do not.
    """
    slices, volumes = len(audit.statistics.shares), audit.run.volumes
    _check_statistics(audit.statistics, slices)
    if len(audit.name) > LONGEST_NAME:
        raise ValueError("its name is too long")
    if audit.windows < 1:
        raise ValueError("it has no windows")
    if audit.measurements is not None:
        _check_measurements(audit.measurements, audit.windows, slices, max(len(volumes), 1))
        if any(item.class_number >= audit.measurements.classes for item in audit.statistics.classes):
            raise ValueError("it has a class that none of its windows has")
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


def _check_statistics(found: Asymmetry, slices: int) -> None:
    if slices % 2 != 1 or slices > MOST_SLICES:
        raise ValueError(f"it has shares of {slices} slices")
    pairs = [found.pairs, found.data_pairs, found.wasserstein]
    items: list[Any] = [found, *found.classes, *found.by_volume]
    others = [part for item in items for part in (item.pairs, item.reliance)]
    if any(len(part) != slices // 2 for part in (*pairs, *filter(None, others))):
        raise ValueError("its numbers of slices and of pairs do not fit together")
    if len(found.classes) > MOST_CLASSES:
        raise ValueError(f"it has figures of {len(found.classes)} classes")
    if not 0 < found.tolerance <= 1:
        raise ValueError(f"its tolerance is {found.tolerance:g}")
    _check_intervals([*others, *(getattr(found, entry.name) for entry in fields(found))])


def _check_intervals(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, Interval):
            if any(abs(number) > LARGEST for number in (value.estimate, value.low, value.high)):
                raise ValueError("one of its figures is too large")
        elif isinstance(value, tuple):
            _check_intervals(value)


def _check_measurements(measured: Measurements, count: int, slices: int, volumes: int) -> None:
    classes, pairs = measured.pixels.shape[-1], slices // 2
    shapes: dict[str, tuple[int | None, ...]] = {
        "position": (3,),
        "saliency": (2, classes + 1, slices),
        "reliance": (2, classes + 1, slices),
        "explained": (classes + 1,),
        "mismatch": (classes + 1, pairs),
        "outer": (classes + 1, pairs),
        **dict.fromkeys(("pixels", "changed", "union"), (classes,)),
        "wasserstein": (pairs,),
        "level": (None,),
    }
    for entry in fields(measured):
        shape = (count, *shapes.get(entry.name, ()))
        kind = "iu" if entry.name in ("volume", "position") else "f"
        _check_array(f"measurements/{entry.name}", getattr(measured, entry.name), kind, shape)
    if classes > MOST_CLASSES + 1:
        raise ValueError(f"it has measurements of {classes} classes")
    _check_volumes("measurements", measured.volume, volumes)


def _check_examples(examples: Any, slices: int, volumes: int) -> None:
    count = examples.volume.shape[:1]
    _check_array("examples/volume", examples.volume, "iu", count)
    _check_array("examples/position", examples.position, "iu", (*count, 3))
    _check_array("examples/images", examples.images, "u", (*count, slices, None, None))
    for name in ("saliency", "maps"):
        _check_array(f"examples/{name}", getattr(examples, name), "f", examples.images.shape, numbers=True)
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
