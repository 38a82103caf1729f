"""Writing volumes: labels, probabilities or intensities, in the format of the suffix.

    write_volume(labels, "labels.ome.zarr", like=volume)
    write_channels(probabilities, "probabilities.nii.gz", like=volume)

A volume is read and written slab by slab, so it may be larger than memory. A file or folder is written beside its final
name and renamed at the end. ``write.formats.WRITE_FORMATS`` is the table of formats:

| suffix | one volume | channels | stored metadata |
| --- | --- | --- | --- |
| .tif .tiff .btf .tf8 | pages z (ImageJ; OME where needed) | pages z, then channel | spacing, unit |
| .nii .nii.gz | (x, y, z) | (x, y, z, channel), read as axis t | spacing, unit, affine |
| .ome.zarr .zarr, s3:// | (z, y, x) with resolution levels | (channel, z, y, x) | spacing, unit |
| .h5 .hdf5 .hdf | file.h5:/dataset (z, y, x) | (channel, z, y, x) | spacing where its unit is known |
| .mha .nrrd | (x, y, z) | components of each voxel | spacing in mm, affine |
| .npy | (z, y, x) | (channel, z, y, x) | nothing |

Values are stored without loss: where a format lacks them, booleans as 0 and 1, and half precision as single.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenslice._core import (
    ConfigError,
    OutputError,
    check_callable,
    reporting_write_errors,
    staged_file,
)
from evenslice.volumes.volume import Volume
from evenslice.volumes.write.formats import ZARR, checked_destination
from evenslice.volumes.write.image import Image, Tally
from evenslice.volumes.write.zarr import write_remote

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence


def write_volume(
    volume: Volume,
    path: str | os.PathLike[str],
    *,
    like: Volume | None = None,
    labels: bool | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a volume.

    Args:
        volume: the volume.
        path: the output; its suffix determines the format. ``file.h5:/path`` names the dataset in an HDF5 file, by
            default ``/labels`` or ``/volume``; OME-Zarr can also be written to ``s3://`` addresses.
        like: the volume from which to take spacing, unit and affine; by default ``volume``.
        labels: whether voxels are class numbers, which are never averaged; by default true for integers and booleans.
        force: replace an existing volume; a file or folder that contains anything else is never replaced.
        progress: called with the number of voxels written so far and in total, including resolution levels.

    Raises:
        VolumeError: the volume cannot be read.
        OutputError: the suffix is unknown, the output exists and may not be replaced, it overlaps an input, or it
            cannot be written; then nothing is left there.
        ConfigError: ``like`` has another shape, or one of the two is not an open volume.
        MissingExtraError: a package that writes the format is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), spacing=(50, 4, 4), unit="nm")
        >>> path = f"{tempfile.mkdtemp()}/labels.ome.zarr"
        >>> write_volume(volume, path)
        >>> again = open_volume(path)
        >>> again.spacing, again.unit, again[1, 2].tolist()
        ((50.0, 4.0, 4.0), 'nm', [20, 21, 22, 23])
    """
    _write((volume,), path, like=like, labels=labels, force=force, progress=progress, stacked=False)


def write_channels(
    channels: Sequence[Volume],
    path: str | os.PathLike[str],
    *,
    like: Volume | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write volumes of one shape as the channels of one image, such as class probabilities.

    Args:
        channels: at least one volume.
        path: the output, as in ``write_volume``; the dataset in an HDF5 file is ``/volume`` by default.
        like: the volume from which to take spacing, unit and affine; by default the first channel.
        force: replace an existing volume.
        progress: called with the number of voxels written so far and in total.

    Raises:
        VolumeError: a volume cannot be read.
        OutputError: as for ``write_volume``.
        ConfigError: there is no channel, shapes differ (including ``like``), data types of channels differ, or one of them
            is not an open volume.
        MissingExtraError: as for ``write_volume``.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> array = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4)
        >>> path = f"{tempfile.mkdtemp()}/probabilities.ome.zarr"
        >>> write_channels([open_volume(channel) for channel in array], path)
        >>> open_volume(path, select={"c": 1})[0, 0].tolist()
        [24.0, 25.0, 26.0, 27.0]
    """
    if not channels:
        raise ConfigError(f"{path}: there is no channel to write")
    first = channels[0]
    for channel in channels:
        _require_volume(channel)
        if (channel.shape, channel.dtype) != (first.shape, first.dtype):
            raise ConfigError(
                f"{channel.path}: is {channel.shape} {channel.dtype} and the first channel {first.shape} {first.dtype}"
            )
    _write(tuple(channels), path, like=like, labels=False, force=force, progress=progress, stacked=True)


def check_destination(path: str | os.PathLike[str], *inputs: Volume, force: bool = False) -> None:
    """Check whether an output can be written, before long work.

    Raises as ``write_volume`` would, but for what only shows later: a full disk, or voxels that the format cannot hold.

    Args:
        path: the output.
        inputs: the volumes that are read for it.
        force: whether an existing volume will be replaced.

    Raises:
        OutputError: it cannot be written there.
        MissingExtraError: a required package is not installed.

    Example:
        >>> check_destination("labels.tof")
        Traceback (most recent call last):
        ...
        evenslice.OutputError: labels.tof: cannot write '.tof' files; did you mean '.tif'? known: .tif, .tf8, .btf,
        .tiff, .hdf, … (13 in all)
    """
    checked_destination(path, inputs, force=force)


def _write(
    channels: tuple[Volume, ...],
    path: str | os.PathLike[str],
    *,
    like: Volume | None,
    labels: bool | None,
    force: bool,
    progress: Callable[[int, int], None] | None,
    stacked: bool,
) -> None:
    check_callable("progress", progress)
    model = channels[0] if like is None else like
    for given in (*channels, model):
        _require_volume(given)
    if model.shape != channels[0].shape:
        raise ConfigError(f"{path}: its shape is {channels[0].shape} and that of {model.path} {model.shape}")
    destination = checked_destination(path, [*channels, model], force=force)
    if labels is None:
        labels = channels[0].dtype.kind in "biu"
    image = Image(
        channels=channels,
        stacked=stacked,
        labels=labels,
        dtype=destination.format.stored(channels[0].dtype),
        spacing=model.spacing,
        unit=model.unit,
        affine=model.affine,
        placed=model.placed,
        tally=Tally(len(channels) * model.size, progress),
        dataset=destination.dataset or ("/labels" if labels else "/volume"),
        offset=model.offset,
    )
    if reason := destination.format.unfit(image):
        raise OutputError(f"{destination.path}: {reason}; choose .ome.zarr")
    if isinstance(destination.location, str):
        write_remote(destination.location, destination.path, image)
        return
    with (
        reporting_write_errors(destination.path),
        staged_file(destination.location, force=force, folder=destination.format is ZARR) as beside,
    ):
        destination.format.write(beside, image)


def _require_volume(given: Any) -> None:
    if not isinstance(given, Volume):
        raise ConfigError(f"what is written is an open volume, not {type(given).__name__}; open it first")
