"""MetaImage (``.mha``, ``.mhd``) and NRRD (``.nrrd``, ``.nhdr``): a text header, then the voxels, or the name of their file.

pynrrd parses the fields of NRRD; their meaning: https://teem.sourceforge.net/nrrd/format.html. Those of MetaImage:
https://itk.org/Wiki/ITK/MetaIO/Documentation, and for what it omits the reader of ITK (lengths in mm, positions as in
DICOM). ITK itself is not used to read: of a MetaImage with a damaged compressed stream it returns voxels that are none,
without an error; it reads NRRD files whole, and none that are compressed by bzip2.
"""

from __future__ import annotations

import bz2
import math
import re
import zlib
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.geometry import affine_from_lps, common_unit, millimetres, normal_unit
from evenslice.volumes.read.checks import LARGEST_METADATA, LARGEST_STREAM, describe_content, require_piece
from evenslice.volumes.read.flat_files import FlatArray
from evenslice.volumes.read.location import confined
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit

__all__ = ["MetaImageSource", "NrrdSource"]

_CODECS: dict[str, Callable[[], Any] | None] = {
    "raw": None,
    "gzip": lambda: zlib.decompressobj(wbits=47),  # gzip or zlib
    "gz": lambda: zlib.decompressobj(wbits=47),
    "bzip2": bz2.BZ2Decompressor,
    "bz2": bz2.BZ2Decompressor,
}
"""Encodings, in the words of NRRD, and what undoes them."""

_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NRRD_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "longlong": "i8", "int64": "i8", "ulonglong": "u8", "uint64": "u8",
    "float": "f4", "double": "f8",
}  # fmt: skip
_SIGNS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
"""Signs that map the axes of an anatomical space to left, back, head."""

_SPATIAL_KINDS = {"domain", "space"}
_UNKNOWN_KINDS = {"", "???", "none"}


