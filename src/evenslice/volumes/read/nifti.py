"""NIfTI-1 and NIfTI-2 files (``.nii``, ``.nii.gz``), read slab by slab through nibabel.

Only the fixed-size header is parsed; header extensions, whose length is not bounded, are skipped. An uncompressed
file is read without nibabel, whose reads along x take a call for each voxel. A gzip stream can only be decompressed from
its start: a small one is decompressed once and kept, a large one is read through an index of entry points (by the
package indexed_gzip, which nibabel uses if installed), at the cost of a few MiB per read.
"""

from __future__ import annotations

import gzip
import math
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.geometry import LARGEST, millimetres, normal_unit, positive
from evenslice.volumes.read.checks import describe_content
from evenslice.volumes.read.deflate import MOST_COMPRESSION, PART_BYTES, read_in_parts
from evenslice.volumes.read.file_voxels import FileVoxels
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["NiftiSource"]

IN_MEMORY = 2**27
"""Size limit in bytes of a compressed volume that is decompressed once and kept."""

_HEADER_BYTES = 540
_PIECE_BYTES = 2**20


class NiftiSource(VoxelSource):
    """The voxels of a NIfTI file in stored order (x, y, z, ...), with the header's scaling applied."""

    format = "NIfTI"

    def __init__(self, path: Path, label: str) -> None:
        header = _read_header(path, label)
        compressed = path.name.lower().endswith(".gz")
        self.shape = tuple(int(length) for length in header.get_data_shape())
        stored = header.get_data_dtype()
        # An offset within the header, such as that of another version, cannot be meant.
        offset = max(header.get_data_offset(), header.single_vox_offset)
        slope, inter = header.get_slope_inter()
        self._slope, self._inter = slope or 1.0, inter or 0.0
        self._scaled = (self._slope, self._inter) != (1.0, 0.0)
        # Single precision is exact enough for scaled 16-bit integers, and takes half the memory of nibabel's double.
        self.dtype = np.result_type(stored, np.float32) if self._scaled and stored.kind in "iuf" else stored
        self.names = "xyztcuv"[: len(self.shape)]
        self.affine = np.array(header.get_best_affine(), dtype=np.float64)
        self.placed = _states_place(header)
        self.spacing = _spacing(header, self.affine)
        self.unit = normal_unit(header.get_xyzt_units()[0])
        if self.unit not in (None, "mm"):
            self.affine[:3] *= millimetres(self.unit)
        if not (np.abs(self.affine) <= LARGEST).all():
            raise VolumeError(
                f"{label}: its affine holds NaN, infinity or numbers beyond {LARGEST:g}; correct its header"
            )
        self._nbytes = math.prod(self.shape) * stored.itemsize
        if self._nbytes > 0:
            _check_size(path, label, offset + self._nbytes, compressed=compressed)
        self._file = None if compressed else FileVoxels(path, label, stored, offset, self.shape, "F")
        self._proxy = _nibabel().arrayproxy.ArrayProxy(str(path), (self.shape, stored, offset), mmap=False)
        self.fresh = self._scaled or (self._file is not None and self._file.fresh)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read and scale; a large compressed file is decompressed by whole slices, or rows of large ones, then cropped."""
        if self._file is not None:
            raw = self._file.read(key)
        elif self._nbytes <= IN_MEMORY:
            raw = self._in_memory[key]
        else:
            stored = self._proxy.dtype
            strides = np.cumprod([stored.itemsize, *self.shape[:-1]], dtype=np.int64).tolist()
            # Axes that are read whole, so that they are decompressed once; of slices without end, none are.
            whole = sum(
                stride * length <= PART_BYTES for stride, length in zip(strides[:2], self.shape, strict=False)
            )

            def read_whole(part: tuple[slice, ...]) -> NDArray[Any]:
                return self._read_whole(part, whole)

            raw = read_in_parts(key, strides, stored, read_whole, whole=whole)
        if not self._scaled:
            return np.asarray(raw)
        return (np.asarray(raw, np.float64) * self._slope + self._inter).astype(self.dtype)

    def _read_whole(self, key: tuple[slice, ...], whole: int) -> NDArray[Any]:
        """Read rows or slices whole and crop them: each row of a crop would take a seek, which decompresses up to 4 MiB."""
        spans = tuple(slice(part.start, part.stop) for part in key[whole:])
        steps = tuple(slice(None, None, part.step) for part in key[whole:])
        raw: NDArray[Any] = self._proxy[(*[slice(None)] * whole, *spans)][(*key[:whole], *steps)]
        return raw

    @cached_property
    def _in_memory(self) -> NDArray[Any]:
        """The stored voxels; the rest of the stream is decompressed too, to verify the checksum at its end."""
        with gzip.open(self._proxy.file_like) as stream:
            stream.seek(self._proxy.offset)
            content = stream.read(self._nbytes)
            for _ in range(IN_MEMORY // _PIECE_BYTES):  # bounded, whatever follows
                if not stream.read(_PIECE_BYTES):
                    break
        return np.frombuffer(content, self._proxy.dtype).reshape(self.shape, order="F")


def _nibabel() -> Any:
    """Import nibabel, whose own types are partial."""
    with needs_extra("volumes", "reading a NIfTI volume"):
        import nibabel
    return nibabel


def _read_header(path: Path, label: str) -> Any:
    """Parse the fixed-size header of either version.

    Raises:
        VolumeError: it is not a NIfTI file, or its header claims an impossible shape.
    """
    with open_regular(path) as file:
        head = file.read(_HEADER_BYTES)
    if path.name.lower().endswith(".gz"):
        if not head.startswith(b"\x1f\x8b"):
            raise VolumeError(
                f"{label}: is not gzip-compressed, its content is {describe_content(head)}; name a .nii.gz file"
            )
        with gzip.open(path) as stream:
            head = stream.read(_HEADER_BYTES)
    if head[344:348] == b"n+1\0":
        header = _nibabel().Nifti1Header(head[:348], check=False)
    elif head[4:8] == b"n+2\0" and len(head) == _HEADER_BYTES:
        header = _nibabel().Nifti2Header(head, check=False)
    else:
        raise VolumeError(
            f"{label}: is not a NIfTI file, its content is {describe_content(head)}; name a .nii or .nii.gz file"
        )
    if not 1 <= int(header["dim"][0]) <= 7 or min(header.get_data_shape()) < 0:
        raise VolumeError(
            f"{label}: its header claims the impossible shape {header.get_data_shape()}; the file is damaged"
        )
    return header


def _spacing(header: Any, affine: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the voxel size along each dimension, NaN for those after the third.

    A stated transform goes before the sizes beside it, from which it may differ if a program has changed only one of them.
    """
    zooms = [float(zoom) for zoom in header.get_zooms()]
    sizes, lengths = zooms[:3], np.linalg.norm(affine[:3, :3], axis=0).tolist()[: len(zooms)]
    # Equal but for rounding, the sizes are the exact ones; a transform that is not invertible has no lengths.
    if _states_place(header) and positive(lengths) and not np.allclose(lengths, sizes, rtol=1e-3, atol=0):
        sizes = lengths
    return (*sizes, *(math.nan for _ in zooms[3:]))


