"""Opening a volume: any file as a lazy array (z, y, x).

    volume = open_volume("brain.nii.gz")
    volume.shape      (189, 233, 197), always z, y, x
    volume.spacing    (1.0, 1.0, 1.0) in volume.unit, or None
    volume[90:95]     reads these five slices only

Formats: multi-page TIFF (plain, ImageJ, OME, BigTIFF; compressed or not), NIfTI (.nii, .nii.gz), DICOM (a folder or
a multi-frame file), MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr), HDF5 (file.h5:/path), MRC, NumPy .npy, Zarr (formats 2
and 3, including OME-Zarr), N5 and Neuroglancer precomputed (these three also at https://, s3://, gs:// and az://
addresses), folders of TIFF, PNG or JPEG slices, and NumPy arrays.
A file with axes other than z, y and x is refused until ``axes`` and ``select`` say what to read.
``read.formats.READ_FORMATS`` is the table of formats.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from numpy.typing import NDArray

from evenslice._core import ConfigError, VolumeError, did_you_mean, option, whole_number
from evenslice.volumes.axes import arrange, check_axes, check_picks
from evenslice.volumes.label_places import check_place
from evenslice.volumes.masked_arrays import fill_masked, is_masked
from evenslice.volumes.read.formats import open_source
from evenslice.volumes.read.location import Place, locate
from evenslice.volumes.read.source import ArraySource, VoxelSource
from evenslice.volumes.units import UNITS, normal_unit, positive
from evenslice.volumes.views import reslice, take_region
from evenslice.volumes.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["VolumeLike", "open_complete", "open_filled", "open_labels", "open_volume", "stated_axes"]

VolumeLike = Volume | NDArray[Any] | str | os.PathLike[str]
"""A volume, an array (z, y, x), a path or an address."""


ARRAY = ("shape", "dtype", "__getitem__")
"""What every array has."""


def open_volume(  # noqa: PLR0913  # all but one argument have defaults and names
    path: VolumeLike,
    *,
    axes: str | None = None,
    select: Mapping[str, int] | None = None,
    level: int = 0,
    spacing: Sequence[float] | None = None,
    unit: str | None = None,
    plane: str | None = None,
    region: Sequence[slice] | None = None,
    fill: float | None = None,
) -> Volume:
    """Open a volume; only its metadata is read.

    Args:
        path: a file, a folder of slices, a folder or an address (https://..., s3://..., gs://..., az://...)
            of Zarr, N5 or Neuroglancer precomputed data, a dataset in an HDF5 file (file.h5:/path), an array of
            NumPy, Dask, Zarr, h5py or xarray (whose dimensions may be named z, y and x), or an open volume, which only
            another ``plane`` or a ``region`` changes.
        axes: one letter per stored dimension in stored order, including z, y and x ("xyz", "tzyx"); by default what the
            file says, or z, y, x for three unnamed dimensions.
        select: the index to read along each other axis longer than 1, such as ``{"t": 0}``; ``{"series": 0}`` picks
            one of several series in a DICOM folder.
        level: resolution level of an OME-Zarr, N5 or precomputed image, 0 the finest.
        spacing: voxel size along z, y, x, instead of the file's.
        unit: unit of the spacing ("nm", "um", "mm", ...), instead of the file's.
        plane: the axis along which slices follow one another: "z", or "y" or "x" for a volume whose first axis is that
            one. Everything else here refers to the axes of the file.
        region: the part that the volume consists of, one slice along each of z, y, x of the file, such as
            ``np.s_[0:16, :, 100:200]``; each voxel keeps its position in space.
        fill: the value of the masked voxels of an array; files and open volumes have none. It does not replace NaN and
            infinity, as the ``fill`` of ``audit``, ``segment`` and ``evaluate`` does.

    Raises:
        VolumeError: the file is missing, damaged, not of the format of its suffix, or not a volume of real numbers; the
            message names any option that would help.
        ConfigError: an option is wrong, or does not apply to this file.
        MissingExtraError: a package that reads the format is not installed.

    Example:
        >>> import numpy as np
        >>> stack = np.zeros((2, 30, 64, 48), np.uint8)
        >>> open_volume(stack, axes="czyx", select={"c": 1}).shape
        (30, 64, 48)
        >>> open_volume(stack)
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: has 4 dimensions (2, 30, 64, 48); name them, as axes='tzyx', and pick with
        select={'t': 0}
    """
    if fill is not None and not _is_array(path):
        named = path.path if isinstance(path, Volume) else path
        raise ConfigError(
            f"{option('fill', fill)}: has no effect on {named}, only arrays have masked voxels; leave it out here, and give it "
            "to what reads the volume to replace NaN and infinity"
        )
    if isinstance(path, Volume):
        if axes is not None or select or level or spacing is not None or unit is not None:
            raise ConfigError(f"{path.path}: is already open; give the options when opening it")
        part = path if region is None else take_region(path, region)
        return part if plane is None else reslice(part, plane)
    names, level, picks = (
        None if axes is None else check_axes(str(axes)),
        whole_number("level", level),
        check_picks(select),
    )
    opener: Callable[[], VoxelSource]
    if _is_array(path):
        if level:
            raise ConfigError(
                f"<array>: an array in memory has only one resolution level; omit {option('level', level)}"
            )
        place = Place("<array>", "")
        opener = partial(ArraySource, fill_masked(path, fill))
    else:
        place = locate(cast("str | os.PathLike[str]", path), level, picks.get("series"))
        if names is None:
            place = replace(place, picked=frozenset(axis.lower() for axis in picks))
        opener = partial(open_source, place)
    volume = _arranged(place, opener, names, picks)
    volume = _with_spacing(volume, spacing, unit)
    return reslice(volume if region is None else take_region(volume, region), "z" if plane is None else plane)


def _is_array(item: object) -> TypeGuard[NDArray[Any]]:
    """Return whether something is an array, of whatever library."""
    return not isinstance(item, str | os.PathLike | Volume) and all(hasattr(item, name) for name in ARRAY)


def open_filled(given: VolumeLike, fill: float | None) -> Volume:
    """Open a volume whose missing voxels get a value: those that an array masks here, NaN and infinity when it is scaled.

    Raises:
        VolumeError: it cannot be opened.
        ConfigError: the data type of a masked array does not hold the value.

    Example:
        >>> import numpy as np
        >>> open_filled(np.ma.masked_equal([[[1, 2, 3]]], 2), 9)[0].tolist()
        [[1, 9, 3]]
    """
    return open_volume(given, fill=fill if _is_array(given) else None)


def open_labels(labels: VolumeLike, volume: Volume) -> Volume:
    """Open the labels of a volume, sliced along the same axis; of a file of the whole image, the region of the volume.

    Raises:
        VolumeError: they cannot be read, or have another shape, or lie elsewhere (see ``check_place``).

    Example:
        >>> import numpy as np
        >>> image = open_volume(np.zeros((2, 4, 4)))
        >>> open_labels(np.zeros((2, 4, 5), np.uint8), image)
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: labels of shape (2, 4, 5) do not fit <array> of shape (2, 4, 4); the two must
        be equal
    """
    if is_masked(labels):
        raise VolumeError(
            f"<array>: labels are a masked array; give array.filled(...), with the value of {option('ignore_label')}"
        )
    opened = open_volume(labels, plane=volume.plane)
    if volume.region is not None and isinstance(labels, str | os.PathLike):
        opened = _same_region(opened, volume)
    if opened.shape != volume.shape:
        raise VolumeError(
            f"{opened.path}: labels of shape {opened.shape} do not fit {volume.path} of shape {volume.shape}; "
            "the two must be equal"
        )
    check_place(opened, volume)
    return opened


def _same_region(labels: Volume, volume: Volume) -> Volume:
    """Return the region of labels that a volume is of its file, if they have the shape of that file."""
    if volume.region is None or reslice(labels, "z").shape != volume.whole_shape:
        return labels
    return take_region(labels, [slice(*bounds) for bounds in volume.region])


def open_complete(path: Path, *, select: Mapping[str, int] | None = None) -> Volume:
    """Open a Zarr folder in which no chunk may be missing; reading raises if one is.

    Args:
        path: the folder.
        select: the index to read along each other axis longer than 1.

    Raises:
        VolumeError: it cannot be opened.
    """
    place = replace(locate(path), since=0.0)
    return _arranged(place, partial(open_source, place), None, select or {})


def stated_axes(path: str | os.PathLike[str], *, level: int = 0, series: int | None = None) -> str | None:
    """Return what a file itself calls its stored dimensions, one letter each as ``axes`` has them; None if it does not say.

    Args:
        path: as ``open_volume`` takes it.
        level: resolution level, 0 the finest.
        series: which of several series in a DICOM folder.

    Raises:
        VolumeError: the file is missing, damaged, or not of the format of its suffix.
    """
    source = open_source(locate(path, level, series))
    return None if source.assumed else source.names


def _arranged(
    place: Place, opener: Callable[[], VoxelSource], names: str | None, select: Mapping[str, int]
) -> Volume:
    """Open the stored array and make a volume of it."""
    label = place.label
    source = opener()
    if source.dtype.kind not in "biuf" or source.dtype.itemsize > 8:
        raise VolumeError(
            f"{label}: its data type is {source.dtype}; a volume needs bool, integer or real voxels of at most 64 bits"
        )
    if names is not None and len(names) != len(source.shape):
        raise ConfigError(
            f"{label}: {option('axes', names)} names {len(names)} axes, its shape {source.shape} has "
            f"{len(source.shape)}; give one letter per axis"
        )
    picks = {axis: index for axis, index in select.items() if axis not in source.selected}
    arrangement = arrange(source.shape, names or source.names, picks, label)
    z, y, x = arrangement.zyx
    sizes = source.spacing
    spacing = source.voxel_size or (None if sizes is None else (sizes[z], sizes[y], sizes[x]))
    known = spacing is not None and positive(spacing)
    offset = source.offset or (0.0,) * len(source.shape)
    volume = Volume(
        path=label,
        location=place.location or None,
        part=source.part,
        format=source.format,
        shape=(source.shape[z], source.shape[y], source.shape[x]),
        dtype=source.dtype.newbyteorder("="),
        spacing=spacing if known else None,
        unit=source.unit if known else None,
        chunks=None if source.chunks is None else (source.chunks[z], source.chunks[y], source.chunks[x]),
        # An affine refers to the axes as the file names them.
        affine=source.affine if source.names is not None and names in (None, source.names) else None,
        files=source.files,
        _open=opener,
        _arrangement=arrangement,
        _sources=[source],
        level=place.level,
        placed=source.placed,
        offset=(offset[z], offset[y], offset[x]),
        axes_given=names is not None,
        select=dict(select),
    )
    return volume if volume.location is None else replace(volume, _whole=volume)


def _with_spacing(volume: Volume, spacing: Sequence[float] | None, unit: str | None) -> Volume:
    """Replace the file's spacing and unit by the user's.

    Raises:
        ConfigError: the spacing or unit is invalid, or there is a unit but no spacing.
    """
    if spacing is not None:
        # The file's unit belongs to the file's spacing.
        volume = replace(volume, spacing=_three_sizes(spacing), unit=None)
    if unit is not None:
        known = normal_unit(unit)
        if known is None:
            raise ConfigError(f"{option('unit', unit)}: unknown unit of length; {did_you_mean(unit, UNITS)}")
        if volume.spacing is None:
            raise ConfigError(f"{volume.path}: has no spacing to be in {unit}; give {option('spacing')} too")
        volume = replace(volume, unit=known)
    return volume


def _three_sizes(spacing: Sequence[float]) -> tuple[float, float, float]:
    with suppress(TypeError, OverflowError):  # not several, or not numbers that a spacing can be
        spacing = tuple(spacing)
        if len(spacing) == 3 and positive(spacing):
            z, y, x = spacing
            return float(z), float(y), float(x)
    raise ConfigError(f"{option('spacing', spacing)}: give three sizes above zero, along z, y, x")
