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
import math
import zlib
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.geometry import LARGEST, affine_from_lps, millimetres, normal_unit, positive
from evenslice.volumes.read.source import (
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

IN_MEMORY = 2**27
"""Size limit in bytes of a compressed NIfTI volume that is decompressed once and kept."""

_NIFTI_HEADER_BYTES = 540
LONGEST_LINE = 2**20  # bytes of a line of a header of text
_MRC_HEADER_BYTES, _MRC_EXTENDED = 1024, slice(92, 96)  # the latter states the size of the extended header
_IMOD_FIELDS = slice(10, 12)  # of the words that MRC leaves to programs
IMOD = 1146047817
"""The stamp with which IMOD marks its files."""


class FlatSource(VoxelSource):
    """A volume that is one array in a file."""

    def _set_voxels(
        self,
        path: Path,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        *,
        start: int = 0,
        skip: int = 0,
        packing: str | None = None,
        order: Literal["C", "F"] = "F",
    ) -> None:
        """Set where the voxels are, their shape and their data type.

        Args:
            path: the file.
            dtype: stored data type, including byte order.
            shape: number of voxels along each axis.
            start: where they, or the stream in which they are compressed, begin in the file.
            skip: how many bytes, decompressed, precede them from there; -1 if they are the last bytes of the file.
            packing: "gzip", "bz2" or "zlib" for a stream; None if they are not compressed.
            order: "C" if the last axis varies fastest, "F" if the first one does.

        Raises:
            VolumeError: the file is too short to hold them, they are too large when compressed, or the shape is none.
        """
        size = math.prod(shape) * dtype.itemsize
        if skip < 0 and packing is None:
            start, skip = path.stat().st_size - size, 0
        offset = skip if packing else start + skip
        if offset < 0 or min(shape, default=0) < 0:
            raise ValueError(f"its header claims the impossible shape {shape} from byte {offset:,} on")
        self.shape, self.dtype = shape, dtype
        self._path, self._stored, self._order = path, dtype, order
        self._stream, self._packing = start, packing
        self._start, self._end = offset, offset + size
        if packing is None:
            require_bytes(path, self._end)
        else:
            require_piece("its compressed voxels", shape, dtype, LARGEST_STREAM)

    def _set_shape(self, shape: Sequence[str], count: object, channels: int = 1) -> None:
        """Set the shape, which a header of text states beside the number of axes."""
        sizes = tuple(map(int, shape))
        if len(sizes) != int(str(count)) or not 1 <= len(sizes) <= 7:
            raise ValueError(f"its header claims {count} axes of sizes {sizes}")
        self.shape = (channels, *sizes) if channels > 1 else sizes

    def _named_file(self, place: Place, name: str | None) -> Path:
        """Return the file of the voxels, which a header of text may name; None for the same file."""
        if name is None:
            return place.path
        path = confined(place.path.parent, name)
        self.files = (place.path, path)
        return path

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return a view of the part.

        Raises:
            VolumeError: the file has become too short.
        """
        if self._packing is not None:
            return self._unpacked[key]
        require_bytes(self._path, self._end)
        with open_regular(self._path) as file:
            mapped = np.memmap(file, self._stored, "r", self._start, self.shape, self._order)
        return np.asarray(mapped)[key]

    @cached_property
    def _unpacked(self) -> NDArray[Any]:
        """The voxels of a stream, decompressed once and kept; of gzip and bzip2, with their checksum."""
        with open_regular(self._path) as file:
            file.seek(self._stream)
            if self._packing == "zlib":
                content = zlib.decompressobj().decompress(file.read(), max(self._end, 1))
            else:
                stream = cast(BinaryIO, (bz2.open if self._packing == "bz2" else gzip.open)(file))
                content = stream.read(self._end)
                while stream.read(2**20):  # the checksum is at the end
                    pass
        if len(content) < self._end:
            raise VolumeError(f"is truncated, its stream ends at byte {len(content):,}, not at {self._end:,}")
        flat = np.frombuffer(content, self._stored, math.prod(self.shape), self._start)
        return flat.reshape(self.shape, order=self._order)


class NpySource(VoxelSource):
    """An array in a ``.npy`` file, mapped anew for each read; NumPy maps no Python objects."""

    format = "NumPy array"

    def __init__(self, place: Place) -> None:
        self._path = place.path
        self.shape, self.dtype = self._mapped().shape, self._mapped().dtype

    def _mapped(self) -> NDArray[Any]:
        return np.lib.format.open_memmap(self._path, mode="r")

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read the part."""
        return np.asarray(self._mapped()[key])


# MRC


class MrcSource(FlatSource):
    """An MRC or CCP4 map: a volume, a stack of images, or a stack of volumes with an axis t before z."""

    def __init__(self, place: Place) -> None:
        with needs_extra("volumes", "reading an MRC volume"):
            import mrcfile
        with open_regular(place.path) as head:
            size = head.read(_MRC_HEADER_BYTES)[_MRC_EXTENDED]
        # Of whatever byte order; mrcfile would allocate as much as an extended header claims.
        least = min(int.from_bytes(size, "little"), int.from_bytes(size, "big"))
        require_bytes(place.path, _MRC_HEADER_BYTES + least)
        with without_warnings(), mrcfile.mmap(place.path) as file:
            header, voxels, stacked = file.header, file.data, file.is_volume_stack()
        if stacked and header.nz % header.mz:
            raise ValueError(f"its {header.nz} sections are not a multiple of the {header.mz} of a volume")
        dtype = np.dtype(np.uint8) if _holds_unsigned_bytes(header) else voxels.dtype
        self._set_voxels(place.path, dtype, voxels.shape, start=voxels.offset, order="C")
        # Sections, rows and columns by the axes in the header.
        axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]
        names = "".join(" xyz"[axis] for axis in axes) if sorted(axes) == [1, 2, 3] else "zyx"
        self.names = f"t{names}" if stacked else names
        self.format = "MRC volume stack" if stacked else "MRC"
        # In a stack of images there is one interval along the sections, and their distance is unknown.
        if stacked or header[f"m{names[0]}"] == header.nz:
            sizes = {axis: float(header.cella[axis]) / max(int(header[f"m{axis}"]), 1) for axis in "xyz"}
            self.voxel_size = tuple(sizes.get(name, math.nan) for name in self.names), "angstrom"