def _states_place(header: Any) -> bool:
    """Return whether a file states where its voxels lie; the affine of another is an assumption."""
    return bool(header["qform_code"] > 0 or header["sform_code"] > 0)


def _check_size(path: Path, label: str, needed: int, *, compressed: bool) -> None:
    """Raise if a file cannot hold the bytes that its header claims.

    A compressed file is decompressed for this, piece by piece, only if the length stated at its end (modulo 2**32, and
    for its last member only) differs from the claimed one.
    """
    held = path.stat().st_size
    if compressed:
        if needed > held * MOST_COMPRESSION:
            held *= MOST_COMPRESSION  # an upper bound
        elif _stated_length(path) == needed % 2**32:
            return
        else:
            held = _decompressed_length(path, needed)
    if held < needed:
        raise VolumeError(
            f"{label}: is truncated, its header claims {needed:,} bytes and the file holds at most "
            f"{held:,}; copy it again"
        )


def _stated_length(path: Path) -> int:
    """Return the uncompressed length that the last four bytes of a gzip file state."""
    with open_regular(path) as file:
        file.seek(-4, 2)
        return int.from_bytes(file.read(4), "little")


def _decompressed_length(path: Path, enough: int) -> int:
    """Count decompressed bytes up to ``enough``, or until the stream ends or is damaged."""
    count = 0
    with gzip.open(path) as stream:
        try:
            while count < enough and (piece := stream.read(_PIECE_BYTES)):
                count += len(piece)
        except (EOFError, OSError, zlib.error):
            pass  # the count so far is the answer
    return count
