"""Voxels that lie in a file one after the other, raw or compressed as one stream: NumPy, MRC and NIfTI.

A raw file is mapped anew for each read, so that it is not kept open, and one that has become shorter is an error.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.geometry import LARGEST, millimetres, normal_unit, positive
from evenslice.volumes.read.source import VoxelSource, require_bytes, require_piece, without_warnings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.source import Place

LARGEST_STREAM = 2**34
"""Size limit in bytes of what is decompressed whole, once: the voxels of a NIfTI, MetaImage or NRRD file."""

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
        offset: where the voxels start, in bytes; of a stream, in bytes that it was compressed from.
        shape: number of voxels along each axis.
        order: "C" if the last axis varies fastest, "F" if the first one does.
        stream: where the stream starts that they are compressed in, by gzip, zlib or bzip2; None if they are not.

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
        stream: int | None = None,
    ) -> None:
        if offset < 0 or min(shape, default=0) < 0:
            raise VolumeError(
                f"{label}: its header claims the impossible shape {shape} from byte {offset:,} on; the file is damaged"
            )
        self.shape, self.dtype = shape, dtype
        self._path, self._label, self._offset, self._order, self._stream = path, label, offset, order, stream
        self._end = offset + math.prod(shape) * dtype.itemsize
        if stream is None:
            require_bytes(path, label, self._end)
        else:
            require_piece(label, "its compressed voxels", shape, dtype, LARGEST_STREAM)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return a view of the part under ``key``: a slice per axis, not empty, within the axis, with a positive step or none.

        Raises:
            VolumeError: the file has become too short.
        """
        if self._stream is not None:
            return self._unpacked[key]
        require_bytes(self._path, self._label, self._end)
        with open_regular(self._path) as file:
            mapped = np.memmap(file, self.dtype, "r", self._offset, self.shape, self._order)
        return np.asarray(mapped)[key]

    @cached_property
    def _unpacked(self) -> NDArray[Any]:
        """The voxels of a stream, decompressed once and kept; of gzip and bzip2, with their checksum."""
        with open_regular(self._path) as file:
            file.seek(self._stream or 0)
            magic = file.read(3)
            file.seek(self._stream or 0)
            if magic[:2] == b"\x1f\x8b" or magic == b"BZh":
                opener = bz2.open if magic == b"BZh" else gzip.open
                stream = cast(BinaryIO, opener(file))
                content = stream.read(self._end)
                while stream.read(2**20):
                    pass
            else:
                content = zlib.decompressobj().decompress(file.read(), max(self._end, 1))
        if len(content) < self._end:
            raise VolumeError(
                f"{self._label}: is truncated, its voxels end at byte {self._end:,} and {self._path.name} holds "
                f"{len(content):,}; copy it again"
            )
        flat = np.frombuffer(content, self.dtype, math.prod(self.shape), self._offset)
        return flat.reshape(self.shape, order=self._order)


class FlatSource(VoxelSource):
    """A volume that is one such array."""

    _voxels: FlatArray

    def _set_voxels(self, voxels: FlatArray) -> None:
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
        self._set_voxels(FlatArray(path, label, dtype, head.tell(), shape, "F" if fortran else "C"))


# MRC


class MrcSource(FlatSource):
    """An MRC or CCP4 map: a volume, a stack of images, or a stack of volumes with an axis t before z."""

    def __init__(self, place: Place) -> None:
        header, head = _read_mrc_header(place.path)
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
        dtype = _mrc_data_type(header, head, order)
        self._set_voxels(FlatArray(place.path, place.label, dtype, start, shape))
        self.format = "MRC volume stack" if stacked else "MRC"
        # In a stack of images there is one interval along the sections, and their distance is unknown.
        if stacked or int(header[f"m{self.names[0]}"]) == sections:
            sizes = {axis: float(header.cella[axis]) / max(int(header[f"m{axis}"]), 1) for axis in "xyz"}
            self.voxel_size = tuple(sizes.get(name, math.nan) for name in self.names), "angstrom"


def _read_mrc_header(path: Path) -> tuple[Any, bytes]:
    """Return the header as mrcfile parses it, and its bytes."""
    with needs_extra("volumes", "reading an MRC volume"):
        import mrcfile
    with open_regular(path) as file:
        head = file.read(_MRC_HEADER_BYTES)
    # From the file itself, mrcfile would read the extended header too, and allocate whatever size the header claims for it.
    alone = io.BytesIO(head[:_MRC_EXTENDED] + bytes(4) + head[_MRC_EXTENDED + 4 :])
    with without_warnings():
        header = mrcfile.mrcinterpreter.MrcInterpreter(alone, header_only=True).header
    return header, head


