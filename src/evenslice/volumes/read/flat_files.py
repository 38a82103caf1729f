"""Voxels that lie in a file one after the other, in uncompressed or gzip-compressed files: NumPy, MRC and NIfTI.

An uncompressed file is mapped anew for each read, so that it is not kept open, and one that has become shorter is an error.
"""

from __future__ import annotations

import gzip
import io
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.geometry import LARGEST, millimetres, normal_unit, positive
from evenslice.volumes.read.source import (
    VoxelSource,
    require_bytes,
    require_signature,
    without_warnings,
    wrong_content,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.source import Place

IN_MEMORY = 2**27
"""Size limit in bytes of a compressed NIfTI volume that is decompressed once and kept."""

MOST_COMPRESSION = 1032
"""Deflate expands one byte to at most 1,032 (Adler and Gailly, zlib technical details)."""

_NPY_HEADER_BYTES = 2**17
"""Bytes in which a header has to end; NumPy itself refuses one of more than 10,000."""

_NIFTI_HEADER_BYTES = 540
_MRC_HEADER_BYTES = 1024
_MRC_EXTENDED = 92  # where the size of the extended header is stated
IMOD = 1146047817
"""The stamp with which IMOD marks its files."""


class FlatArray:
    """An array in a file.

    Args:
        path: the file.
        label: the path that the user opened, for messages.
        dtype: stored data type, including byte order.
        offset: where the voxels start, in bytes.
        shape: number of voxels along each axis.
        order: "C" if the last axis varies fastest, "F" if the first one does.

    Raises:
        VolumeError: the file is too short to hold them, or the shape is none.

    Example:
        >>> import tempfile; from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "voxels.raw"
        >>> _ = path.write_bytes(bytes(range(24)))
        >>> voxels = FlatArray(path, "voxels.raw", np.dtype("u1"), 0, (2, 3, 4))
        >>> voxels.read((slice(1, 2), slice(0, 3, 2), slice(1, 3))).tolist()
        [[[13, 14], [21, 22]]]
    """

    def __init__(
        self,
        path: Path,
        label: str,
        dtype: np.dtype[Any],
        offset: int,
        shape: tuple[int, ...],
        order: Literal["C", "F"] = "C",
    ) -> None:
        if offset < 0 or min(shape, default=0) < 0:
            raise VolumeError(
                f"{label}: its header claims the impossible shape {shape} from byte {offset:,} on; the file is damaged"
            )
        self.shape, self.dtype = shape, dtype
        self._path, self._label, self._offset, self._order = path, label, offset, order
        self._end = offset + math.prod(shape) * dtype.itemsize
        require_bytes(path, label, self._end)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return a view of the part under ``key``: a slice per axis, not empty, within the axis, with a positive step or none.

        Raises:
            VolumeError: the file has become too short.
        """
        require_bytes(self._path, self._label, self._end)
        with open_regular(self._path) as file:
            mapped = np.memmap(file, self.dtype, "r", self._offset, self.shape, self._order)
        return np.asarray(mapped)[key]


class FlatSource(VoxelSource):
    """A volume that is one such array."""

    def __init__(self, voxels: FlatArray) -> None:
        self._voxels = voxels
        self.shape, self.dtype = voxels.shape, voxels.dtype

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read the part."""
        return self._voxels.read(key)


class NpySource(FlatSource):
    """An array in a ``.npy`` file; pickled objects are refused."""

    format = "NumPy array"

    def __init__(self, place: Place) -> None:
        path, label = place.path, place.label
        require_signature(path, label, "a NumPy array")
        with open_regular(path) as file:
            # Reading from the file itself, NumPy allocates whatever length the header claims.
            head = io.BytesIO(file.read(_NPY_HEADER_BYTES))
        first = np.lib.format.read_magic(head) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(head)
        if dtype.hasobject:
            raise VolumeError(
                f"{label}: holds pickled Python objects, which are never loaded; save a numeric array"
            )
        super().__init__(FlatArray(path, label, dtype, head.tell(), shape, "F" if fortran else "C"))


# MRC


class MrcSource(FlatSource):
    """An MRC or CCP4 map: a volume, a stack of images, or a stack of volumes with an axis t before z."""

    def __init__(self, place: Place) -> None:
        header, head = _read_mrc_header(place.path, place.label)
        columns, rows, sections = (int(header[name]) for name in ("nx", "ny", "nz"))
        order: Literal["big", "little"] = "big" if header.mode.dtype.str[0] == ">" else "little"
        # Sections, rows and columns by the axes in the header.
        axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]
        self.names = "".join(" xyz"[axis] for axis in axes) if sorted(axes) == [1, 2, 3] else "zyx"
        shape: tuple[int, ...] = (sections, rows, columns)
        depth = int(header.mz)
        stacked = int(header.ispg) > 400  # MRC2014: a stack of volumes adds 400 to the space group
        if stacked:
            if depth < 1 or sections % depth:
                raise ValueError(f"its {sections} sections are not a multiple of the {depth} of a volume")
            shape, self.names = (sections // depth, depth, rows, columns), f"t{self.names}"
        extended = int.from_bytes(head[_MRC_EXTENDED : _MRC_EXTENDED + 4], order, signed=True)
        start = _MRC_HEADER_BYTES + extended if extended >= 0 else -1
        dtype = _mrc_data_type(header, head, order, place.label)
        super().__init__(FlatArray(place.path, place.label, dtype, start, shape))
        self.format = "MRC volume stack" if stacked else "MRC"
        # In a stack of images there is one interval along the sections, and their distance is unknown.
        if stacked or int(header[f"m{self.names[0]}"]) == sections:
            sizes = {axis: float(header.cella[axis]) / max(int(header[f"m{axis}"]), 1) for axis in "xyz"}
            self.spacing = tuple(sizes.get(name, math.nan) for name in self.names)
            self.unit = "angstrom"


def _read_mrc_header(path: Path, label: str) -> tuple[Any, bytes]:
    """Return the header as mrcfile parses it, and its bytes."""
    with needs_extra("volumes", "reading an MRC volume"):
        import mrcfile
    with open_regular(path) as file:
        head = file.read(_MRC_HEADER_BYTES)
    if head[208:212] not in (b"MAP ", b"MAP\0"):
        raise wrong_content(label, "an MRC file", head)
    # From the file itself, mrcfile would read the extended header too, and allocate whatever size the header claims for it.
    alone = io.BytesIO(head[:_MRC_EXTENDED] + bytes(4) + head[_MRC_EXTENDED + 4 :])
    with without_warnings():
        header = mrcfile.mrcinterpreter.MrcInterpreter(alone, header_only=True).header
    return header, head


def _mrc_data_type(header: Any, head: bytes, order: Literal["big", "little"], label: str) -> np.dtype[Any]:
    """Return the type of the voxels; bytes are signed, unless IMOD, or voxels above 127, say otherwise.

    IMOD wrote unsigned bytes before 4.2.23, and marks them in its flags since.
    Source: https://bio3d.colorado.edu/imod/doc/mrc_format.txt, on mode 0, "imodStamp" and "imodFlags".
    """
    from mrcfile.utils import dtype_from_mode

    mode = int(header.mode)
    if mode in (3, 4, 101):  # complex numbers, and two voxels per byte
        raise VolumeError(
            f"{label}: its voxels have mode {mode}, which cannot be read; save it as integers or reals "
            "(mode 0, 1, 2, 6, 12)"
        )
    stamp, flags = (int.from_bytes(head[start : start + 4], order) for start in (152, 156))
    unsigned = not flags & 1 if stamp == IMOD else header.dmin >= 0 and 127 < header.dmax <= 255
    if mode == 0 and unsigned:
        return np.dtype(np.uint8)
    kind: np.dtype[Any] = np.dtype(dtype_from_mode(header.mode))
    return kind.newbyteorder(header.mode.dtype.byteorder)


# NIfTI


class NiftiSource(VoxelSource):
    """The voxels of a NIfTI file in stored order (x, y, z, ...), with the header's scaling applied.

    Only the fixed-size header is parsed; header extensions are skipped. A gzip stream can only be decompressed from its
    start: a small one is decompressed once and kept, a large one is read through an index of entry points (by the package
    indexed_gzip, which nibabel uses if installed), at the cost of a few MiB per read.
    """

    format = "NIfTI"

    def __init__(self, place: Place) -> None:
        self._path, self._label = path, label = place.path, place.label
        compressed = path.name.lower().endswith(".gz")
        header = _read_nifti_header(path, label, compressed=compressed)
        self.shape = tuple(int(length) for length in header.get_data_shape())
        self._stored: np.dtype[Any] = header.get_data_dtype()
        # An offset within the header, such as that of another version, cannot be meant.
        self._offset = offset = int(max(header.get_data_offset(), header.single_vox_offset))
        slope, inter = header.get_slope_inter()
        self._scaling = (slope or 1.0, inter or 0.0)
        self.fresh = self._scaling != (1.0, 0.0)
        # Single precision is exact enough for scaled 16-bit integers, and takes half the memory of nibabel's double.
        scaled = self.fresh and self._stored.kind in "iuf"
        self.dtype = np.result_type(self._stored, np.float32) if scaled else self._stored
        self.names = "xyztcuv"[: len(self.shape)]
        self._set_place(header)
        self._nbytes = math.prod(self.shape) * self._stored.itemsize
        if compressed and offset + self._nbytes > path.stat().st_size * MOST_COMPRESSION:
            raise VolumeError(
                f"{label}: is truncated, its header claims {offset + self._nbytes:,} bytes and the file cannot hold as many; "
                "copy it again"
            )
        self._file = None if compressed else FlatArray(path, label, self._stored, offset, self.shape, "F")
        self._proxy = _nibabel().arrayproxy.ArrayProxy(
            str(path), (self.shape, self._stored, offset), mmap=False
        )

    def _set_place(self, header: Any) -> None:
        """Set affine and voxel size.

        A stated transform goes before the sizes beside it, from which it may differ if a program has changed only one of
        them. The affine of a file that states none is an assumption.
        """
        self.placed = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
        self.affine = affine = np.array(header.get_best_affine(), dtype=np.float64)
        zooms = [float(zoom) for zoom in header.get_zooms()]
        lengths = np.linalg.norm(affine[:3, :3], axis=0).tolist()[: len(zooms)]
        # Equal but for rounding, the sizes are the exact ones; a transform that is not invertible has no lengths.
        equal = np.allclose(lengths, zooms[:3], rtol=1e-3, atol=0)
        sizes = lengths if self.placed and positive(lengths) and not equal else zooms[:3]
        self.spacing = (*sizes, *(math.nan for _ in zooms[3:]))
        self.unit = normal_unit(header.get_xyzt_units()[0])
        affine[:3] *= millimetres(self.unit or "mm")
        if not (np.abs(affine) <= LARGEST).all():
            raise VolumeError(
                f"{self._label}: its affine holds NaN, infinity or numbers beyond {LARGEST:g}; correct its header"
            )

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read and scale; a large compressed file is decompressed by whole slices, then cropped."""
        if self._file is not None:
            raw = self._file.read(key)
        elif self._nbytes <= IN_MEMORY:
            raw = self._in_memory[key]
        else:
            raw = self._read_slices(key)
        if not self.fresh:
            return raw
        slope, inter = self._scaling
        return (np.asarray(raw, np.float64) * slope + inter).astype(self.dtype)

    def _read_slices(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read slices whole: each row of a crop would take a seek, which decompresses up to 4 MiB."""
        wanted = [range(part.start, part.stop, part.step or 1) for part in key]
        found = np.empty([len(indices) for indices in wanted], self._stored, order="F")
        for place in np.ndindex(*found.shape[2:]):
            index = [indices[at] for indices, at in zip(wanted[2:], place, strict=True)]
            plane = self._proxy[(slice(None), slice(None), *index)[: len(key)]]
            found[(..., *place)] = plane[key[:2]]
        return found

    @cached_property
    def _in_memory(self) -> NDArray[Any]:
        """The stored voxels; at the end of the stream, its checksum is verified."""
        with gzip.open(self._path) as stream:
            stream.seek(self._offset)
            content = stream.read(self._nbytes)
            while stream.read(2**20):
                pass
        return np.frombuffer(content, self._stored).reshape(self.shape, order="F")


def _nibabel() -> Any:
    """Import nibabel, whose own types are partial."""
    with needs_extra("volumes", "reading a NIfTI volume"):
        import nibabel
    return nibabel


def _read_nifti_header(path: Path, label: str, *, compressed: bool) -> Any:
    """Parse the fixed-size header of either version.

    Raises:
        VolumeError: it is not a NIfTI file, or its header claims an impossible shape.
    """
    with open_regular(path) as file:
        head = file.read(_NIFTI_HEADER_BYTES)
    if compressed:
        if not head.startswith(b"\x1f\x8b"):
            raise wrong_content(label, "a gzip-compressed file", head)
        with gzip.open(path) as stream:
            head = stream.read(_NIFTI_HEADER_BYTES)
    if head[344:348] == b"n+1\0":
        header = _nibabel().Nifti1Header(head[:348], check=False)
    elif head[4:8] == b"n+2\0" and len(head) == _NIFTI_HEADER_BYTES:
        header = _nibabel().Nifti2Header(head, check=False)
    else:
        raise wrong_content(label, "a NIfTI file", head)
    if not 1 <= int(header["dim"][0]) <= 7 or min(header.get_data_shape()) < 0:
        raise VolumeError(
            f"{label}: its header claims the impossible shape {header.get_data_shape()}; the file is damaged"
        )
    return header
