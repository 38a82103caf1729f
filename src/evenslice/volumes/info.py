"""A summary of a volume: its metadata, and statistics of a sample of its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.volumes.affines import axis_codes
from evenslice.volumes.blocks import sample_stored
from evenslice.volumes.read.checks import reporting_read_errors
from evenslice.volumes.read.location import files_under, holds_many
from evenslice.volumes.read.slice_folder import SLICE_FOLDER, missing_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.units import Unit
    from evenslice.volumes.volume import Volume

__all__ = [
    "PERCENTILES",
    "VolumeInfo",
    "describe_missing_numbers",
    "describe_volume",
    "missing_slice_numbers",
]

PERCENTILES = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
MOST_CLASSES = 32
MOST_NUMBERS = 5  # that are named
MOST_FILES = 100_000  # whose sizes are added up


@dataclass(frozen=True)
class VolumeInfo:
    """A summary of a volume; the intensities are those of a sample.

    Attributes:
        path: as the user wrote it.
        part: the path of the dataset inside the file, or None for formats with one volume per file.
        format: the name of the file format.
        shape: number of voxels along z, y, x.
        dtype: name of the data type.
        spacing: voxel size along z, y, x, or None.
        unit: unit of the spacing, or None.
        chunks: size along z, y, x of the pieces that are decoded as one, or None.
        orientation: the sides of the patient to which x, y and z run, such as "LPS" (L left, R right; P posterior, A
            anterior; I inferior, S superior), or None if unknown.
        region: the first voxel and one past the last along z, y, x of the file, if only a region of it was opened; else
            None.
        bytes_on_disk: size of all files of the volume; None for an array in memory, an address, and a folder of more than
            100,000 files, which would take long to list.
        bytes_in_memory: size of all voxels in memory.
        sampled: number of voxels in the sample.
        nonfinite: how many of them are NaN or infinite; the following statistics exclude these.
        minimum: smallest value of the sample, a whole number if the voxels are, NaN if it has no finite value.
        maximum: largest value of the sample, likewise.
        percentiles: pairs of percentage and value; empty if the sample has no finite value.
        classes: pairs of value and fraction of the sample, by ascending value, if the voxels are integers of at most 32
            different values, as in a label volume; else None.
        missing_numbers: numbers that are missing in the file names of a folder of slices; the slices before and after
            count as adjacent.
    """

    path: str
    part: str | None
    format: str
    shape: tuple[int, int, int]
    dtype: str
    spacing: tuple[float, float, float] | None
    unit: Unit | None
    chunks: tuple[int, int, int] | None
    orientation: str | None
    region: tuple[tuple[int, int], ...] | None
    bytes_on_disk: int | None
    bytes_in_memory: int
    sampled: int
    nonfinite: int
    minimum: float
    maximum: float
    percentiles: tuple[tuple[float, float], ...]
    classes: tuple[tuple[int, float], ...] | None
    missing_numbers: tuple[int, ...]


def describe_volume(volume: Volume) -> VolumeInfo:
    """Describe a volume from its metadata and a sample of about a million voxels.

    Raises:
        VolumeError: the file cannot be read.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> info = describe_volume(open_volume(np.array([[[0, 0, 0, 7]]], np.uint8)))
        >>> info.maximum, info.classes
        (7, ((0, 0.75), (7, 0.25)))
    """
    values = sample_stored(volume)
    finite = values[np.isfinite(values)] if volume.dtype.kind == "f" else values
    return VolumeInfo(
        path=volume.path,
        part=volume.part,
        format=volume.format,
        shape=volume.shape,
        dtype=str(volume.dtype),
        spacing=volume.spacing,
        unit=volume.unit,
        chunks=volume.chunks,
        orientation=None if volume.affine is None or not volume.placed else axis_codes(volume.affine),
        region=volume.region,
        bytes_on_disk=_bytes_on_disk(volume),
        bytes_in_memory=volume.nbytes,
        sampled=values.size,
        nonfinite=values.size - finite.size,
        minimum=_number(finite.min()) if finite.size else float("nan"),
        maximum=_number(finite.max()) if finite.size else float("nan"),
        percentiles=_percentiles(finite),
        classes=_classes(finite) if volume.dtype.kind in "biu" else None,
        missing_numbers=missing_slice_numbers(volume),
    )


def missing_slice_numbers(volume: Volume) -> tuple[int, ...]:
    """Return which numbers are missing in the file names of a folder of slices, within the region that was opened.

    Other volumes have none: the order of a DICOM series is not that of its names.
    """
    files = volume.files
    if not files or not volume.format.startswith(SLICE_FOLDER):
        return ()
    if volume.region is not None and volume.whole_shape is not None and volume.whole_shape[0] == len(files):
        files = files[slice(*volume.region[0])]
    return tuple(missing_numbers(files))


def describe_missing_numbers(numbers: Sequence[int]) -> str:
    """Return which slices are missing in a folder, the first few by number, and what that means.

    Example:
        >>> describe_missing_numbers([3, 7])
        '3, 7, by the file names; those beside a gap count as adjacent'
    """
    named = ", ".join(map(str, numbers[:MOST_NUMBERS])) + " …" * (len(numbers) > MOST_NUMBERS)
    return f"{named}, by the file names; those beside a gap count as adjacent"


def _bytes_on_disk(volume: Volume) -> int | None:
    if volume.location is None or isinstance(volume.location, str):
        return None
    with reporting_read_errors(volume.path, volume.format):
        if volume.files:
            return sum(file.stat().st_size for file in volume.files)
        if holds_many(volume.location, MOST_FILES):
            return None
        return sum(file.stat().st_size for file in files_under(volume.location, volume.path))


def _number(value: Any) -> float:
    """Return a voxel value as a Python number; a float does not hold every integer of 64 bits."""
    return int(value) if value.dtype.kind in "biu" else float(value)


def _percentiles(values: NDArray[Any]) -> tuple[tuple[float, float], ...]:
    if not values.size:
        return ()
    # Half precision overflows in the interpolation, and bool has none.
    found = np.percentile(values.astype(np.float64), PERCENTILES)
    return tuple(zip(PERCENTILES, found.tolist(), strict=True))


def _classes(values: NDArray[Any]) -> tuple[tuple[int, float], ...] | None:
    kinds, counts = np.unique(values, return_counts=True)
    if kinds.size > MOST_CLASSES:
        return None
    return tuple((int(kind), int(count) / values.size) for kind, count in zip(kinds, counts, strict=True))
