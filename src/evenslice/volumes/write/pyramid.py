"""Resolution levels: which there are, and how a level is made of the one below it."""

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
        factors: how many voxels of the finest level one of this level is long, along z, y, x.
        steps: how many voxels of the level below one of this level is long, 1 or 2 along each axis.
    """

    shape: tuple[int, int, int]
    factors: tuple[int, int, int]
    steps: tuple[int, int, int]


def levels(shape: tuple[int, int, int], spacing: tuple[float, float, float] | None) -> list[Level]:
    """Return the resolution levels of an image, the finest first, until a slice fits into a small picture.

    Each level halves the axes along which voxels are less than twice as long as along the shortest, so that thick slices
    are kept until the pixels are as large as they are thick.

    Args:
        shape: number of voxels along z, y, x.
        spacing: voxel size along z, y, x; of an image that has none, all axes are halved.

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
        steps = tuple(2 if size < 2 * min(sizes) else 1 for size in sizes)
        # Where x and y are of very unequal size, an axis to be halved can be down to one voxel.
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
    """Make every box of ``steps`` voxels one.

    Labels become the most frequent of the box, of equally frequent ones the first, so that no new label appears;
    intensities become the mean, of integers the nearest to it. A box that is cut by the far border counts what there is.

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
    # An even number of voxels along each halved axis: repeating the last one leaves means and majorities as they are.
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
    """Return for each voxel the value that most corners have there; of equally many, that of the first corner."""
    best = corners[0].copy()
    most = np.zeros(best.shape, np.uint8)
    for number, corner in enumerate(corners):
        # Where an earlier corner has the same value, it was counted there with all its voxels, and this is fewer.
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
            # Divided first, so that the sum of large numbers does not overflow; division by 2, 4 or 8 is exact.
            mean += corner.astype(wide) / wide.type(count)
        return mean.astype(dtype)
    # Quotients and remainders apart: nothing overflows in the data type itself, and no digit is lost.
    total, rest = np.zeros_like(corners[0]), np.zeros_like(corners[0])
    for corner in corners:
        total += corner // dtype.type(count)
        rest += corner % dtype.type(count)
    total += (rest + dtype.type(count // 2)) // dtype.type(count)
    return total
