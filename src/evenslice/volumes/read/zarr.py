"""Zarr arrays (format 2 and 3) and OME-Zarr images (0.1 to 0.5), in a folder or at an address."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, needs_extra, option
from evenslice.volumes.read.checks import require_piece, without_warnings
from evenslice.volumes.read.location import locate
from evenslice.volumes.read.metadata import LARGEST_OFFSET, is_inside, letters, scaled_spacing
from evenslice.volumes.read.remote import reporting_network_errors
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.location import Place

__all__ = ["ZarrSource", "image_above", "is_zarr", "settle"]

_MOST_NESTED = 3
"""How many folders below that of its image the array of a level is looked for."""

_METADATA_FILES = ("zarr.json", ".zarray", ".zgroup")

_PATIENCE = 3
"""Seconds that are waited for reads that nobody needs any more."""

_WAITING = "evenslice: waits for the others"
"""Name of tasks that wait for Zarr's tasks, which do not wait for each other."""


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a Zarr array or group, of either format."""
    return any((path / name).is_file() for name in _METADATA_FILES)


def image_above(path: Path) -> tuple[Path, int] | None:
    """Return the OME-Zarr image that an array in a folder is a level of, and which level; None if it is none."""
    import zarr

    from evenslice.volumes.read.zarr_store import ChunkStore

    for folder in list(path.parents)[:_MOST_NESTED]:
        if not is_zarr(folder):
            continue
        node = zarr.open(ChunkStore(locate(folder)), mode="r")
        if not isinstance(node, zarr.Group) or not (images := _images(node)):
            continue
        for level, dataset in enumerate(images[0]["datasets"]):
            if folder / str(dataset["path"]).strip("/") == path:
                return folder, level
    return None


class ZarrSource(VoxelSource):
    """A Zarr array, or one resolution level of an OME-Zarr image."""

    def __init__(self, place: Place) -> None:
        with needs_extra("volumes", "reading a Zarr volume"):
            import zarr

            from evenslice.volumes.read.zarr_store import ChunkStore
        label, level = place.label, place.level
        store = ChunkStore(place)
        with without_warnings():  # of codecs that other programs may not read
            if isinstance(place.location, str):
                with reporting_network_errors(label):
                    node = zarr.open(store, mode="r")
            else:
                node = zarr.open(store, mode="r")
            if isinstance(node, zarr.Array):
                if level:
                    raise ConfigError(
                        f"{label}: has only one resolution level; omit {option('level', level)}"
                    )
                array = node
                self.names = _dimension_names(node)
            else:
                array = self._open_level(node, _first_image(node, label), level, label)
        self.format = f"{'Zarr' if array is node else 'OME-Zarr'} v{array.metadata.zarr_format}"
        self.shape = array.shape
        self.dtype = np.dtype(array.dtype)
        self.chunks = array.chunks
        require_piece(label, "its chunks", self.chunks, self.dtype)
        _refuse_pickles(array, label)
        store.expect(array)
        self.array = array

    def _open_level(self, group: Any, image: Mapping[str, Any], level: int, label: str) -> Any:
        """Open the array of a level and set the names, spacing and unit of its axes."""
        import zarr

        datasets = image["datasets"]
        if not 0 <= level < len(datasets):
            raise ConfigError(
                f"{label}: has no level {level}; it has levels 0 to {len(datasets) - 1}, 0 the finest"
            )
        path = datasets[level]["path"]
        path = path.strip("/") if isinstance(path, str) else path
        if not is_inside(path):
            raise VolumeError(
                f"{label}: the path {str(path)[:60]!r} of level {level} is none inside the image and is not read; name the "
                "array of each level relative to the image"
            )
        array = group[path]
        if not isinstance(array, zarr.Array):
            raise VolumeError(
                f"{label}: level {level} of its metadata is not an array; write the image again"
            )
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes") or "tczyx"]
        if len(axes) != array.ndim:
            raise VolumeError(
                f"{label}: its metadata names {len(axes)} axes, its array has {array.ndim}; write the image again"
            )
        names = [str(axis["name"]).lower() for axis in axes]
        self.names = letters(names)
        scale, translation = _placement(len(names), [datasets[level], image])
        if scale is not None:
            units = [axis.get("unit") for axis in axes]
            self.spacing, self.unit = scaled_spacing(list(scale), units, names)
        self.offset = _in_voxels(translation, scale)
        return array

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the chunks under ``key``."""
        try:
            return np.asarray(self.array[key])
        except Exception:
            settle(_PATIENCE)  # what fails in other chunks later would be printed
            raise