def _mrc_data_type(header: Any, head: bytes, order: Literal["big", "little"]) -> np.dtype[Any]:
    """Return the type of the voxels; bytes are signed, unless IMOD, or voxels above 127, say otherwise.

    IMOD wrote unsigned bytes before 4.2.23, and marks them in its flags since.
    Source: https://bio3d.colorado.edu/imod/doc/mrc_format.txt, on mode 0, "imodStamp" and "imodFlags".
    """
    from mrcfile.utils import dtype_from_mode

    stamp, flags = (int.from_bytes(head[start : start + 4], order) for start in (152, 156))
    unsigned = not flags & 1 if stamp == IMOD else header.dmin >= 0 and 127 < header.dmax <= 255
    if int(header.mode) == 0 and unsigned:
        return np.dtype(np.uint8)
    kind: np.dtype[Any] = np.dtype(dtype_from_mode(header.mode))
    return kind.newbyteorder(header.mode.dtype.byteorder)


# NIfTI


class NiftiSource(FlatSource):
    """The voxels of a NIfTI file in stored order (x, y, z, ...), with the header's scaling applied.

    Only the fixed-size header is parsed; header extensions are skipped.
    """

    format = "NIfTI"

    def __init__(self, place: Place) -> None:
        path, label = place.path, place.label
        compressed = path.name.lower().endswith(".gz")
        header = _read_nifti_header(path, compressed=compressed)
        shape = tuple(int(length) for length in header.get_data_shape())
        stored: np.dtype[Any] = header.get_data_dtype()
        # An offset within the header, such as that of another version, cannot be meant.
        offset = int(max(header.get_data_offset(), header.single_vox_offset))
        end = offset + math.prod(shape) * stored.itemsize
        if compressed and end > path.stat().st_size * MOST_COMPRESSION:
            raise VolumeError(
                f"{label}: is truncated, its header claims {end:,} bytes and the file cannot hold as many; copy it again"
            )
        self._set_voxels(FlatArray(path, label, stored, offset, shape, "F", 0 if compressed else None))
        slope, inter = header.get_slope_inter()
        self._scaling = (slope or 1.0, inter or 0.0)
        self.fresh = self._scaling != (1.0, 0.0)
        if self.fresh and stored.kind in "iuf":
            # Single precision is exact enough for scaled 16-bit integers, and takes half the memory of nibabel's double.
            self.dtype = np.result_type(stored, np.float32)
        self.names = "xyztcuv"[: len(shape)]
        self._set_place(header, label)

    def _set_place(self, header: Any, label: str) -> None:
        """Set affine, unless the file states none, and voxel size.

        A stated transform goes before the sizes beside it, from which it may differ if a program has changed only one of
        them.
        """
        affine = np.array(header.get_best_affine(), dtype=np.float64)
        zooms = [float(zoom) for zoom in header.get_zooms()]
        lengths = np.linalg.norm(affine[:3, :3], axis=0).tolist()[: len(zooms)]
        # Equal but for rounding, the sizes are the exact ones; a transform that is not invertible has no lengths.
        equal = np.allclose(lengths, zooms[:3], rtol=1e-3, atol=0)
        placed = header["qform_code"] > 0 or header["sform_code"] > 0
        sizes = lengths if placed and positive(lengths) and not equal else zooms[:3]
        unit = normal_unit(header.get_xyzt_units()[0])
        self.voxel_size = (*sizes, *(math.nan for _ in zooms[3:])), unit
        affine[:3] *= millimetres(unit or "mm")
        if not (np.abs(affine) <= LARGEST).all():
            raise VolumeError(
                f"{label}: its affine holds NaN, infinity or numbers beyond {LARGEST:g}; correct its header"
            )
        self.affine = affine if placed else None

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read and scale."""
        raw = self._voxels.read(key)
        if not self.fresh:
            return raw
        slope, inter = self._scaling
        return (np.asarray(raw, np.float64) * slope + inter).astype(self.dtype)


def _read_nifti_header(path: Path, *, compressed: bool) -> Any:
    """Parse the fixed-size header of either version."""
    with needs_extra("volumes", "reading a NIfTI volume"):
        from nibabel import Nifti1Header, Nifti2Header  # type: ignore[attr-defined]
    with open_regular(path) as file:
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
        head = stream.read(_NIFTI_HEADER_BYTES)
    if head[344:348] == b"n+1\0":
        return Nifti1Header(head[:348], check=False)
    if head[4:8] != b"n+2\0":
        raise ValueError("it does not begin with the header of a NIfTI file")
    return Nifti2Header(head, check=False)