class _HeadedSource(VoxelSource):
    """A volume whose voxels follow a header, with the first axis varying fastest: raw, or compressed as one stream."""

    def _find_voxels(self, path: Path, label: str, encoding: str, start: int, skip: int) -> None:
        """Find the voxels, given shape and data type.

        Args:
            path: the file that holds them.
            label: the path that the user opened, for messages.
            encoding: how they are stored.
            start: where the stream begins.
            skip: how many of its bytes, once decompressed, precede them; -1 if they are its last bytes.

        Raises:
            VolumeError: the file cannot hold them, or they are encoded in another way, or too large when compressed.
        """
        if encoding.lower() not in _CODECS:
            raise VolumeError(f"{label}: its voxels are encoded as {encoding[:40]!r}; save it as raw or gzip")
        self._path, self._label, self._start, self._skip = path, label, start, skip
        self._decompressor = _CODECS[encoding.lower()]
        self._nbytes = math.prod(self.shape) * self.dtype.itemsize
        if self._decompressor is None:
            offset = start + skip if skip >= 0 else path.stat().st_size - self._nbytes
            self._flat = FlatArray(path, label, self.dtype, offset, self.shape, "F")
        elif skip < 0 or min(self.shape) < 0:
            raise VolumeError(
                f"{label}: its header claims the shape {self.shape} from byte {skip} on of a compressed stream; the file is "
                "damaged"
            )
        else:
            require_piece(label, "its compressed voxels", self.shape, self.dtype, LARGEST_STREAM)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the part under ``key``; what is compressed is decompressed whole once, and kept."""
        return self._flat.read(key) if self._decompressor is None else self._decompressed[key]

    @cached_property
    def _decompressed(self) -> NDArray[Any]:
        assert self._decompressor is not None  # noqa: S101  # for the type checker
        content, most = b"", self._skip + self._nbytes
        with open_regular(self._path) as file:
            file.seek(self._start)
            packed = file.read()
        while packed and len(content) < most:  # a gzip stream may have several members
            decompressor = self._decompressor()
            content += decompressor.decompress(packed, most - len(content))
            packed = decompressor.unused_data
        if len(content) < most:
            raise VolumeError(
                f"{self._label}: is truncated, its header claims {self._nbytes:,} bytes and "
                f"{self._path.name} holds {max(len(content) - self._skip, 0):,}; copy it again"
            )
        return np.frombuffer(content, self.dtype, offset=self._skip).reshape(self.shape, order="F")


class MetaImageSource(_HeadedSource):
    """The voxels of a MetaImage in stored order: channel (if there are several), x, y, z, t, and up to three more."""

    format = "MetaImage"

    def __init__(self, path: Path, label: str) -> None:
        header, end = _parse_metaimage(_header_text(path), label)
        sizes = [int(size) for size in header["DimSize"].split()]
        if len(sizes) != int(header["NDims"]) or not 1 <= len(sizes) <= 7:
            raise VolumeError(
                f"{label}: its header claims {header['NDims']} axes of sizes {sizes}; the file is damaged"
            )
        channels = int(header.get("ElementNumberOfChannels", 1))
        lead = (channels,) if channels > 1 else ()
        self.shape, self.dtype = (*lead, *sizes), _metaimage_type(header, label)
        self.names = ("c" if lead else "") + "xyztuvw"[: len(sizes)]
        self._place(header, len(lead), len(sizes))
        name = header["ElementDataFile"]
        data = path if name.upper() == "LOCAL" else _data_file(path, name, label)
        self.files = (path, data) if data != path else None
        compressed = _true(header.get("CompressedData"))
        skipped = int(header.get("HeaderSize", 0))  # in place of the header itself, wherever the voxels are
        start = skipped if skipped > 0 else end if data == path else 0
        last = skipped < 0 and not compressed
        self._find_voxels(data, label, "gzip" if compressed else "raw", start, -1 if last else 0)

    def _place(self, header: Mapping[str, str], lead: int, count: int) -> None:
        """Set voxel size and affine, given the number of channel axes and of the others."""
        stated = header.get("ElementSpacing", header.get("ElementSize"))
        rows = header.get("TransformMatrix", header.get("Rotation", header.get("Orientation")))
        origin = header.get("Offset", header.get("Position", header.get("Origin")))
        if stated is None and rows is None and origin is None:
            return
        sizes = [1.0] * count if stated is None else _numbers(stated, count)  # as ITK assumes
        self.spacing = (*[float("nan")] * lead, *map(abs, sizes))
        self.unit = normal_unit(header.get("DistanceUnits", "mm")) or "mm"
        if count < 3:
            return
        axes = np.eye(count) if rows is None else np.reshape(_numbers(rows, count * count), (count, count))
        first = np.zeros(count) if origin is None else np.array(_numbers(origin, count))
        scale = millimetres(self.unit)
        # Each row is the direction of an axis.
        directions = (axes[:3, :3] * np.reshape(sizes[:3], (3, 1))).T * scale
        self.affine = affine_from_lps(directions, first[:3] * scale)


class NrrdSource(_HeadedSource):
    """The voxels of an NRRD file in stored order, the fastest axis first."""

    format = "NRRD"

    def __init__(self, path: Path, label: str) -> None:
        header, end = _parse_nrrd(_header_text(path), label)
        self.shape = tuple(int(size) for size in header["sizes"])
        if len(self.shape) != header["dimension"] or not 1 <= len(self.shape) <= 7:
            raise VolumeError(
                f"{label}: its header claims {header['dimension']} axes of sizes {self.shape}; the file is damaged"
            )
        self.dtype = _nrrd_type(header, label)
        directions = _directions(header, len(self.shape))
        spatial = _spatial_axes(header, directions, self.shape)
        self.names = _names(header, spatial, len(self.shape))
        self.spacing, self.unit = _spacing(header, directions, spatial, len(self.shape))
        if len(spatial) == 3 and directions is not None:
            self.affine = _affine(header, [directions[axis] for axis in spatial], self.unit)
        if header.get("lineskip"):
            raise VolumeError(f"{label}: lines of text precede its voxels; save it as one .nrrd file")
        name = header.get("datafile")
        data = path if name is None else _data_file(path, str(name), label)
        self.files = (path, data) if data != path else None
        skip, start = int(header.get("byteskip", 0)), end if data == path else 0
        self._find_voxels(data, label, str(header["encoding"]), start, skip)


def _header_text(path: Path) -> bytes:
    """Return the first bytes of a file, which contain its header."""
    with open_regular(path) as file:
        return file.read(LARGEST_METADATA)


def _data_file(path: Path, name: str, label: str) -> Path:
    """Return the file with the voxels that a header names, which must be in its folder or below.

    Raises:
        VolumeError: the name leads out of the folder or means several files, or the file is missing.
    """
    if re.match(r"LIST(\s|$)", name) or "%" in name:
        raise VolumeError(
            f"{label}: its voxels are spread over several files ({name[:40]}); save it as one file"
        )
    found = confined(path.parent, name, label)
    if not found.is_file():
        raise VolumeError(f"{label}: its data file {name[:80]!r} is missing; copy it too")
    return found


# MetaImage


def _parse_metaimage(head: bytes, label: str) -> tuple[dict[str, str], int]:
    """Read the lines ``key = value`` up to ``ElementDataFile``.

    Returns:
        The header and its length in bytes.
    """
    header: dict[str, str] = {}
    end = 0
    while "ElementDataFile" not in header:
        line = head[end : head.find(b"\n", end) + 1 or len(head)]
        end += len(line)
        key, equals, value = (part.strip() for part in _text(line).partition("="))
        # ITK also writes what it knows from DICOM and NRRD: "0008|0060 = CT", "NRRD_kinds[0] = domain".
        if not equals or not key.isprintable():
            break
        header[key] = value
    if "NDims" not in header and "ElementDataFile" not in header:
        raise VolumeError(
            f"{label}: is not a MetaImage, its content is {describe_content(head[:512])}; name a file whose suffix "
            "matches its content"
        )
    _require_fields(header, ("NDims", "DimSize", "ElementType", "ElementDataFile"), label)
    return header, end


def _require_fields(header: Mapping[str, Any], needed: Sequence[str], label: str) -> None:
    missing = [name for name in needed if name not in header]
    if missing:
        raise VolumeError(f"{label}: its header lacks {', '.join(missing)}; the file is damaged")


def _text(line: bytes) -> str:
    """Decode a line, which may name a file: in UTF-8, as ITK writes it, or as older programs do."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _metaimage_type(header: Mapping[str, str], label: str) -> np.dtype[Any]:
    kind = header["ElementType"].removesuffix("_ARRAY")
    if kind not in _META_TYPES:
        raise VolumeError(
            f"{label}: its voxels are {kind[:40]}, which cannot be read; save it as one of {', '.join(_META_TYPES)}"
        )
    if header.get("BinaryData") is not None and not _true(header["BinaryData"]):
        raise VolumeError(f"{label}: its voxels are stored as text; save it as binary data")
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


