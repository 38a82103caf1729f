"""Hashes that tell whether two volumes come from the same data."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import open_regular
from evenslice.volumes.blocks import sample_chunks, sample_stored
from evenslice.volumes.read.checks import reporting_read_errors
from evenslice.volumes.read.location import files_under, holds_many
from evenslice.volumes.views import reslice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evenslice.volumes.volume import Volume

__all__ = ["PARTIAL", "fingerprint", "modified"]

PARTIAL = "sha256-partial"
"""What the fingerprint of a volume starts with if it covers a part of it."""

WHOLE_BYTES = 2**32
END_BYTES = 2**26
MOST_LISTED = 2**16
SAMPLED_CHUNKS = 32  # a few seconds from most servers
SAMPLED_BYTES = 2**26
_PIECE_BYTES = 2**20


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
    volume = reslice(volume._whole or volume, "z")  # noqa: SLF001  # the same data, however it is sliced
    if volume.location is None:
        if volume.nbytes > WHOLE_BYTES:
            return _fingerprint_of_sample(volume)
        digest = hashlib.sha256()
        for z in range(len(volume)):
            digest.update(np.ascontiguousarray(volume[z]).tobytes())
        return f"sha256:{digest.hexdigest()}"
    if isinstance(volume.location, str):
        return _fingerprint_of_voxels(volume, volume.location)
    with reporting_read_errors(volume.path, volume.format):
        if volume.files is None and holds_many(volume.location, MOST_LISTED):
            return _fingerprint_of_sample(volume)
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
    digest = hashlib.sha256()
    with reporting_read_errors(volume.path, volume.format):
        if volume.files is None and holds_many(volume.location, MOST_LISTED):
            return _modified_in_any_order(volume.location)
        for file in volume.files or files_under(volume.location, volume.path):
            digest.update(_stamp(os.fspath(file), file.stat()))
    return digest.hexdigest()


def _modified_in_any_order(folder: Path) -> str:
    """Hash the same of all files below a folder without a list of them: the sum of their hashes."""
    total, folders = 0, [os.fspath(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file():
                    total += int.from_bytes(hashlib.sha256(_stamp(entry.path, entry.stat())).digest(), "big")
    return f"{total % 2**256:064x}"


def _stamp(path: str, found: os.stat_result) -> bytes:
    return f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="surrogateescape")


def _fingerprint_of_files(volume: Volume, location: Path) -> str:
    digest = hashlib.sha256()
    named = volume.files or tuple(files_under(location, volume.path))
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


def _fingerprint_of_voxels(volume: Volume, address: str) -> str:
    """Hash the address and metadata of a volume, its outermost chunks and some between, without loading it whole."""
    digest = hashlib.sha256(f"{address}\0{volume.format}\0{volume.shape}\0{volume.dtype.str}\0".encode())
    chunk = volume.chunks or volume.shape
    ends = zip(chunk, volume.shape, strict=True)
    last = tuple(slice((length - 1) // size * size, length) for size, length in ends)
    for window in (tuple(slice(0, size) for size in chunk), last):
        digest.update(volume[window].tobytes())
    for voxels in sample_chunks(volume, SAMPLED_CHUNKS, SAMPLED_BYTES):
        digest.update(voxels.tobytes())
    return f"{PARTIAL}:{digest.hexdigest()}"


def _fingerprint_of_sample(volume: Volume) -> str:
    """Hash the metadata of a volume and voxels from all over it."""
    digest = hashlib.sha256(f"{volume.format}\0{volume.shape}\0{volume.dtype.str}\0".encode())
    digest.update(sample_stored(volume).tobytes())
    return f"{PARTIAL}:{digest.hexdigest()}"


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
        while start < stop and (piece := file.read(min(_PIECE_BYTES, stop - start))):
            digest.update(piece)
            start += len(piece)
