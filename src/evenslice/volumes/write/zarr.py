"""OME-Zarr images (version 0.5 in Zarr format 3), with resolution levels.

Metadata is written last, that of the group at the very end: an unfinished image does not open as a volume.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import needs_extra
from evenslice.volumes.blocks import cut_axis
from evenslice.volumes.write.image import chunk_shape
from evenslice.volumes.write.pyramid import halve, levels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from zarr.abc.store import Store

    from evenslice.volumes.units import Unit
    from evenslice.volumes.write.image import Image
    from evenslice.volumes.write.pyramid import Level

__all__ = ["write_zarr", "write_zarr_store"]

_UNITS: dict[Unit, str] = {
    "pm": "picometer",
    "angstrom": "angstrom",
    "nm": "nanometer",
    "um": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "inch": "inch",
}


def write_zarr(path: Path, image: Image) -> None:
    """Write the image as a folder."""
    with needs_extra("volumes", "writing a Zarr volume"):
        from zarr.storage import LocalStore
    write_zarr_store(LocalStore(path), image, path.name)


def write_zarr_store(store: Store, image: Image, name: str) -> None:
    """Write the image into an empty Zarr store.

    Args:
        store: the store.
        image: the image.
        name: name of the image in its metadata.
    """
    from evenslice.volumes.read.zarr import settle
    from evenslice.volumes.write.metadata_last import MetadataLast

    held = MetadataLast(store)
    try:
        _write_levels(held, image, name)
        held.release()
    except BaseException:
        settle()
        raise


def _write_levels(store: Store, image: Image, name: str) -> None:
    import zarr

    plan = levels(image.zyx, image.spacing)
    image.tally.expect(len(image.channels) * sum(math.prod(level.shape) for level in plan[1:]))
    chunks = chunk_shape(image.zyx, image.dtype.itemsize)
    arrays = [_create(store, str(number), level, chunks, image) for number, level in enumerate(plan)]
    for channel, part, voxels in image.slabs(multiple=chunks[0]):
        arrays[0][_at(image, channel, part)] = voxels
    for number, level in enumerate(plan[1:], start=1):
        _fill(arrays[number], arrays[number - 1], level, image)
    zarr.open_group(store, mode="r+").attrs["ome"] = _metadata(plan, image, name)


def _create(store: Store, name: str, level: Level, chunks: tuple[int, ...], image: Image) -> Any:
    import zarr
    from zarr.codecs import BloscCodec

    channels = [len(image.channels)] if image.stacked else []
    return zarr.create_array(
        store,
        name=name,
        shape=(*channels, *level.shape),
        chunks=(*(1 for _ in channels), *map(min, chunks, level.shape)),
        dtype=image.dtype,
        # Blosc is a core codec of the format; plain zstd is not.
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=image.dtype.itemsize),
        fill_value=0,
        dimension_names=_names(image),
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


def _names(image: Image) -> str:
    return "czyx" if image.stacked else "zyx"


def _metadata(plan: Sequence[Level], image: Image, name: str) -> dict[str, Any]:
    """Return the metadata of the group; see https://ngff.openmicroscopy.org/0.5/."""
    spacing = image.spacing or (1.0, 1.0, 1.0)
    unit = {} if image.unit is None else {"unit": _UNITS[image.unit]}
    space: list[dict[str, str]] = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    lead = [1.0] if image.stacked else []
    datasets = []
    for number, level in enumerate(plan):
        scale = [size * factor for size, factor in zip(spacing, level.factors, strict=True)]
        transformations: list[dict[str, Any]] = [{"type": "scale", "scale": [*lead, *scale]}]
        # The first voxel of a coarser level is centred on the voxels of the finest one that it covers.
        shift = [
            size * (place + (factor - 1) / 2)
            for size, place, factor in zip(spacing, image.offset, level.factors, strict=True)
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
