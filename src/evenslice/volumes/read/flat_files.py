"""Voxels that lie in a file one after the other, raw or compressed as one stream: NumPy, MRC, NIfTI, MetaImage and NRRD.

A raw file is mapped anew for each read, so that it is not kept open, and one that has become shorter is an error.

pynrrd parses the fields of NRRD; their meaning: https://teem.sourceforge.net/nrrd/format.html. Those of MetaImage:
https://itk.org/Wiki/ITK/MetaIO/Documentation, and for what it omits the reader of ITK (lengths in mm, positions as in
DICOM). ITK itself is not used to read: of a MetaImage with a damaged compressed stream it returns voxels that are none,
without an error; it reads NRRD files whole, and none that are compressed by bzip2.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import re
import zlib
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.geometry import LARGEST, affine_from_lps, millimetres, normal_unit, positive
from evenslice.volumes.read.source import (
    LARGEST_METADATA,
    VoxelSource,
    confined,
    require_bytes,
    require_known,
    require_piece,
    scaled_spacing,
    without_warnings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.source import Place

LARGEST_STREAM = 2**34
"""Size limit in bytes of what is decompressed whole, once: the voxels of a NIfTI, MetaImage or NRRD file."""

MOST_COMPRESSION = 1032
"""Deflate expands one byte to at most 1,032 (Adler and Gailly, zlib technical details)."""

_NPY_HEADER_BYTES = 2**17
"""Bytes in which a header has to end; NumPy itself refuses one of more than 10,000."""

IN_MEMORY = 2**27
"""Size limit in bytes of a compressed NIfTI volume that is decompressed once and kept."""

_NIFTI_HEADER_BYTES = 540
_MRC_HEADER_BYTES = 1024
_MRC_EXTENDED = 92  # where the size of the extended header is stated
IMOD = 1146047817
"""The stamp with which IMOD marks its files."""


class FlatArray:
    """An array in a file.

    Args:
        path: the file.
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
        >>> voxels = FlatArray(path, np.dtype("u1"), 0, (2, 3, 4))
        >>> voxels.read((slice(1, 2), slice(0, 3, 2), slice(1, 3))).tolist()
        [[[13, 14], [21, 22]]]
    """

    def __init__(
        self,
        path: Path,
        dtype: np.dtype[Any],
        offset: int,
        shape: tuple[int, ...],
        order: Literal["C", "F"] = "C",
        stream: int | None = None,
    ) -> None:
        if offset < 0 or min(shape, default=0) < 0:
            raise ValueError(f"its header claims the impossible shape {shape} from byte {offset:,} on")
        self.shape, self.dtype = shape, dtype
        self._path, self._offset, self._order, self._stream = path, offset, order, stream
        self._end = offset + math.prod(shape) * dtype.itemsize
        if stream is None:
            require_bytes(path, self._end)
        else:
            require_piece("its compressed voxels", shape, dtype, LARGEST_STREAM)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return a view of the part under ``key``: a slice per axis, not empty, within the axis, with a positive step or none.

        Raises:
            VolumeError: the file has become too short.
        """
        if self._stream is not None:
            return self._unpacked[key]
        require_bytes(self._path, self._end)
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
                f"is truncated, its voxels end at byte {self._end:,}, the stream at {len(content):,}"
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
        path = place.path
        with open_regular(path) as file:
            # Reading from the file itself, NumPy allocates whatever length the header claims.
            head = io.BytesIO(file.read(_NPY_HEADER_BYTES))
        first = np.lib.format.read_magic(head) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(head)
        if dtype.hasobject:
            raise VolumeError("holds pickled Python objects, which are never loaded; save a numeric array")
        self._set_voxels(FlatArray(path, dtype, head.tell(), shape, "F" if fortran else "C"))


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
        self._set_voxels(FlatArray(place.path, dtype, start, shape))
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

    Only the fixed-size header is parsed; header extensions are skipped. A small gzip stream is decompressed once and kept; a
    large one is read from points within it (by the package indexed_gzip, which nibabel uses if installed), at the cost of a
    few MiB for each read.
    """

    format = "NIfTI"

    def __init__(self, place: Place) -> None:
        path = place.path
        compressed = path.name.lower().endswith(".gz")
        header = _read_nifti_header(path, compressed=compressed)
        shape = tuple(int(length) for length in header.get_data_shape())
        stored: np.dtype[Any] = header.get_data_dtype()
        # An offset within the header, such as that of another version, cannot be meant.
        offset = int(max(header.get_data_offset(), header.single_vox_offset))
        end = offset + math.prod(shape) * stored.itemsize
        if compressed and end > path.stat().st_size * MOST_COMPRESSION:
            raise VolumeError(f"is truncated, its header claims {end:,} bytes, which the file cannot hold")
        self._proxy: Any = None
        if compressed and end > IN_MEMORY:
            from nibabel.arrayproxy import ArrayProxy

            self.shape, self.dtype = shape, stored
            self._proxy = ArrayProxy(str(path), (shape, stored, offset), mmap=False)  # type: ignore[no-untyped-call]
        else:
            self._set_voxels(FlatArray(path, stored, offset, shape, "F", 0 if compressed else None))
        slope, inter = header.get_slope_inter()
        self._scaling = (slope or 1.0, inter or 0.0)
        self.fresh = self._scaling != (1.0, 0.0)
        if self.fresh and stored.kind in "iuf":
            # Single precision is exact enough for scaled 16-bit integers, and takes half the memory of nibabel's double.
            self.dtype = np.result_type(stored, np.float32)
        self.names = "xyztcuv"[: len(shape)]
        self._set_place(header)

    def _set_place(self, header: Any) -> None:
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
                f"its affine holds NaN, infinity or numbers beyond {LARGEST:g}; correct its header"
            )
        self.affine = affine if placed else None

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read and scale."""
        raw = self._voxels.read(key) if self._proxy is None else self._read_slices(key)
        if not self.fresh:
            return raw
        slope, inter = self._scaling
        return (np.asarray(raw, np.float64) * slope + inter).astype(self.dtype)

    def _read_slices(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read slices whole: each row of a crop would take a seek, which decompresses up to 4 MiB."""
        wanted = [range(part.start, part.stop, part.step or 1) for part in key]
        found = np.empty([len(indices) for indices in wanted], self._proxy.dtype, order="F")
        for place in np.ndindex(*found.shape[2:]):
            index = [indices[at] for indices, at in zip(wanted[2:], place, strict=True)]
            found[(..., *place)] = self._proxy[(slice(None), slice(None), *index)][key[:2]]
        return found


def _read_nifti_header(path: Path, *, compressed: bool) -> Any:
    """Parse the fixed-size header of either version."""
    with needs_extra("volumes", "reading a NIfTI volume"):
        import nibabel
    with open_regular(path) as file:
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
        head = stream.read(_NIFTI_HEADER_BYTES)
    if head[344:348] == b"n+1\0":
        return nibabel.Nifti1Header(head[:348], check=False)  # type: ignore[no-untyped-call]
    if head[4:8] != b"n+2\0":
        raise ValueError("it does not begin with the header of a NIfTI file")
    return nibabel.Nifti2Header(head, check=False)  # type: ignore[no-untyped-call]


# MetaImage and NRRD

ENCODINGS = ("raw", "gzip", "gz", "bzip2", "bz2")
"""How voxels are stored, in the words of NRRD."""

_META_TYPES = {
    "MET_CHAR": "i1", "MET_SHORT": "i2", "MET_INT": "i4", "MET_LONG": "i4", "MET_LONG_LONG": "i8",
    "MET_UCHAR": "u1", "MET_USHORT": "u2", "MET_UINT": "u4", "MET_ULONG": "u4", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "longlong": "i8", "int64": "i8", "ulonglong": "u8", "uint64": "u8",
    "float": "f4", "double": "f8",
}  # fmt: skip
_SIGNS = {"lps": (1, 1, 1), "ras": (-1, -1, 1), "las": (1, -1, 1)}
"""Signs that map the axes of an anatomical space, by the first letters of their directions, to left, back, head."""

_SPATIAL_KINDS = {"domain", "space"}
_UNKNOWN_KINDS = {"", "???", "none"}


class _HeadedSource(FlatSource):
    """A volume whose voxels follow a header, with the first axis varying fastest: raw, or compressed as one stream."""

    def _find_voxels(
        self, place: Place, name: str | None, dtype: np.dtype[Any], *, packed: bool, start: int, skip: int
    ) -> None:
        """Find the voxels, given their shape.

        Args:
            place: the file with the header.
            name: the file that holds them, which must be in its folder or below; None for the same file.
            dtype: their data type.
            packed: whether they are compressed.
            start: where they, or the stream, begin.
            skip: how many bytes, decompressed, precede them; -1 if they are the last bytes of the file.

        Raises:
            VolumeError: the name leads out of the folder, the file cannot hold the voxels, or they are too large when
                compressed.
        """
        path = place.path
        if name is not None:
            path = confined(place.path.parent, name)
            self.files = (place.path, path)
        if skip < 0 and not packed:
            start, skip = path.stat().st_size - math.prod(self.shape) * dtype.itemsize, 0
        offset, stream = (skip, start) if packed else (start + skip, None)
        self._set_voxels(FlatArray(path, dtype, offset, self.shape, "F", stream))

    def _set_shape(self, shape: Sequence[str], count: object, channels: int = 1) -> None:
        """Set the shape, which a header states beside the number of axes."""
        sizes = tuple(map(int, shape))
        if len(sizes) != int(str(count)) or not 1 <= len(sizes) <= 7:
            raise ValueError(f"its header claims {count} axes of sizes {sizes}")
        self.shape = (channels, *sizes) if channels > 1 else sizes


def _header_text(path: Path) -> bytes:
    """Return the first bytes of a file, which contain its header."""
    with open_regular(path) as file:
        return file.read(LARGEST_METADATA)


# MetaImage


class MetaImageSource(_HeadedSource):
    """The voxels of a MetaImage in stored order: channel (if there are several), x, y, z, t, and up to three more."""

    format = "MetaImage"

    def __init__(self, place: Place) -> None:
        header, end = _parse_metaimage(_header_text(place.path))
        count = int(header["NDims"])
        channels = int(header.get("ElementNumberOfChannels", 1))
        self._set_shape(header["DimSize"].split(), count, channels)
        self.names = ("c" if channels > 1 else "") + "xyztuvw"[:count]
        self._set_place(header, count)
        name = header["ElementDataFile"]
        packed = _true(header.get("CompressedData"))
        skipped = int(header.get("HeaderSize", 0))  # in place of the header itself, wherever the voxels are
        own = name.upper() == "LOCAL"
        self._find_voxels(
            place,
            None if own else name,
            _metaimage_type(header),
            packed=packed,
            start=skipped if skipped > 0 else end if own else 0,
            skip=-1 if skipped < 0 and not packed else 0,
        )

    def _set_place(self, header: Mapping[str, str], count: int) -> None:
        """Set voxel size and affine, given the number of axes that are no channels."""
        stated = header.get("ElementSpacing", header.get("ElementSize"))
        rows = header.get("TransformMatrix", header.get("Rotation", header.get("Orientation")))
        origin = header.get("Offset", header.get("Position", header.get("Origin")))
        if stated is None and rows is None and origin is None:
            return
        sizes = [1.0] * count if stated is None else _numbers(stated, count)  # as ITK assumes
        unit = normal_unit(header.get("DistanceUnits", "mm")) or "mm"
        self.voxel_size = (*[math.nan] * (len(self.shape) - count), *map(abs, sizes)), unit
        if count < 3:
            return
        axes = np.eye(count) if rows is None else np.reshape(_numbers(rows, count * count), (count, count))
        first = np.zeros(count) if origin is None else np.array(_numbers(origin, count))
        scale = millimetres(unit)
        # Each row is the direction of an axis.
        directions = (axes[:3, :3] * np.reshape(sizes[:3], (3, 1))).T * scale
        self.affine = affine_from_lps(directions, first[:3] * scale)


def _parse_metaimage(head: bytes) -> tuple[dict[str, str], int]:
    """Read the lines ``key = value`` up to ``ElementDataFile``; return them and their length in bytes."""
    header: dict[str, str] = {}
    end = 0
    while "ElementDataFile" not in header:
        line = head[end : head.find(b"\n", end) + 1 or len(head)]
        end += len(line)
        # It may name a file, in whatever encoding.
        key, equals, value = (part.strip() for part in line.decode(errors="surrogateescape").partition("="))
        # ITK also writes what it knows from DICOM and NRRD: "0008|0060 = CT", "NRRD_kinds[0] = domain".
        if not equals or not key.isprintable():
            raise ValueError(f"its header lacks ElementDataFile in the first {end:,} bytes")
        header[key] = value
    return header, end


def _metaimage_type(header: Mapping[str, str]) -> np.dtype[Any]:
    kind = require_known("ElementType", header["ElementType"].removesuffix("_ARRAY"), _META_TYPES)
    if not _true(header.get("BinaryData", "True")):
        raise ValueError("its voxels are stored as text; save it as binary data")
    msb = header.get("ElementByteOrderMSB", header.get("BinaryDataByteOrderMSB"))
    return np.dtype(_META_TYPES[kind]).newbyteorder(">" if _true(msb) else "<")


def _numbers(text: str, count: int) -> list[float]:
    numbers = [float(part) for part in text.split()]
    if len(numbers) < count:
        raise ValueError(f"{count} numbers expected in {text[:60]!r}")
    return numbers[:count]


def _true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("true", "1", "t", "yes")


# NRRD


class NrrdSource(_HeadedSource):
    """The voxels of an NRRD file in stored order, the fastest axis first."""

    format = "NRRD"

    def __init__(self, place: Place) -> None:
        header, end = _parse_nrrd(_header_text(place.path))
        self._set_shape(header["sizes"], header["dimension"])
        if header.get("lineskip"):
            raise ValueError("lines of text precede its voxels; save it as one .nrrd file")
        count = len(self.shape)
        # The kind of each axis, and its step in space: None for an axis that is not spatial.
        kinds = ([str(kind).lower() for kind in header.get("kinds", ())] + [""] * count)[:count]
        steps = header.get("spacedirections")
        if steps is not None:
            steps = [None if row is None or np.isnan(row).any() else np.asarray(row, float) for row in steps]
            if len(steps) != count:
                raise ValueError(f"{len(steps)} space directions for {count} axes")
        spatial = _spatial_axes(kinds, steps, self.shape)
        self.names = _names(kinds, spatial)
        self._set_place(header, steps, spatial)
        encoding = require_known("encoding", str(header["encoding"]).lower(), ENCODINGS)
        name, packed = header.get("datafile"), encoding != "raw"
        start, skip = 0 if name else end, int(header.get("byteskip", 0))
        self._find_voxels(place, name, _nrrd_type(header), packed=packed, start=start, skip=skip)

    def _set_place(self, header: Mapping[str, Any], steps: Sequence[Any] | None, spatial: list[int]) -> None:
        """Set voxel sizes from the steps in space, or from the spacings of the axes, each with its own unit; and the affine."""
        if steps is None:
            if "spacings" in header:
                sizes = [abs(float(size)) for size in header["spacings"]]  # of a flipped axis, negative
                units = [*header.get("units", ()), *[None] * len(sizes)]
                self.voxel_size = scaled_spacing(sizes, units, self.names or "")
            return
        space = str(header.get("space", "")).lower().removesuffix("-time")
        signs = _SIGNS.get("".join(word[0] for word in space.split("-")) if "-" in space else space)
        stated = {normal_unit(unit) for unit in header.get("spaceunits", ())}
        unit = stated.pop() if len(stated) == 1 else "mm" if signs and not stated else None
        lengths = tuple(math.nan if step is None else float(np.linalg.norm(step)) for step in steps)
        self.voxel_size = lengths, unit
        if len(spatial) != 3 or signs is None or unit is None:
            return
        scale = np.array(signs) * millimetres(unit)
        columns = np.stack([steps[axis] for axis in spatial], axis=1)
        origin = np.asarray(header.get("spaceorigin", np.zeros(3)), float)
        if columns.shape == (3, 3) and origin.shape == (3,):
            self.affine = affine_from_lps(columns * scale[:, None], origin * scale)


def _parse_nrrd(head: bytes) -> tuple[Mapping[str, Any], int]:
    """Read the fields up to the empty line.

    Returns:
        The fields by name without spaces ("datafile" for "data file"), and where the header ends.
    """
    with needs_extra("medical", "reading an NRRD volume"):
        from nrrd import read_header
    ended = re.search(rb"\r?\n\r?\n", head)
    if not ended and len(head) == LARGEST_METADATA:
        raise ValueError(f"its header has no empty line at its end in the first {len(head):,} bytes")
    end = ended.end() if ended else len(head)
    lines = list(takewhile(bytes.strip, head[:end].splitlines(keepends=True)))
    return {name.replace(" ", ""): value for name, value in read_header(lines).items()}, end


def _nrrd_type(header: Mapping[str, Any]) -> np.dtype[Any]:
    """Translate Teem's names of a data type."""
    words = str(header["type"]).lower().removesuffix("_t").split()
    name = "".join(word for word in words if word not in ("signed", "int")) or "int"
    if name.startswith("unsigned"):
        name = f"u{name.removeprefix('unsigned') or 'int'}"
    require_known("type", name, _NRRD_TYPES)
    dtype = np.dtype(_NRRD_TYPES[name])
    order = str(header.get("endian", "little" if dtype.itemsize == 1 else "")).lower()
    order = require_known("endian, the order of the bytes of a voxel,", order, ("little", "big"))
    return dtype.newbyteorder("<" if order == "little" else ">")


def _spatial_axes(kinds: Sequence[str], steps: Sequence[Any] | None, shape: tuple[int, ...]) -> list[int]:
    """Return the spatial axes: those with a step, else those of a spatial kind and of no kind behind them, else all.

    Of more than three, those along time and those of length 1 are left out.
    """
    if steps is not None:
        found = [axis for axis, step in enumerate(steps) if step is not None]
    else:
        named = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL_KINDS]
        if named and len(named) < 3:
            named += [axis for axis, kind in enumerate(kinds) if kind in _UNKNOWN_KINDS and axis > named[-1]]
        found = named or list(range(len(shape)))
    if len(found) > 3:
        found = [axis for axis in found if kinds[axis] != "time" and shape[axis] > 1]
    return found


def _names(kinds: Sequence[str], spatial: Sequence[int]) -> str | None:
    """Name the spatial axes x, y, z, and any other t if it is time, else c and so on; None if too many are spatial.

    The fourth of four is t, so that the user may pick one entry of it.
    """
    if len(spatial) > 4:
        return None
    names, others = [""] * len(kinds), iter("cuvwabd")
    for axis, name in zip(spatial, "xyzt", strict=False):
        names[axis] = name
    for axis, kind in enumerate(kinds):
        if not names[axis]:
            names[axis] = "t" if kind == "time" and "t" not in names else next(others)
    return "".join(names)
