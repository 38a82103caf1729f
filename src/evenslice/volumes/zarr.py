"""Zarr arrays (format 2 and 3) and OME-Zarr images (0.1 to 0.5) in a folder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.errors import ConfigError, VolumeError, needs_extra
from evenslice.volumes.source import LARGEST_CHUNK, Source
from evenslice.volumes.units import common_unit, normal_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.units import Unit

__all__ = ["ZarrSource", "is_zarr"]

_METADATA_FILES = ("zarr.json", ".zarray", ".zgroup")


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a Zarr array or group, of either format."""
    return any((path / name).is_file() for name in _METADATA_FILES)


class ZarrSource(Source):
    """A Zarr array, or one resolution level of an OME-Zarr image."""

    def __init__(self, path: Path, label: str, level: int) -> None:
        with needs_extra("volumes", "reading a Zarr volume"):
            import zarr
        node = zarr.open(str(path), mode="r")
        if isinstance(node, zarr.Array):
            if level:
                raise ConfigError(
                    f"{label}: is a plain Zarr array and has no level {level}; leave the level out"
                )
            self._array = node
            self.names = _dimension_names(node)
        else:
            image = _first_image(node, label)
            self._array = self._open_level(node, image, level, label)
        self.format = f"{'Zarr' if self._array is node else 'OME-Zarr'} v{self._array.metadata.zarr_format}"
        self.shape = self._array.shape
        self.dtype = np.dtype(self._array.dtype)
        self.chunks = self._array.chunks
        size = math.prod(self.chunks) * self.dtype.itemsize
        if size > LARGEST_CHUNK:
            raise VolumeError(
                f"{label}: its chunks {self.chunks} take {size:,} bytes each; store it with chunks below {LARGEST_CHUNK:,} bytes"
            )

    def _open_level(self, group: Any, image: Mapping[str, Any], level: int, label: str) -> Any:
        """Open the array of a level and take over the names, the spacing and the unit of its axes."""
        import zarr

        datasets = image["datasets"]
        if not 0 <= level < len(datasets):
            raise ConfigError(
                f"{label}: has no level {level}; it has levels 0 to {len(datasets) - 1}, 0 the finest"
            )
        array = group[datasets[level]["path"]]
        if not isinstance(array, zarr.Array):
            raise VolumeError(f"{label}: level {level} of its metadata is no array; write the image again")
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes") or "tczyx"]
        if len(axes) != array.ndim:
            raise VolumeError(
                f"{label}: its metadata names {len(axes)} axes, its array has {array.ndim}; write the image again"
            )
        names = [str(axis["name"]).lower() for axis in axes]
        self.names = _letters(names)
        self.spacing, self.unit = _spacing(names, axes, [datasets[level], image])
        return array

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the chunks under ``key``."""
        return np.asarray(self._array[key])


def _dimension_names(array: Any) -> str | None:
    """Return the names that Zarr 3 or xarray gave the dimensions, if they are single letters."""
    named = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return _letters([str(name).lower() for name in named]) if named else None


def _letters(names: list[str]) -> str | None:
    """Join names of one letter each, all different; longer ones say nothing that evenslice relies on."""
    joined = "".join(names)
    return joined if joined.isalpha() and len(joined) == len(names) == len(set(names)) else None


def _first_image(group: Any, label: str) -> Mapping[str, Any]:
    """Return the multiscales entry of an OME-Zarr group: under "ome" since 0.5, at the top before."""
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") if isinstance(ome, dict) else None
    if images:
        entry: Mapping[str, Any] = images[0]
        return entry
    inside = [
        name for name in ("0", *sorted(group.array_keys()), *sorted(group.group_keys())) if name in group
    ]
    if not inside:
        raise VolumeError(
            f"{label}: is a Zarr group with nothing in it; name a Zarr array or an OME-Zarr image"
        )
    listing = ", ".join(dict.fromkeys(inside[:6]))
    raise VolumeError(
        f"{label}: is a Zarr group without OME-Zarr metadata; name what is inside, as {label.rstrip('/')}/{inside[0]} (it holds {listing})"
    )


def _spacing(
    names: list[str], axes: Sequence[Mapping[str, Any]], transformed: Sequence[Mapping[str, Any]]
) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Multiply the scales of a level and of its image, in one unit for z, y and x.

    Source: OME-Zarr 0.4 and 0.5, section "multiscales" metadata: the transformations of a dataset are applied first,
    those of the image after them.
    """
    scale = np.ones(len(names))
    found = False
    for entry in transformed:
        for transformation in entry.get("coordinateTransformations") or []:
            if transformation.get("type") == "scale":
                scale = scale * np.asarray(transformation["scale"], float)
                found = True
    space = [names.index(name) for name in "zyx" if name in names]
    if not found or not space:
        return None, None
    units = [normal_unit(axes[dimension].get("unit")) for dimension in space]
    sizes, unit = common_unit([float(scale[dimension]) for dimension in space], units)
    if sizes is None:
        return None, None
    spacing = dict(zip(space, sizes, strict=True))
    return tuple(spacing.get(dimension, math.nan) for dimension in range(len(names))), unit
