"""OME-Zarr images (version 0.5 in Zarr format 3), with resolution levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from evenslice.volumes.blocks import cut_axis
from evenslice.volumes.geometry import full_name
from evenslice.volumes.read.zarr import settle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.write.files import Image

SMALLEST = 256
LONGEST = (1.05, 2, 2)  # size of voxels along z, y, x, in that of the shortest, below which an axis is halved


def write_zarr(path: Path, image: Image) -> None:
    """Write the image as a folder."""
    try:
        _write_levels(path, image)
    except BaseException:
        settle()
        raise


def _write_levels(path: Path, image: Image) -> None:
    plan = levels(image.zyx, image.like.spacing)
    image.tally.expect(len(image.channels) * sum(math.prod(level.shape) for level in plan[1:]))
    arrays = [_create(path, str(number), level, image) for number, level in enumerate(plan)]
    for channel, part, voxels in image.slabs(multiple=image.chunks[0]):
        arrays[0][_at(image, channel, part)] = voxels
    for number, level in enumerate(plan[1:], start=1):
        _fill(arrays[number], arrays[number - 1], level, image)
    zarr.open_group(path, mode="r+").attrs["ome"] = _metadata(plan, image, path.name)


def _create(path: Path, name: str, level: Level, image: Image) -> Any:
    channels = [len(image.channels)] if image.stacked else []
    return zarr.create_array(
        path,
        name=name,
        shape=(*channels, *level.shape),
        chunks=(*(1 for _ in channels), *map(min, image.chunks, level.shape)),
        dtype=image.dtype,
        # Blosc is a core codec of the format; plain zstd is not.
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=image.dtype.itemsize),
        fill_value=0,
        dimension_names="czyx" if image.stacked else "zyx",
    )


def _fill(array: Any, finer: Any, level: Level, image: Image) -> None:
    """Make a level from the next finer one, one layer of chunks at a time."""
    depth = array.chunks[-3]
    for channel in range(len(image.channels)):
        for part in cut_axis(level.shape[0], depth):
            below = slice(part.start * level.steps[0], min(part.stop * level.steps[0], finer.shape[-3]))
            voxels = np.asarray(finer[_at(image, channel, below)])
            # One slice at a time, to take little memory beyond the layer itself.
            slices = [
                halve(voxels[z], level.steps, labels=image.labels)
                for z in cut_axis(len(voxels), level.steps[0])
            ]
            array[_at(image, channel, part)] = np.concatenate(slices)
            image.tally.add((part.stop - part.start) * math.prod(level.shape[1:]))


def _at(image: Image, channel: int, part: slice) -> tuple[int | slice, ...]:
    return (channel, part) if image.stacked else (part,)


def _metadata(plan: Sequence[Level], image: Image, name: str) -> dict[str, Any]:
    """Return the metadata of the group; see https://ngff.openmicroscopy.org/0.5/."""
    spacing = image.like.spacing or (1.0, 1.0, 1.0)
    unit = {} if image.like.unit is None else {"unit": full_name(image.like.unit)}
    space: list[dict[str, str]] = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    lead = [1.0] if image.stacked else []
    datasets = []
    for number, level in enumerate(plan):
        scale = [size * factor for size, factor in zip(spacing, level.factors, strict=True)]
        transformations: list[dict[str, Any]] = [{"type": "scale", "scale": [*lead, *scale]}]
        # The first voxel of a coarser level is centred on the voxels of the finest one that it covers.
        shift = [
            size * (place + (factor - 1) / 2)
            for size, place, factor in zip(spacing, image.like.offset, level.factors, strict=True)
        ]
        if any(shift):
            transformations.append({"type": "translation", "translation": [*(0.0 for _ in lead), *shift]})
        datasets.append({"path": str(number), "coordinateTransformations": transformations})
    multiscale = {
        "name": name,
        "axes": [*({"name": "c", "type": "channel"} for _ in lead), *space],
        "datasets": datasets,
        "type": "mode" if image.labels else "mean",
    }
    return {
        "version": "0.5",
        "multiscales": [multiscale],
        **({"image-label": {}} if image.labels else {}),
    }


@dataclass(frozen=True)
class Level:
    """One resolution level.

    Attributes:
        shape: number of voxels along z, y, x.
        factors: size of a voxel in voxels of the finest level, along z, y, x.
        steps: size of a voxel in voxels of the next finer level, 1 or 2 along each axis.
    """

    shape: tuple[int, int, int]
    factors: tuple[int, ...]
    steps: tuple[int, ...]


def levels(shape: tuple[int, int, int], spacing: tuple[float, float, float] | None) -> list[Level]:
    """Return the resolution levels of an image, the finest first, until a slice is at most ``SMALLEST`` pixels wide and high.

    Each level halves y and x where voxels are less than twice as long as along the shortest axis, and z only where they are
    no longer, so that slices are kept until pixels are larger than slices are thick. An axis of one voxel has nothing to
    halve and does not count.

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
            2 if length > 1 and size < most * shortest else 1
            for size, length, most in zip(sizes, last.shape, LONGEST, strict=True)
        )
        z, y, x = (-(-length // step) for length, step in zip(last.shape, steps, strict=True))
        factors = tuple(factor * step for factor, step in zip(last.factors, steps, strict=True))
        found.append(Level((z, y, x), factors, steps))
    return found


def halve(voxels: NDArray[Any], steps: tuple[int, ...], *, labels: bool) -> NDArray[Any]:
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
    """Return the mean of the corners; halves of whole numbers are rounded up."""
    dtype = corners[0].dtype
    wide = np.result_type(dtype, np.float32)
    # Divided first, so that sums of large numbers do not overflow; division by 2, 4 or 8 is exact.
    mean = np.asarray(sum(corner.astype(wide) / len(corners) for corner in corners))
    return (mean if dtype.kind == "f" else np.floor(mean + 0.5)).astype(dtype)