def _holds_unsigned_bytes(header: Any) -> bool:
    """Return whether voxels are unsigned bytes, where the format has signed ones: if IMOD, or voxels above 127, say so.

    IMOD wrote unsigned bytes before 4.2.23, and marks them in its flags since.
    Source: https://bio3d.colorado.edu/imod/doc/mrc_format.txt, on mode 0, "imodStamp" and "imodFlags".
    """
    stamp, flags = np.frombuffer(header.extra2.tobytes(), header.mode.dtype)[_IMOD_FIELDS]
    unsigned = not flags & 1 if stamp == IMOD else header.dmin >= 0 and 127 < header.dmax <= 255
    return bool(header.mode == 0 and unsigned)


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
        self._proxy: Any = None
        self._set_voxels(path, stored, shape, skip=offset, packing="gzip" if compressed else None)
        if compressed and self._end > IN_MEMORY:
            from nibabel.arrayproxy import ArrayProxy

            self._proxy = ArrayProxy(str(path), (shape, stored, offset), mmap=False)  # type: ignore[no-untyped-call]
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
            raise VolumeError(f"its affine holds NaN or numbers beyond {LARGEST:g}; correct its header")
        self.affine = affine if placed else None

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read and scale."""
        raw = super().read(key) if self._proxy is None else self._read_slices(key)
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

ENCODINGS = {"raw": None, "gzip": "gzip", "gz": "gzip", "bzip2": "bz2", "bz2": "bz2"}
"""How voxels are stored, in the words of NRRD, and the packing."""

_C_NAMES = {"char": "byte", "int": "intc", "long": "intc", "float": "single"}
"""What NumPy calls the types of C, of which MetaImage and NRRD have the names."""

_SIGNS = {"lps": (1, 1, 1), "ras": (-1, -1, 1), "las": (1, -1, 1)}
"""Signs that map the axes of an anatomical space, by the first letters of their directions, to left, back, head."""

_SPATIAL_KINDS = {"domain", "space"}
_UNKNOWN_KINDS = {"", "???", "none"}


def _data_type(name: str) -> np.dtype[Any]:
    """Return a data type by its name in C, or with its bits; "u" precedes those without a sign."""
    signed = name.removeprefix("u")
    return np.dtype(name.removesuffix(signed) + _C_NAMES.get(signed, signed))


# MetaImage


class MetaImageSource(FlatSource):
    """The voxels of a MetaImage in stored order: channel (if there are several), x, y, z, t, and up to three more."""

    format = "MetaImage"

    def __init__(self, place: Place) -> None:
        with open_regular(place.path) as file:
            header = _parse_metaimage(file)
            end = file.tell()
        count = int(header["NDims"])
        channels = int(header.get("ElementNumberOfChannels", 1))
        self._set_shape(header["DimSize"].split(), count, channels)
        self.names = ("c" if channels > 1 else "") + "xyztuvw"[:count]
        self._set_place(header, count)
        name = header["ElementDataFile"]
        own, packed = name.upper() == "LOCAL", _true(header.get("CompressedData"))
        skipped = int(header.get("HeaderSize", 0))  # in place of the header itself, wherever the voxels are
        self._set_voxels(
            self._named_file(place, None if own else name),
            _metaimage_type(header),
            self.shape,
            start=skipped if skipped > 0 else end if own else 0,
            skip=-1 if skipped < 0 and not packed else 0,
            packing="zlib" if packed else None,
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


def _parse_metaimage(file: BinaryIO) -> dict[str, str]:
    """Read the lines ``key = value`` up to ``ElementDataFile``."""
    header: dict[str, str] = {}
    while "ElementDataFile" not in header:
        # It may name a file, in whatever encoding.
        line = file.readline(LONGEST_LINE).decode(errors="surrogateescape")
        key, equals, value = (part.strip() for part in line.partition("="))
        # ITK also writes what it knows from DICOM and NRRD: "0008|0060 = CT", "NRRD_kinds[0] = domain".
        if not equals or not key.isprintable():
            raise ValueError(f"its header lacks ElementDataFile in the first {file.tell():,} bytes")
        header[key] = value
    return header


def _metaimage_type(header: Mapping[str, str]) -> np.dtype[Any]:
    name = header["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")
    dtype = _data_type(name.replace("_", "").lower())
    if not _true(header.get("BinaryData", "True")):
        raise ValueError("its voxels are stored as text; save it as binary data")
    msb = header.get("ElementByteOrderMSB", header.get("BinaryDataByteOrderMSB"))
    return dtype.newbyteorder(">" if _true(msb) else "<")


def _numbers(text: str, count: int) -> list[float]:
    numbers = [float(part) for part in text.split()]
    if len(numbers) < count:
        raise ValueError(f"{count} numbers expected in {text[:60]!r}")
    return numbers[:count]


def _true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("true", "1", "t", "yes")


# NRRD


class NrrdSource(FlatSource):
    """The voxels of an NRRD file in stored order, the fastest axis first."""

    format = "NRRD"

    def __init__(self, place: Place) -> None:
        with needs_extra("medical", "reading an NRRD volume"):
            from nrrd import read_header
        with open_regular(place.path) as file:
            fields = read_header(iter(partial(file.readline, LONGEST_LINE), b""))
            end = file.tell()
        header = {
            name.replace(" ", ""): value for name, value in fields.items()
        }  # "datafile" for "data file"
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
        packing = ENCODINGS[require_known("encoding", str(header["encoding"]).lower(), ENCODINGS)]
        name = header.get("datafile")
        start, skip = 0 if name else end, int(header.get("byteskip", 0))
        path, dtype = self._named_file(place, name), _nrrd_type(header)
        self._set_voxels(path, dtype, self.shape, start=start, skip=skip, packing=packing)

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


def _nrrd_type(header: Mapping[str, Any]) -> np.dtype[Any]:
    """Translate Teem's names of a data type."""
    words = str(header["type"]).lower().removesuffix("_t").split()
    name = "".join(word for word in words if word not in ("signed", "int")) or "int"
    if name.startswith("unsigned"):
        name = f"u{name.removeprefix('unsigned') or 'int'}"
    dtype = _data_type(name)
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
