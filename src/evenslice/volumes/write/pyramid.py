"""Resolution levels: their shapes, and how to make a level from the next finer one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Level", "halve", "levels"]

SMALLEST = 256


@dataclass(frozen=True)
class Level:
    """One resolution level.

    Attributes:
        shape: number of voxels along z, y, x.
        factors: size of a voxel in voxels of the finest level, along z, y, x.
        steps: size of a voxel in voxels of the next finer level, 1 or 2 along each axis.
    """

    shape: tuple[int, int, int]
    factors: tuple[int, int, int]
    steps: tuple[int, int, int]


def levels(shape: tuple[int, int, int], spacing: tuple[float, float, float] | None) -> list[Level]:
    """Return the resolution levels of an image, the finest first, until a slice is at most ``SMALLEST`` pixels wide and high.

    Each level halves the axes along which voxels are less than twice as long as along the shortest, so that slices are
    kept until pixels are as large as slices are thick. An axis of one voxel has nothing to halve and does not count.

    Args:
        shape: number of voxels along z, y, x.
        spacing: voxel size along z, y, x; if None, all axes are halved.

    Example:
        >>> [level.shape for level in levels((100, 1000, 800), (50, 10, 10))]
        [(100, 1000, 800), (100, 500, 400), (100, 250, 200)]
        >>> [level.factors for level in levels((100, 1000, 800), None)]
        [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    """
    found = [Level(shape, (1, 1, 1), (1, 1, 1))]
    while max(found[-1].shape[1:]) > SMALLEST:
        last = found[-1]
        sizes = [size * factor for size, factor in zip(spacing or (1, 1, 1), last.factors, strict=True)]
        shortest = min(size for size, length in zip(sizes, last.shape, strict=True) if length > 1)
        steps = tuple(
            2 if length > 1 and size < 2 * shortest else 1
            for size, length in zip(sizes, last.shape, strict=True)
        )
        found.append(
            Level(
                shape=_triple(-(-length // step) for length, step in zip(last.shape, steps, strict=True)),
                factors=_triple(factor * step for factor, step in zip(last.factors, steps, strict=True)),
                steps=_triple(steps),
            )
        )
    return found


def _triple(values: Any) -> tuple[int, int, int]:
    z, y, x = values
    return z, y, x


def halve(voxels: NDArray[Any], steps: tuple[int, int, int], *, labels: bool) -> NDArray[Any]:
    """Reduce every box of ``steps`` voxels to one.

    Labels become the most frequent label of the box, or the first of several, so that no new label appears; intensities
    become the mean, rounded for integers. A box at the far border may contain fewer voxels.

    Args:
        voxels: (z, y, x).
        steps: size of a box along z, y, x, 1 or 2 each.
        labels: whether the voxels are class numbers.

    Returns:
        (ceil(z / steps[0]), ceil(y / steps[1]), ceil(x / steps[2])), of the same data type.

    Example:
        >>> box = np.array([[[0, 3], [3, 9]]], np.uint8)
        >>> halve(box, (1, 2, 2), labels=True).item(), halve(box, (1, 2, 2), labels=False).item()
        (3, 4)
    """
    # Pad halved axes to an even length: repeating the last voxel does not change means and majorities.
    missing = [(0, -length % step) for length, step in zip(voxels.shape, steps, strict=True)]
    whole = np.pad(voxels, missing, mode="edge") if any(end for _, end in missing) else voxels
    corners = [
        np.ascontiguousarray(whole[z :: steps[0], y :: steps[1], x :: steps[2]])
        for z, y, x in product(*(range(step) for step in steps))
    ]
    if labels or voxels.dtype == bool:
        return _mode(corners)
    return _mean(corners)


def _mode(corners: list[NDArray[Any]]) -> NDArray[Any]:
    """Return for each voxel the value that most corners have, or the first of several."""
    best = corners[0].copy()
    most = np.zeros(best.shape, np.uint8)
    for number, corner in enumerate(corners):
        # If an earlier corner has the same value, the complete count was made there and is larger.
        count = np.zeros(best.shape, np.uint8)
        for other in corners[number:]:
            count += corner == other
        more = count > most
        np.copyto(best, corner, where=more)
        np.copyto(most, count, where=more)
    return best


def _mean(corners: list[NDArray[Any]]) -> NDArray[Any]:
    """Return the mean of the corners; their number is a power of two."""
    count = len(corners)
    dtype = corners[0].dtype
    if dtype.kind == "f":
        wide = np.result_type(dtype, np.float32)
        mean = np.zeros(corners[0].shape, wide)
        for corner in corners:
            # Divide first, so that sums of large numbers do not overflow; division by 2, 4 or 8 is exact.
            mean += corner.astype(wide) / wide.type(count)
        return mean.astype(dtype)
    # Sum quotients and remainders separately: exact, and without overflow in the data type itself.
    total, rest = np.zeros_like(corners[0]), np.zeros_like(corners[0])
    for corner in corners:
        total += corner // dtype.type(count)
        rest += corner % dtype.type(count)
    total += (rest + dtype.type(count // 2)) // dtype.type(count)
    return total
