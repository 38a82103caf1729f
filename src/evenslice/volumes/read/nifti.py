"""NIfTI-1 and NIfTI-2 files (``.nii``, ``.nii.gz``), read slab by slab through nibabel.

Only the fixed-size header is parsed; header extensions are skipped. A gzip stream can only be decompressed from its start:
a small one is decompressed once and kept, a large one is read through an index of entry points (by the package indexed_gzip,
which nibabel uses if installed), at the cost of a few MiB per read.
"""

from __future__ import annotations

import gzip
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.geometry import LARGEST, millimetres, normal_unit, positive
from evenslice.volumes.read.checks import describe_content
from evenslice.volumes.read.flat_files import FlatArray
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["NiftiSource"]

IN_MEMORY = 2**27
"""Size limit in bytes of a compressed volume that is decompressed once and kept."""

MOST_COMPRESSION = 1032
"""Deflate expands one byte to at most 1,032 (Adler and Gailly, zlib technical details)."""

_HEADER_BYTES = 540


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
        self._label = label
        if compressed and offset + self._nbytes > path.stat().st_size * MOST_COMPRESSION:
            raise VolumeError(
                f"{label}: is truncated, its header claims {offset + self._nbytes:,} bytes and the file cannot hold as many; "
                "copy it again"
            )
        self._file = None if compressed else FlatArray(path, label, stored, offset, self.shape, "F")
        self._proxy = _nibabel().arrayproxy.ArrayProxy(str(path), (self.shape, stored, offset), mmap=False)
        self.fresh = self._scaled

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read and scale; a large compressed file is decompressed by whole slices, then cropped."""
        if self._file is not None:
            raw = self._file.read(key)
        elif self._nbytes <= IN_MEMORY:
            raw = self._in_memory[key]
        else:
            raw = self._read_slices(key)
        if not self._scaled:
            return raw
        return (np.asarray(raw, np.float64) * self._slope + self._inter).astype(self.dtype)

    def _read_slices(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read slices whole: each row of a crop would take a seek, which decompresses up to 4 MiB."""
        found = np.empty([len(range(*part.indices(part.stop))) for part in key], self._proxy.dtype, order="F")
        for place in np.ndindex(*found.shape[2:]):
            index = tuple(
                range(part.start, part.stop, part.step or 1)[at]
                for part, at in zip(key[2:], place, strict=True)
            )
            plane = self._proxy[(slice(None), slice(None), *index)[: len(key)]]
            found[(..., *place)] = plane[key[:2]]
        return found

    @cached_property
    def _in_memory(self) -> NDArray[Any]:
        """The stored voxels; at the end of the stream, its checksum is verified."""
        with gzip.open(self._proxy.file_like) as stream:
            stream.seek(self._proxy.offset)
            content = stream.read(self._nbytes)
            while stream.read(2**20):
                pass
        if len(content) < self._nbytes:
            raise VolumeError(
                f"{self._label}: is truncated, {len(content):,} of {self._nbytes:,} bytes are there; copy it again"
            )
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
