"""Writing volumes: labels, probabilities or intensities, in the format that the suffix names.

    write_volume(labels, "labels.ome.zarr", like=volume)
    write_channels(probabilities, "probabilities.nii.gz", like=volume)

A volume is read and written slab by slab, so it may be larger than memory. A file or folder is written beside its final
name and renamed at the end. ``formats.FORMATS`` is the table in which a new format takes its place:

| suffix | one volume | channels | kept beside the voxels |
| --- | --- | --- | --- |
| .tif .tiff .btf .tf8 | pages z (ImageJ; OME where needed) | pages z, then channel | spacing, unit |
| .nii .nii.gz | (x, y, z) | (x, y, z, channel), read as axis t | spacing, unit, affine |
| .ome.zarr .zarr, s3:// | (z, y, x) with resolution levels | (channel, z, y, x) | spacing, unit |
| .h5 .hdf5 .hdf | file.h5:/dataset (z, y, x) | (channel, z, y, x) | spacing where its unit is known |
| .mha .nrrd | (x, y, z) | components of each voxel | spacing in mm, affine |
| .npy | (z, y, x) | (channel, z, y, x) | nothing |

No value changes: truth values are stored as 0 and 1, and half precision as single, where a format lacks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenslice._core import ConfigError, staged_file, staged_tree, writing
from evenslice.volumes.write.formats import ZARR
from evenslice.volumes.write.image import Image, Tally
from evenslice.volumes.write.remote import write_remote
from evenslice.volumes.write.targets import Target, check_free, check_inputs, find_target, is_remote

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from evenslice.volumes.volume import Volume

__all__ = ["check_target", "is_remote", "write_channels", "write_volume"]


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
        volume: what to write.
        path: where; the suffix says the format. ``file.h5:/path`` names the dataset in an HDF5 file, which is
            ``/labels`` or ``/volume`` by default; ``s3://`` addresses take OME-Zarr.
        like: the volume whose spacing, unit and affine the result takes, as the segmented one; by default ``volume``.
        labels: whether voxels are class numbers, which are never mixed; by default whole numbers are.
        force: replace a volume that stands there; a file or folder that holds others too is never replaced.
        progress: is called with the number of voxels written so far, and of all, resolution levels included.

    Raises:
        VolumeError: the volume cannot be read.
        OutputError: the suffix is none that is written, something stands under that name and may not be replaced, it is
            or touches a volume that is read, or it cannot be written; then nothing new stands there.
        ConfigError: ``like`` has another shape.

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
    """Write volumes of one shape as the channels of one image, as the probabilities of classes.

    Args:
        channels: at least one; the first one's spacing, unit and affine are taken unless ``like`` is given.
        path: where, as in ``write_volume``; the dataset in an HDF5 file is ``/volume`` by default.
        like: the volume whose spacing, unit and affine the result takes.
        force: replace a volume that stands there.
        progress: is called with the number of voxels written so far, and of all.

    Raises:
        VolumeError: a volume cannot be read.
        OutputError: as for ``write_volume``.
        ConfigError: there is no channel, they or ``like`` differ in shape, or the channels in data type.

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
        raise ConfigError(f"{path}: there is no channel to write; give at least one")
    first = channels[0]
    for channel in channels:
        if (channel.shape, channel.dtype) != (first.shape, first.dtype):
            raise ConfigError(
                f"{channel.path}: is {channel.shape} {channel.dtype} and the first channel {first.shape} {first.dtype}; "
                "channels of one image are alike"
            )
    _write(tuple(channels), path, like=like, labels=False, force=force, progress=progress, stacked=True)


def check_target(path: str | os.PathLike[str], *inputs: Volume, force: bool = False) -> None:
    """Check before long work that its result can be written: all that ``write_volume`` refuses but a full disk.

    Args:
        path: where the result will go.
        inputs: the volumes that are read for it.
        force: whether a volume that stands there will be replaced.

    Raises:
        OutputError: it cannot be written there.
        MissingExtraError: a package that it takes is not installed.

    Example:
        >>> check_target("labels.tof")
        Traceback (most recent call last):
        ...
        evenslice.OutputError: labels.tof: the suffix '.tof' is none that evenslice writes; did you mean '.tif'? known: .tif, .tf8, .btf, .tiff, .hdf, … (13 in all)
    """
    _checked(path, inputs, force=force)


def _checked(path: str | os.PathLike[str], inputs: Sequence[Volume], *, force: bool) -> Target:
    target = find_target(path)
    check_inputs(target, inputs)
    check_free(target, force=force)
    return target


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
    model = channels[0] if like is None else like
    if model.shape != channels[0].shape:
        raise ConfigError(
            f"{path}: its shape is {channels[0].shape} and that of {model.path} {model.shape}; "
            "give the volume that it was made of"
        )
    target = _checked(path, [*channels, model], force=force)
    dtype = target.format.stored(channels[0].dtype)
    image = Image(
        channels=channels,
        stacked=stacked,
        labels=channels[0].dtype.kind in "biu" if labels is None else labels,
        dtype=dtype,
        spacing=model.spacing,
        unit=model.unit,
        affine=model.affine,
        tally=Tally(len(channels) * model.size, progress),
    )
    if isinstance(target.location, str):
        write_remote(target.location, target.label, image)
        return
    dataset = target.dataset or ("/labels" if image.labels else "/volume")
    with writing(target.label):
        if target.format is ZARR:
            with staged_tree(target.location, force=force) as beside:
                target.format.write(beside, image, dataset)
        else:
            with staged_file(target.location, force=force) as beside:
                target.format.write(beside, image, dataset)
