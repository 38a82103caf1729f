"""Facts about a volume: a summary, hashes that tell whether two are of the same data, and the image that was opened."""

from __future__ import annotations

import hashlib
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, open_regular, read_bounded
from evenslice.volumes.geometry import axis_codes
from evenslice.volumes.read.formats import SLICE_FOLDER, missing_numbers
from evenslice.volumes.read.source import LARGEST_METADATA, confined, reporting_read_errors
from evenslice.volumes.volume import reslice, sample_chunks, sample_voxels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.volume import Volume

PERCENTILES = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
MOST_CLASSES = 32
MOST_NUMBERS = 5  # that are named
MOST_FILES = 100_000  # whose sizes are added up
_MOST_NESTED = 3  # folders below that of its image in which the array of a level lies


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Describe a volume from its metadata and a sample of about a million voxels.

    Returns:
        Plain values by name. ``path``, ``part``, ``format``, ``shape``, ``dtype``, ``spacing``, ``unit``, ``chunks`` and
        ``region`` are those of the volume; None if they are not known, or there are none. Also:

        - ``orientation``: the sides of the patient to which x, y and z run, such as "LPS" (L left, R right; P posterior, A
          anterior; I inferior, S superior), or None if unknown.
        - ``bytes_on_disk``: size of all files of the volume; None for an array in memory, an address, and a folder of more
          than 100,000 files, which would take long to list.
        - ``bytes_in_memory``: size of all voxels in memory.
        - ``sampled``, ``nonfinite``: number of voxels in the sample, and of those that are NaN or infinite, which the
          following exclude.
        - ``minimum``, ``maximum``: whole numbers if the voxels are; NaN if none is finite.
        - ``percentiles``: pairs of percentage and value; empty if none is finite.
        - ``classes``: pairs of value and fraction of the sample, by ascending value, if the voxels are integers of at most
          32 different values, as in a label volume; else None.
        - ``missing_numbers``: numbers that are missing in the file names of a folder of slices; the slices before and after
          count as adjacent.

    Raises:
        VolumeError: the file cannot be read.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> info = describe_volume(open_volume(np.array([[[0, 0, 0, 7]]], np.uint8)))
        >>> info["maximum"], info["classes"]
        (7, ((0, 0.75), (7, 0.25)))
    """
    values = sample_voxels(volume)
    finite = values[np.isfinite(values)] if volume.dtype.kind == "f" else values
    # Half precision overflows in the interpolation, and bool has none.
    percentiles = np.percentile(finite.astype(np.float64), PERCENTILES).tolist() if finite.size else []
    # A float does not hold every integer of 64 bits.
    number = int if volume.dtype.kind in "biu" else float
    return {
        "path": volume.path,
        "part": volume.part,
        "format": volume.format,
        "shape": volume.shape,
        "dtype": str(volume.dtype),
        "spacing": volume.spacing,
        "unit": volume.unit,
        "chunks": volume.chunks,
        "orientation": None if volume.affine is None else axis_codes(volume.affine),
        "region": volume.region,
        "bytes_on_disk": _bytes_on_disk(volume),
        "bytes_in_memory": volume.nbytes,
        "sampled": values.size,
        "nonfinite": values.size - finite.size,
        "minimum": number(finite.min()) if finite.size else float("nan"),
        "maximum": number(finite.max()) if finite.size else float("nan"),
        "percentiles": tuple(zip(PERCENTILES, percentiles, strict=False)),
        "classes": _classes(finite) if volume.dtype.kind in "biu" else None,
        "missing_numbers": _missing_numbers(volume),
    }


def _missing_numbers(volume: Volume) -> tuple[int, ...]:
    """Return which numbers are missing in the file names of a folder of slices, within the region that was opened.

    Other volumes have none: the order of a DICOM series is not that of its names.
    """
    files = volume.files
    if not files or not volume.format.startswith(SLICE_FOLDER):
        return ()
    if volume.region is not None and volume.whole_shape is not None and volume.whole_shape[0] == len(files):
        files = files[slice(*volume.region[0])]
    return tuple(missing_numbers(files))


def missing_slices(volume: Volume) -> str | None:
    """Return which slices are missing in a folder of slices, the first few by number, and what that means; None if none is.

    Example:
        >>> from evenslice.volumes import mni152
        >>> missing_slices(mni152()) is None
        True
    """
    numbers = _missing_numbers(volume)
    named = ", ".join(map(str, numbers[:MOST_NUMBERS])) + " …" * (len(numbers) > MOST_NUMBERS)
    return f"{named}, by the file names; those beside a gap count as adjacent" if numbers else None


def _bytes_on_disk(volume: Volume) -> int | None:
    if volume.location is None or isinstance(volume.location, str):
        return None
    with reporting_read_errors(volume.path, volume.format):
        files = list(islice(volume.files or _files_below(volume.location), MOST_FILES + 1))
        return None if len(files) > MOST_FILES else sum(file.stat().st_size for file in files)


def _classes(values: NDArray[Any]) -> tuple[tuple[int, float], ...] | None:
    kinds, counts = np.unique(values, return_counts=True)
    if kinds.size > MOST_CLASSES:
        return None
    return tuple((int(kind), int(count) / values.size) for kind, count in zip(kinds, counts, strict=True))


PARTIAL = "sha256-partial"
"""What the fingerprint of a volume starts with if it covers a part of it."""

WHOLE_BYTES = 2**32
END_BYTES = 2**26
MOST_LISTED = 2**16
SAMPLED_CHUNKS = 32  # a few seconds from most servers
SAMPLED_BYTES = 2**26
PIECE_BYTES = 2**20


def fingerprint(volume: Volume) -> str:
    """Hash the stored bytes of a volume; of a large one a part, so that the time is limited.

    Slices, regions, classes and copies of a volume in files or at an address have its fingerprint.

    Args:
        volume: a volume in files, in a Zarr folder, at an address, or in memory.

    Returns:
        "sha256:" and a hexadecimal SHA-256: of the file, as ``sha256sum`` prints it; of several files, of their
        relative names, sizes and contents (a Zarr folder in order of file names); of an array, of its bytes in the
        order z, y, x. Above 4 GiB, "sha256-partial:" and the hash of names, sizes, and the first and last 64 MiB; for
        an array of more than 4 GiB, or a folder of more than 65,536 files, the hash of format, shape, data type and
        a sample of a million voxels; for an address, that of the address, format, shape, data type, the first and the
        last chunk, and up to 32 chunks spread over the volume, of at most 64 MiB together.

    Raises:
        VolumeError: a file cannot be read.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> fingerprint(open_volume(np.zeros((1, 1, 1), np.uint8)))
        'sha256:6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d'
    """
    volume = reslice(volume._whole, "z")  # noqa: SLF001  # the same data, however it is sliced
    if volume.location is None:
        if volume.nbytes > WHOLE_BYTES:
            return _fingerprint_of_parts(volume, [sample_voxels(volume)])
        digest = hashlib.sha256()
        for z in range(len(volume)):
            digest.update(np.ascontiguousarray(volume[z]).tobytes())
        return f"sha256:{digest.hexdigest()}"
    if isinstance(volume.location, str):
        return _fingerprint_of_parts(volume, _outer_and_sampled_chunks(volume), volume.location)
    with reporting_read_errors(volume.path, volume.format):
        if volume.files is None and any(islice(_files_below(volume.location), MOST_LISTED, None)):
            return _fingerprint_of_parts(volume, [sample_voxels(volume)])
        return _fingerprint_of_files(volume, volume.location)


def modified(volume: Volume) -> str | None:
    """Hash the names, sizes and times of the last modification of the files of a volume; None if it is not in files.

    This takes little time, and tells whether the voxels may have changed.

    Raises:
        VolumeError: a file is missing.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> modified(open_volume(np.zeros((1, 1, 1), np.uint8))) is None
        True
    """
    if volume.location is None or isinstance(volume.location, str):
        return None
    total = 0
    with reporting_read_errors(volume.path, volume.format):
        for file in volume.files or _files_below(volume.location):
            found = file.stat()
            stamp = f"{os.fspath(file)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(
                errors="surrogateescape"
            )
            total += int.from_bytes(hashlib.sha256(stamp).digest(), "big")
    return f"{total % 2**256:064x}"


def _files_below(path: Path) -> Iterator[Path]:
    """Yield a file, or those below a folder in any order, without a list of them."""
    if not path.is_dir():  # what is not there is noticed by who opens it
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def _fingerprint_of_files(volume: Volume, location: Path) -> str:
    digest = hashlib.sha256()
    found = (file for file in _files_below(location) if file.is_file())
    named = volume.files or sorted(found, key=lambda file: file.relative_to(location).as_posix())
    for file in named:
        if file.is_symlink() and not volume.files and file != location:
            confined(location, file.relative_to(location).as_posix())
    files = [(file, file.stat().st_size) for file in named]
    partial = sum(size for _, size in files) > WHOLE_BYTES
    folder = location if location.is_dir() or len(files) == 1 else location.parent
    if partial or len(files) > 1 or location.is_dir():
        for file, size in files:
            name = os.path.relpath(file.resolve(), folder.resolve()).replace(os.sep, "/")
            digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
    for file, start, stop in _spans(files) if partial else [(file, 0, size) for file, size in files]:
        _update(digest, file, start, stop)
    return f"{PARTIAL if partial else 'sha256'}:{digest.hexdigest()}"


def _fingerprint_of_parts(volume: Volume, parts: Iterable[NDArray[Any]], *address: str) -> str:
    """Hash the metadata of a volume and some of its voxels, without loading it whole."""
    stated = (*address, volume.format, volume.shape, volume.dtype.str)
    digest = hashlib.sha256("".join(f"{item}\0" for item in stated).encode())
    for voxels in parts:
        digest.update(voxels.tobytes())
    return f"{PARTIAL}:{digest.hexdigest()}"


def _outer_and_sampled_chunks(volume: Volume) -> Iterator[NDArray[Any]]:
    chunk = volume.chunks or volume.shape
    yield volume[tuple(slice(0, size) for size in chunk)]
    ends = zip(chunk, volume.shape, strict=True)
    yield volume[tuple(slice((length - 1) // size * size, length) for size, length in ends)]
    yield from sample_chunks(volume, SAMPLED_CHUNKS, SAMPLED_BYTES)


def _spans(files: list[tuple[Path, int]]) -> Iterator[tuple[Path, int, int]]:
    """Yield the parts of files that make up the first and the last ``END_BYTES`` of all files laid end to end."""
    total = sum(size for _, size in files)
    origin = 0
    for file, size in files:
        for low, high in ((0, END_BYTES), (total - END_BYTES, total)):
            start, stop = max(low - origin, 0), min(high - origin, size)
            if start < stop:
                yield file, start, stop
        origin += size


def _update(digest: Any, path: Path, start: int, stop: int) -> None:
    """Hash bytes start to stop of a file, piece by piece."""
    with open_regular(path) as file:
        file.seek(start)
        while start < stop and (piece := file.read(min(PIECE_BYTES, stop - start))):
            digest.update(piece)
            start += len(piece)


def stored_image(volume: Volume) -> tuple[Any, Any]:
    """Return which stored image a volume was opened from, and how the slices of the image are counted.

    The image is equal for all links to a file, and for all its levels, which can differ in the number of slices, even if a
    level is opened by the path of its array. A copy of a file is another image, as is at an address an array that is opened
    by its own path, every data set of an HDF5 file, and every array in memory.

    Raises:
        VolumeError: the file cannot be read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.zeros((8, 300, 300), np.uint8))
        >>> stored_image(volume) == stored_image(volume)
        True
    """
    where: tuple[Any, ...] = (id(volume),)
    if volume.location is not None:
        places = volume.files or (volume.location,)
        where = (
            *(place if isinstance(place, str) else _image_folder(place) for place in places),
            volume.part,
        )
    reading = volume.reading
    depth = (volume.whole_shape or volume.shape)[0]
    return (*where, *map(tuple, reading["fixed"])), (depth, *reading["zyx"])


def _image_folder(path: Path) -> Path:
    """Return a path, links resolved; of an array that is a level of an OME-Zarr or N5 image in a folder, that of the image."""
    path = path.resolve()
    for folder in (path, *path.parents[:_MOST_NESTED]) if path.is_dir() else ():
        stated = [folder / name for name in ("zarr.json", ".zattrs") if (folder / name).is_file()]
        n5 = (folder / "s0/attributes.json").is_file()
        if n5 or any(b"multiscales" in read_bounded(file, LARGEST_METADATA) for file in stated):
            return folder
    return path


def refuse_repeated(volumes: Sequence[Volume]) -> None:
    """Raise ConfigError if a file is given twice, read in the same way: it is no second sample.

    Copies of a file are not noticed, nor are arrays that were not opened before.

    Raises:
        ConfigError: a file is given twice.
        VolumeError: a file cannot be read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> volume = open_volume(np.zeros((1, 1, 1)))
        >>> refuse_repeated([volume, volume])
        Traceback (most recent call last):
        ...
        evenslice.ConfigError: <array>: is given twice, but is one sample; give it once
    """
    known = set()
    for volume in volumes:
        read = stored_image(volume)[0], volume.plane, volume.region, repr(volume.reading)
        if read in known:
            raise ConfigError(f"{volume.path}: is given twice, but is one sample; give it once")
        known.add(read)