def _parse_nrrd(head: bytes, label: str) -> tuple[Mapping[str, Any], int]:
    """Read the fields up to the empty line.

    Returns:
        The fields by name without spaces ("datafile" for "data file"), and where the header ends.
    """
    if not head.startswith(b"NRRD000"):
        raise VolumeError(
            f"{label}: is not an NRRD file, its content is {describe_content(head[:512])}; name a file whose "
            "suffix matches its content"
        )
    with needs_extra("medical", "reading an NRRD volume"):
        from nrrd import read_header
    ended = re.search(rb"\r?\n\r?\n", head)
    end = ended.end() if ended else len(head)
    lines = list(takewhile(bytes.strip, head[:end].splitlines(keepends=True)))
    if not ended and len(head) == LARGEST_METADATA:
        raise VolumeError(
            f"{label}: its header has no empty line at its end in the first {end:,} bytes; the file is damaged"
        )
    fields = {name.replace(" ", ""): value for name, value in read_header(lines).items()}
    _require_fields(fields, ("dimension", "type", "encoding", "sizes"), label)
    return fields, end


def _nrrd_type(header: Mapping[str, Any], label: str) -> np.dtype[Any]:
    """Translate Teem's names of a data type."""
    words = str(header["type"]).lower().removesuffix("_t").split()
    name = "".join(word for word in words if word not in ("signed", "int")) or "int"
    if name.startswith("unsigned"):
        name = f"u{name.removeprefix('unsigned') or 'int'}"
    if name not in _NRRD_TYPES:
        raise VolumeError(
            f"{label}: its voxels have the type {str(header['type'])[:40]!r}, which cannot be read; save "
            "them as integers or reals"
        )
    dtype = np.dtype(_NRRD_TYPES[name])
    order = str(header.get("endian", "little" if dtype.itemsize == 1 else "")).lower()
    if order not in ("little", "big"):
        found = repr(order[:40]) if order else "missing"
        raise VolumeError(
            f"{label}: its field 'endian' is {found}, so the order of the bytes of a voxel is unknown; let it say 'little' "
            "or 'big'"
        )
    return dtype.newbyteorder("<" if order == "little" else ">")


