"""Volumes: any file as a lazy array (z, y, x).

    volume = open_volume("brain.nii.gz")
    volume.shape      (189, 233, 197), always z, y, x
    volume.spacing    (1.0, 1.0, 1.0) in volume.unit, or None
    volume[90:95]     reads five slices, and only those

What is read: multi-page TIFF (plain, ImageJ, OME, BigTIFF; compressed or not), NIfTI (.nii, .nii.gz), DICOM (a folder or
a multi-frame file), MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr), HDF5 (file.h5:/path), MRC, NumPy .npy, Zarr (formats 2
and 3, OME-Zarr images too; also at https:// and s3:// addresses), folders of TIFF, PNG or JPEG slices, and NumPy arrays.
A file with other axes than z, y and x is refused until ``axes`` and ``select`` say what to read of it.
``formats.FORMATS`` is the table in which a new format takes its place.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, nearest, option
from evenslice.volumes.axes import arrange, check_axes
from evenslice.volumes.blocks import first_nonfinite, iterate_blocks, sample
from evenslice.volumes.fingerprints import fingerprint
from evenslice.volumes.info import VolumeInfo, describe
from evenslice.volumes.read.formats import open_source
from evenslice.volumes.read.places import Place, is_address, locate
from evenslice.volumes.read.source import ArraySource, Source
from evenslice.volumes.units import UNITS, normal_unit, positive
from evenslice.volumes.views import hold_in_memory, map_voxels, take_slices
from evenslice.volumes.volume import Volume

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "Volume",
    "VolumeInfo",
    "describe",
    "fingerprint",
    "first_nonfinite",
    "hold_in_memory",
    "is_address",
    "iterate_blocks",
    "map_voxels",
    "open_volume",
    "sample",
    "take_slices",
]


def open_volume(
    path: str | os.PathLike[str] | NDArray[Any] | Volume,
    *,
    axes: str | None = None,
    select: Mapping[str, int] | None = None,
    level: int = 0,
    spacing: Sequence[float] | None = None,
    unit: str | None = None,
) -> Volume:
    """Open a volume; nothing but its metadata is read.

    Args:
        path: a file, a folder of slices, a Zarr folder or its address (https://..., s3://...), a data set in an HDF5 file
            (file.h5:/path), a NumPy array, or an open volume, which is returned as it is.
        axes: one letter for each stored dimension in stored order, z, y and x among them ("xyz", "tzyx"); by default
            what the file says, and z, y, x for an array of three dimensions that says nothing.
        select: which index to read of the other axes, as ``{"t": 0}``. Those of length 1 need no pick. Of a DICOM folder
            with several series, ``{"series": 0}`` picks one.
        level: resolution level of an OME-Zarr image, 0 the finest.
        spacing: voxel size along z, y, x, instead of the file's.
        unit: unit of the spacing ("nm", "um", "mm", ...), instead of the file's.

    Raises:
        VolumeError: there is no such file, it is not what its suffix says, it is damaged, or it is not a volume of
            real numbers; where an option would help, the message names it.
        ConfigError: an option is wrong, or does not apply to this file.

    Example:
        >>> import numpy as np
        >>> stack = np.zeros((2, 30, 64, 48), np.uint8)
        >>> open_volume(stack, axes="czyx", select={"c": 1}).shape
        (30, 64, 48)
        >>> open_volume(stack)
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: has 4 dimensions (2, 30, 64, 48); name them, as axes='tzyx', and pick with select={'t': 0}
    """
    if isinstance(path, Volume):
        if axes is not None or select or level or spacing is not None or unit is not None:
            raise ConfigError(f"{path.path}: is open already; give the options where it is opened")
        return path
    names = None if axes is None else check_axes(axes)
    opener: Callable[[], Source]
    if isinstance(path, np.ndarray):
        if level:
            raise ConfigError(f"<array>: an array in memory has no level {level}; leave it out")
        place = Place("<array>", "")
        opener = partial(ArraySource, path)
    else:
        place = locate(path, level, (select or {}).get("series"))
        opener = partial(open_source, place)
    volume = _arranged(place, opener, names, select or {})
    return _with_spacing(volume, spacing, unit)


def _arranged(
    place: Place, opener: Callable[[], Source], names: str | None, select: Mapping[str, int]
) -> Volume:
    """Open the source and lay a volume over it."""
    label = place.label
    source = opener()
    if source.dtype.kind not in "biuf" or source.dtype.itemsize > 8:
        raise VolumeError(
            f"{label}: its data type is {source.dtype}; a volume needs bool, integer or real voxels of at most 64 bits"
        )
    if names is not None and len(names) != len(source.shape):
        raise ConfigError(
            f"{label}: {option('axes', names)} names {len(names)} axes, its shape {source.shape} has {len(source.shape)}; give one letter each"
        )
    picks = {axis: index for axis, index in select.items() if axis not in source.picked}
    arrangement = arrange(source.shape, names or source.names, picks, label)
    z, y, x = arrangement.zyx
    sizes = source.spacing
    spacing = source.voxel_size or (None if sizes is None else (sizes[z], sizes[y], sizes[x]))
    known = spacing is not None and positive(spacing)
    return Volume(
        path=label,
        location=place.location or None,
        part=source.part,
        format=source.format,
        shape=(source.shape[z], source.shape[y], source.shape[x]),
        dtype=source.dtype.newbyteorder("="),
        spacing=spacing if known else None,
        unit=source.unit if known else None,
        chunks=None if source.chunks is None else (source.chunks[z], source.chunks[y], source.chunks[x]),
        # It speaks of the axes as the file names them.
        affine=source.affine if source.names is not None and names in (None, source.names) else None,
        files=source.files,
        _open=opener,
        _arrangement=arrangement,
        _sources=[source],
    )


def _with_spacing(volume: Volume, spacing: Sequence[float] | None, unit: str | None) -> Volume:
    """Put the user's spacing and unit in the place of the file's.

    Raises:
        ConfigError: they are no spacing or no unit, or there is no spacing that the unit could belong to.
    """
    if spacing is not None:
        if len(spacing) != 3 or not positive(spacing):
            raise ConfigError(f"spacing {tuple(spacing)}: give three sizes above zero, along z, y, x")
        z, y, x = spacing
        # A unit that the file states belongs to the spacing that it states.
        volume = replace(volume, spacing=(float(z), float(y), float(x)), unit=None)
    if unit is not None:
        known = normal_unit(unit)
        if known is None:
            raise ConfigError(f"unit {unit!r} is no unit of length; {nearest(unit, UNITS)}")
        if volume.spacing is None:
            raise ConfigError(f"{volume.path}: has no spacing that could be in {unit}; give the spacing too")
        volume = replace(volume, unit=known)
    return volume
