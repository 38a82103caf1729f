"""Opening a volume: any file as a lazy array (z, y, x).

    volume = open_volume("brain.nii.gz")
    volume.shape      (189, 233, 197), always z, y, x
    volume.spacing    (1.0, 1.0, 1.0) in volume.unit, or None
    volume[90:95]     reads these five slices only

Formats: multi-page TIFF (plain, ImageJ, OME, BigTIFF; compressed or not), NIfTI (.nii, .nii.gz), DICOM (a folder or
a multi-frame file), MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr), HDF5 (file.h5:/path), MRC, NumPy .npy, Zarr (formats 2
and 3, including OME-Zarr), N5 and Neuroglancer precomputed (these three also at https://, s3:// and gs://
addresses), folders of TIFF, PNG or JPEG slices, and NumPy arrays.
A file with axes other than z, y and x is refused until ``axes`` and ``select`` say what to read.
``read.formats.READ_FORMATS`` is the table of formats.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from evenslice._core import ConfigError, VolumeError, did_you_mean, needs_extra, option, whole_number
from evenslice.volumes.geometry import UNITS, normal_unit, positive
from evenslice.volumes.read.formats import open_source
from evenslice.volumes.read.source import ArraySource, Place, locate, pick_level, reporting_read_errors
from evenslice.volumes.volume import Origin, Stored, Volume, reslice, take_region

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from evenslice.volumes.read.source import VoxelSource

    # The stored dimensions that are z, y and x, and one index for each of the others.
    Arranged = tuple[tuple[int, int, int], dict[int, int]]

VolumeLike = Volume | NDArray[Any] | str | os.PathLike[str]
"""A volume, an array (z, y, x), a path or an address."""


def open_volume(  # all but one argument have defaults and names
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
        path: a file, a folder of slices, a folder or an address (https://..., s3://..., gs://...)
            of Zarr, N5 or Neuroglancer precomputed data, a dataset in an HDF5 file (file.h5:/path), a tensor, an array of
            NumPy, Dask, Zarr, h5py or xarray (whose dimensions may be named z, y and x), or an open volume, which only
            another ``plane`` or a ``region`` changes.
        axes: one letter per stored dimension in stored order, including z, y and x ("xyz", "tzyx"); by default from
            the file, or z, y, x for three unnamed dimensions.
        select: the index to read along each other axis longer than 1, such as ``{"t": 0}``; ``{"series": 0}`` picks
            one of several series in a DICOM folder.
        level: resolution level of an OME-Zarr, N5 or precomputed image, 0 the finest.
        spacing: voxel size along z, y, x, instead of the file's.
        unit: unit of the spacing ("nm", "um", "mm", ...), instead of the file's.
        plane: the axis along which slices follow one another, which becomes the first: "z", "y" or "x". All other
            arguments refer to the axes of the file.
        region: the part that the volume consists of, one slice along each of z, y, x of the file, such as
            ``np.s_[0:16, :, 100:200]``; each voxel keeps its position in space.
        fill: the value of the masked voxels of an array; files and open volumes have none. Unlike the ``fill`` of
            ``audit``, ``segment`` and ``evaluate``, it does not replace NaN and infinity.

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
    if fill is not None and not is_array(path):
        named = path.path if isinstance(path, Volume) else path
        raise ConfigError(f"{option('fill', fill)}: omit it for {named}; only arrays have masked voxels")
    if isinstance(path, Volume):
        if axes is not None or select or level or spacing is not None or unit is not None:
            raise ConfigError(f"{path.path}: is already open; give the options when opening it")
        part = path if region is None else take_region(path, region)
        return part if plane is None else reslice(part, plane)
    names = None if axes is None else _check_axes(str(axes))
    picks = {axis: whole_number("select", index) for axis, index in (select or {}).items()}
    level = whole_number("level", level)
    opener: Callable[[], VoxelSource]
    if is_array(path):
        pick_level([path], level)
        place = Place("<array>", "")
        opener = partial(ArraySource, _fill_masked(path, fill))
    else:
        place = locate(cast("str | os.PathLike[str]", path), level, picks.get("series"))
        if names is None:
            place = replace(place, picked=frozenset(axis.lower() for axis in picks))
        opener = partial(open_source, place)
    volume = _arranged(place, opener, names, picks)
    volume = _with_spacing(volume, spacing, unit)
    return reslice(volume if region is None else take_region(volume, region), "z" if plane is None else plane)


def is_array(item: object) -> TypeGuard[NDArray[Any]]:
    """Return whether something is an array, of whatever library."""
    is_other = isinstance(item, str | os.PathLike | Volume)
    return not is_other and all(hasattr(item, name) for name in ("shape", "dtype", "__getitem__"))


def _is_lazy(array: Any) -> bool:
    """Return whether an array is one of Dask whose chunks are masked arrays."""
    return isinstance(getattr(array, "_meta", None), np.ma.MaskedArray)


def is_masked(array: Any) -> bool:
    """Return whether voxels of an array are masked, or may be, as in a Dask array of masked chunks."""
    return bool(np.ma.is_masked(array)) or _is_lazy(array)


def _fill_masked(array: Any, fill: float | None) -> Any:
    """Return an array whose masked voxels, if there are any, have a value; a tensor as an array."""
    if hasattr(array, "detach"):
        with suppress(TypeError):  # of a type that NumPy lacks, which is refused later
            array = array.detach().cpu().numpy()
    if not is_masked(array):
        return np.ma.getdata(array) if np.ma.isMaskedArray(array) else array
    if fill is None:
        raise VolumeError(f"<array>: is masked; give {option('fill')}, the value of masked voxels")
    with np.errstate(over="ignore", invalid="ignore"):
        value: Any = np.asarray(fill).astype(array.dtype)[()]
        if float(value) != float(fill) and (array.dtype.kind != "f" or np.isinf(value)):
            raise ConfigError(f"{option('fill', fill)}: {array.dtype} has no such value; give another")
        if _is_lazy(array):
            return array.map_blocks(np.ma.filled, value, dtype=array.dtype)
        return np.ma.filled(array, value)


def list_given(given: Any) -> list[Any]:
    """Return one item or several as a list.

    Raises:
        ConfigError: there is none.
    """
    items = list(given) if isinstance(given, list | tuple) else [given]
    if not items:
        raise ConfigError("no volume given; at least one is needed")
    return items


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
    with reporting_read_errors(place.label, "a volume"):
        source = opener()
        picks = dict(select)
        if place.series is not None and source.format == "DICOM":
            del picks["series"]  # which is no axis
        (z, y, x), fixed = _arrangement(source, names, picks)

    def along(values: Any, axes: Sequence[Any] = (z, y, x)) -> Any:
        return None if values is None else tuple(values[axis] for axis in axes)

    sizes, unit = source.voxel_size
    spacing = along(sizes, "zyx" if isinstance(sizes, dict) else (z, y, x))
    known = spacing is not None and positive(spacing)
    volume = Volume(
        path=place.label,
        origin=Origin(
            location=place.location or None,
            part=source.part,
            format=source.format,
            files=source.files,
            level=place.level,
            select=dict(select),
            axes_given=names is not None,
        ),
        shape=along(source.shape),
        dtype=source.dtype.newbyteorder("="),
        spacing=spacing if known else None,
        unit=unit if known else None,
        chunks=along(source.chunks),
        # An affine refers to the axes as the file names them.
        affine=source.affine if source.names is not None and names in (None, source.names) else None,
        offset=along(source.offset) or (0.0, 0.0, 0.0),
        _stored=Stored((z, y, x), along(source.shape), fixed, opener, [source]),
    )
    if volume.location is None:
        return volume
    return replace(volume, _stored=replace(volume._stored, whole=volume))  # noqa: SLF001  # made here


def _arrangement(source: VoxelSource, names: str | None, picks: Mapping[str, int]) -> Arranged:
    if source.dtype.kind not in "biuf" or source.dtype.itemsize > 8:
        raise VolumeError(f"is {source.dtype}; a volume needs bool, integer or real voxels of up to 64 bits")
    if names is not None and len(names) != len(source.shape):
        raise ConfigError(f"{option('axes', names)} names {len(names)} axes of an array {source.shape}")
    return arrange(source.shape, names or source.names, picks)


def _with_spacing(volume: Volume, spacing: Sequence[float] | None, unit: str | None) -> Volume:
    """Replace the file's spacing and unit by the user's.

    Raises:
        ConfigError: the spacing or unit is invalid, or there is a unit but no spacing.
    """
    if spacing is not None:
        sizes = tuple(spacing)
        if len(sizes) != 3 or not positive(sizes):
            raise ConfigError(f"{option('spacing', spacing)}: give three sizes above zero, along z, y, x")
        # The file's unit belongs to the file's spacing.
        z, y, x = map(float, sizes)
        volume = replace(volume, spacing=(z, y, x), unit=None)
    if unit is not None:
        known = normal_unit(unit)
        if known is None:
            raise ConfigError(f"{option('unit', unit)}: unknown unit of length; {did_you_mean(unit, UNITS)}")
        if volume.spacing is None:
            raise ConfigError(f"{volume.path}: has no spacing to be in {unit}; give {option('spacing')} too")
        volume = replace(volume, unit=known)
    return volume


def _check_axes(axes: str) -> str:
    """Return the user's names of the stored dimensions, checked and in lower case.

    Raises:
        ConfigError: a name is not a letter or is repeated, or z, y or x is missing.

    Example:
        >>> _check_axes("TZYX")
        'tzyx'
    """
    names = axes.lower()
    if not names.isalpha() or len(set(names)) != len(names) or not set("zyx") <= set(names):
        raise ConfigError(f"{option('axes', axes)}: give one letter for each axis, with z, y and x, as tzyx")
    return names


def arrange(shape: tuple[int, ...], names: str | None, select: Mapping[str, int]) -> Arranged:
    """Find z, y and x among the stored dimensions, and one index for each of the others.

    Three unnamed dimensions are z, y, x. A dimension of length 1 that is neither z, y nor x is dropped.

    Args:
        shape: the stored shape.
        names: one letter per stored dimension, or None if unnamed.
        select: the index to read of a named dimension that is neither z, y nor x.

    Raises:
        VolumeError: the array is not a volume; the message names the option that makes it one.
        ConfigError: ``select`` does not fit the array.

    Example:
        >>> arrange((5, 20, 64, 48), "tzyx", {"t": 3})
        ((1, 2, 3), {0: 3})
    """
    if 0 in shape:
        raise VolumeError(f"has an empty axis, its shape is {shape}; a volume needs at least one voxel")
    if len(shape) < 3:
        raise VolumeError(f"is {len(shape)}-D ({_described(shape, names)}); a volume needs axes z, y, x")
    names = names or _assumed_names(shape, select)
    if missing := [name for name in "zyx" if name not in names]:
        example = "xyz" if 0 <= names.find("x") < names.find("y") else "zyx"
        raise VolumeError(
            f"has {_described(shape, names)} and no axis {' and '.join(missing)}; say which axis is which, as "
            f"{option('axes', example if len(shape) == 3 else f't{example}')}"
        )
    zyx = (names.index("z"), names.index("y"), names.index("x"))
    fixed = _selected(shape, names, select)
    fixed.update({d: 0 for d, n in enumerate(shape) if n == 1 and d not in zyx and d not in fixed})
    if rest := [name for d, name in enumerate(names) if d not in zyx and d not in fixed]:
        raise VolumeError(
            f"has {len(shape)} {_described(shape, names)}; pick one of axis {', '.join(rest).upper()} with "
            f"{option('select', dict.fromkeys(rest, 0))}, or name the axes by {option('axes')} if they are others"
        )
    return zyx, fixed


def _described(shape: tuple[int, ...], names: str | None) -> str:
    return f"axes {names.upper()} {shape}" if names else f"shape {shape}"


def _assumed_names(shape: tuple[int, ...], select: Mapping[str, int]) -> str:
    """Return names for unnamed dimensions: three are z, y and x, and so are three that are longer than 1."""
    long = [d for d, length in enumerate(shape) if length > 1]
    example = "tzyx" if len(shape) == 4 else "uvwtczyx"[-len(shape) :]
    named = f"{len(shape)} dimensions {shape}"
    if select:
        raise ConfigError(f"its {named} have no names to select by; name them, as {option('axes', example)}")
    if len(shape) == 3:
        return "zyx"
    if len(long) == 3:
        spatial = dict(zip(long, "zyx", strict=True))
        return "".join(spatial.get(d, "uvwtcabdefg"[d]) for d in range(len(shape)))
    picks = option("select", {name: 0 for name in example if name not in "zyx"})
    raise VolumeError(f"has {named}; name them, as {option('axes', example)}, and pick with {picks}")


def _selected(shape: tuple[int, ...], names: str, select: Mapping[str, int]) -> dict[int, int]:
    """Translate the user's selection to stored dimensions and indices."""
    fixed = {}
    choices = [name for name in names if name not in "zyx"]
    for axis, index in select.items():
        name, given = axis.lower(), option("select", {axis: index})
        if name not in choices:
            known = did_you_mean(name, choices) if choices else "its only axes are z, y and x"
            raise ConfigError(f"{given} names no axis of the file; {known}")
        place = names.index(name)
        if not 0 <= index < shape[place]:
            raise ConfigError(f"{given}: axis {name} has 0 to {shape[place] - 1}")
        fixed[place] = index
    return fixed


def mni152(name: Literal["t1", "gm", "wm"] = "t1") -> Volume:
    """Open the MNI152 T1 template, 189 x 233 x 197 voxels of 1 mm, or a map of the fraction of gray or white matter, 0..255.

    Args:
        name: "t1" for the template, "gm" for gray and "wm" for white matter.

    Raises:
        MissingExtraError: nilearn is not installed.

    Example:
        >>> volume = mni152()
        >>> volume.shape, volume.spacing
        ((189, 233, 197), (1.0, 1.0, 1.0))
    """
    with needs_extra("demo", "the demonstration volume"):
        import nilearn
    folder = Path(str(nilearn.__file__)).parent / "datasets" / "data"
    return open_volume(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