def _directions(header: Mapping[str, Any], count: int) -> list[NDArray[np.float64] | None] | None:
    """Return the step in space along each axis (None for an axis that is not spatial), or None if the file has none."""
    stated = header.get("spacedirections")
    if stated is None:
        return None
    rows = [None if row is None or np.isnan(row).any() else np.asarray(row, float) for row in stated]
    if len(rows) != count:
        raise ValueError(f"{len(rows)} space directions for {count} axes")
    return rows


def _kinds(header: Mapping[str, Any], count: int) -> list[str]:
    """Return the kind of each axis, empty if the file has none."""
    return ([str(kind).lower() for kind in header.get("kinds", ())] + [""] * count)[:count]


def _spatial_axes(
    header: Mapping[str, Any],
    directions: Sequence[NDArray[np.float64] | None] | None,
    shape: tuple[int, ...],
) -> list[int]:
    """Return the spatial axes: those with a direction, else those of a spatial kind and of no kind behind them, else all.

    Of more than three, those along time and those of length 1 are left out.
    """
    kinds = _kinds(header, len(shape))
    if directions is not None:
        found = [axis for axis, step in enumerate(directions) if step is not None]
    else:
        named = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL_KINDS]
        if named and len(named) < 3:
            named += [axis for axis, kind in enumerate(kinds) if kind in _UNKNOWN_KINDS and axis > named[-1]]
        found = named or list(range(len(shape)))
    if len(found) > 3:
        found = [axis for axis in found if kinds[axis] != "time" and shape[axis] > 1]
    return found


def _names(header: Mapping[str, Any], spatial: Sequence[int], count: int) -> str | None:
    """Name the spatial axes x, y, z, and any other t if it is time, else c and so on; None if too many are spatial.

    The fourth of four is t, so that the user may pick one entry of it.
    """
    if len(spatial) > 4:
        return None
    names, others = [""] * count, iter("cuvwabd")
    for axis, name in zip(spatial, "xyzt", strict=False):
        names[axis] = name
    for axis, kind in enumerate(_kinds(header, count)):
        if not names[axis]:
            names[axis] = "t" if kind == "time" and "t" not in names else next(others)
    return "".join(names)


def _spacing(
    header: Mapping[str, Any],
    directions: Sequence[NDArray[np.float64] | None] | None,
    spatial: Sequence[int],
    count: int,
) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Return voxel sizes from the directions in space, or from the spacings of the axes, each with its own unit."""
    if directions is not None:
        steps = [math.nan if step is None else float(np.linalg.norm(step)) for step in directions]
        units = {normal_unit(unit) for unit in header.get("spaceunits", ())}
        anatomical = _space(header) in _SIGNS
        unit = units.pop() if len(units) == 1 else "mm" if anatomical and not units else None
        return tuple(steps), unit
    if "spacings" not in header or not spatial:
        return None, None
    stated = [abs(float(size)) for size in header["spacings"]]  # of a flipped axis, negative
    names = [normal_unit(unit) for unit in header.get("units", ())] + [None] * count
    sizes, unit = common_unit([stated[axis] for axis in spatial], [names[axis] for axis in spatial])
    if sizes is None:
        return None, None
    by_axis = dict(zip(spatial, sizes, strict=True))
    return tuple(by_axis.get(axis, math.nan) for axis in range(count)), unit


def _space(header: Mapping[str, Any]) -> str:
    return str(header.get("space", "")).lower().removesuffix("-time")


def _affine(
    header: Mapping[str, Any], steps: Sequence[NDArray[np.float64] | None], unit: Unit | None
) -> NDArray[np.float64] | None:
    """Return the affine to patient space, if the file names an anatomical space."""
    signs = _SIGNS.get(_space(header))
    if signs is None or unit is None:
        return None
    scale = np.array(signs) * millimetres(unit)
    columns = np.stack([step for step in steps if step is not None], axis=1)
    origin = np.asarray(header.get("spaceorigin", np.zeros(3)), float)
    if columns.shape != (3, 3) or origin.shape != (3,):
        return None
    return affine_from_lps(columns * scale[:, None], origin * scale)
