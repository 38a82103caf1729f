"""MetaImage (``.mha``, ``.mhd``) and NRRD (``.nrrd``, ``.nhdr``): a text header, then the voxels, or the name of their file.

pynrrd parses the fields of NRRD; their meaning: https://teem.sourceforge.net/nrrd/format.html. Those of MetaImage:
https://itk.org/Wiki/ITK/MetaIO/Documentation, and for what it omits the reader of ITK (lengths in mm, positions as in
DICOM). ITK itself is not used to read: of a MetaImage with a damaged compressed stream it returns voxels that are none,
without an error; it reads NRRD files whole, and none that are compressed by bzip2.
"""

from __future__ import annotations

import math
import re
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.geometry import affine_from_lps, millimetres, normal_unit
from evenslice.volumes.read.flat_files import FlatArray, FlatSource
from evenslice.volumes.read.source import (
    LARGEST_METADATA,
    confined,
    require_known,
    scaled_spacing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from evenslice.volumes.read.source import Place

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
            path = confined(place.path.parent, name, place.label)
            self.files = (place.path, path)
        if skip < 0 and not packed:
            start, skip = path.stat().st_size - math.prod(self.shape) * dtype.itemsize, 0
        offset, stream = (skip, start) if packed else (start + skip, None)
        self._set_voxels(FlatArray(path, place.label, dtype, offset, self.shape, "F", stream))

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
            _metaimage_type(header, place.label),
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


def _metaimage_type(header: Mapping[str, str], label: str) -> np.dtype[Any]:
    kind = require_known(label, "ElementType", header["ElementType"].removesuffix("_ARRAY"), _META_TYPES)
    if not _true(header.get("BinaryData", "True")):
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


class NrrdSource(_HeadedSource):
    """The voxels of an NRRD file in stored order, the fastest axis first."""

    format = "NRRD"

    def __init__(self, place: Place) -> None:
        label = place.label
        header, end = _parse_nrrd(_header_text(place.path), label)
        self._set_shape(header["sizes"], header["dimension"])
        if header.get("lineskip"):
            raise VolumeError(f"{label}: lines of text precede its voxels; save it as one .nrrd file")
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
        encoding = require_known(label, "encoding", str(header["encoding"]).lower(), ENCODINGS)
        name, packed = header.get("datafile"), encoding != "raw"
        start, skip = 0 if name else end, int(header.get("byteskip", 0))
        self._find_voxels(place, name, _nrrd_type(header, label), packed=packed, start=start, skip=skip)

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


def _parse_nrrd(head: bytes, label: str) -> tuple[Mapping[str, Any], int]:
    """Read the fields up to the empty line.

    Returns:
        The fields by name without spaces ("datafile" for "data file"), and where the header ends.
    """
    with needs_extra("medical", "reading an NRRD volume"):
        from nrrd import read_header
    ended = re.search(rb"\r?\n\r?\n", head)
    if not ended and len(head) == LARGEST_METADATA:
        raise VolumeError(
            f"{label}: its header has no empty line at its end in the first {len(head):,} bytes; the file is damaged"
        )
    end = ended.end() if ended else len(head)
    lines = list(takewhile(bytes.strip, head[:end].splitlines(keepends=True)))
    return {name.replace(" ", ""): value for name, value in read_header(lines).items()}, end


def _nrrd_type(header: Mapping[str, Any], label: str) -> np.dtype[Any]:
    """Translate Teem's names of a data type."""
    words = str(header["type"]).lower().removesuffix("_t").split()
    name = "".join(word for word in words if word not in ("signed", "int")) or "int"
    if name.startswith("unsigned"):
        name = f"u{name.removeprefix('unsigned') or 'int'}"
    require_known(label, "type", name, _NRRD_TYPES)
    dtype = np.dtype(_NRRD_TYPES[name])
    order = str(header.get("endian", "little" if dtype.itemsize == 1 else "")).lower()
    order = require_known(label, "endian, the order of the bytes of a voxel,", order, ("little", "big"))
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