def _refuse_pickles(array: Any, label: str) -> None:
    """Raise VolumeError if chunks are pickled, which a codec of format 2 would load."""
    metadata = array.metadata
    if metadata.zarr_format == 2 and any(
        codec is not None and codec.codec_id == "pickle"
        for codec in (metadata.compressor, *(metadata.filters or ()))
    ):
        raise VolumeError(
            f"{label}: its chunks are pickled Python objects, which are never loaded; write numbers"
        )


def settle(seconds: float | None = None) -> None:
    """Wait for whatever Zarr reads and writes, after a chunk has failed: its other tasks go on.

    Args:
        seconds: how long at most; by default until all is done.
    """
    from zarr.core.sync import sync

    sync(_all_others(seconds))


async def _all_others(seconds: float | None) -> None:
    own = asyncio.current_task()
    if own is not None:
        own.set_name(_WAITING)
    if others := {task for task in asyncio.all_tasks() if task.get_name() != _WAITING}:
        done, _ = await asyncio.wait(others, timeout=seconds)
        for task in done:
            if not task.cancelled():
                task.exception()  # else asyncio reports it, with its traceback


def _dimension_names(array: Any) -> str | None:
    """Return the dimension names of Zarr 3 or xarray, if they are single letters."""
    named = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return letters([str(name).lower() for name in named]) if named else None


def _first_image(group: Any, label: str) -> Mapping[str, Any]:
    """Return the first multiscales entry of an OME-Zarr group."""
    if images := _images(group):
        return images[0]
    try:
        inside = ["0"] * ("0" in group) + sorted(group.array_keys()) + sorted(group.group_keys())
    except ValueError:  # at an address, folders are not listed
        inside = ["0"] * ("0" in group)
    if not inside:
        raise VolumeError(f"{label}: is an empty Zarr group; name a Zarr array or an OME-Zarr image")
    listing = ", ".join(dict.fromkeys(inside[:6]))
    raise VolumeError(
        f"{label}: is a Zarr group without OME-Zarr metadata; name what is inside, as "
        f"{label.rstrip('/')}/{inside[0]} (it holds {listing})"
    )


def _images(group: Any) -> Sequence[Mapping[str, Any]]:
    """Return the multiscales entries of a group: under "ome" since OME-Zarr 0.5, at the top before; none of another group."""
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    return (ome.get("multiscales") or ()) if isinstance(ome, dict) else ()


def _placement(
    dimensions: int, transformed: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Return the scale along each dimension, None if none is stated, and the translation after it.

    Source: OME-Zarr 0.4 and 0.5, section "multiscales" metadata: the transformations of a dataset are applied first,
    those of the image after them.
    """
    scale, translation = np.ones(dimensions), np.zeros(dimensions)
    found = False
    for entry in transformed:
        for transformation in entry.get("coordinateTransformations") or []:
            if transformation.get("type") == "scale":
                factors = np.asarray(transformation["scale"], float)
                scale, translation = scale * factors, translation * factors
                found = True
            elif transformation.get("type") == "translation":
                translation = translation + _numbers(transformation.get("translation"), dimensions)
    return scale if found else None, translation


def _numbers(values: Any, count: int) -> NDArray[np.float64]:
    """Return as many numbers as there are dimensions; NaN for anything else, such as numbers in a file of their own."""
    with suppress(TypeError, ValueError, OverflowError):
        numbers = np.asarray(values, float)
        if numbers.shape == (count,):
            return numbers
    return np.full(count, np.nan)


def _in_voxels(
    translation: NDArray[np.float64], scale: NDArray[np.float64] | None
) -> tuple[float, ...] | None:
    """Return a translation in voxels; None if it is no place that voxels can have."""
    with np.errstate(all="ignore"):
        voxels = translation if scale is None else np.where(translation == 0, 0, translation / scale)
    return tuple(voxels.tolist()) if (np.abs(voxels) <= LARGEST_OFFSET).all() else None
