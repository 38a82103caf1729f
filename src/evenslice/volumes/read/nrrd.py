"""NRRD, the format of Teem and 3D Slicer: a text header, then the voxels, or their file.

pynrrd parses the fields. Their meaning: https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, needs_extra
from evenslice.volumes.geometry import affine_from_lps, common_unit, millimetres, normal_unit
from evenslice.volumes.read.checks import describe_content
from evenslice.volumes.read.places import data_file
from evenslice.volumes.read.raw import HEADER_BYTES, RawSource, head_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit
    from evenslice.volumes.read.raw import Encoding

__all__ = ["NrrdSource"]

_ENCODINGS: dict[str, Encoding] = {
    "raw": "raw",
    "gzip": "deflate",
    "gz": "deflate",
    "bzip2": "bzip2",
    "bz2": "bzip2",
}
_SIGNS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
"""Signs that map the axes of an anatomical space to left, back, head."""

LARGEST_HEADER = 2**23
"""Bytes after which a header must have ended: those of segmentations describe each structure."""

_SPATIAL_KINDS = {"domain", "space"}
_UNKNOWN_KINDS = {"", "???", "none"}


class NrrdSource(RawSource):
    """The voxels of an NRRD file in stored order, the fastest axis first."""

    format = "NRRD"

    def __init__(self, path: Path, label: str) -> None:
        header, end = _parse(path, label)
        shape = tuple(int(size) for size in header["sizes"])
        if len(shape) != header["dimension"] or not 1 <= len(shape) <= 7:
            raise VolumeError(
                f"{label}: its header claims {header['dimension']} axes of sizes {shape}; the file is damaged"
            )
        dtype = _data_type(header, label)
        directions = _directions(header, len(shape))
        spatial = _spatial_axes(header, directions, shape)
        self.names = _names(header, spatial, len(shape))
        self.spacing, self.unit = _spacing(header, directions, spatial, len(shape))
        if len(spatial) == 3 and directions is not None:
            self.affine = _affine(header, [directions[axis] for axis in spatial], self.unit)
        encoding = _ENCODINGS.get(str(header["encoding"]).lower())
        if encoding is None:
            raise VolumeError(
                f"{label}: its voxels are encoded as {str(header['encoding'])[:40]!r}; save it as raw or gzip"
            )
        data, offset, skip = _find_data(path, label, header, end)
        if data != path:
            self.files = (path, data)
        if encoding == "raw":
            size = math.prod(shape) * dtype.itemsize
            offset, skip = offset + skip if skip >= 0 else data.stat().st_size - size, 0
        super().__init__(data, label, dtype, shape, offset, encoding, skip)


def _parse(path: Path, label: str) -> tuple[Mapping[str, Any], int]:
    """Read the fields up to the empty line.

    Returns:
        The fields by name without spaces ("datafile" for "data file"), and where the header ends.
    """
    head = head_of(path)
    if not head.startswith(b"NRRD000"):
        raise VolumeError(
            f"{label}: is not an NRRD file, its content is {describe_content(head)}; name a file whose "
            "suffix matches its content"
        )
    with needs_extra("medical", "reading an NRRD volume"):
        from nrrd import read_header
    lines = _header_lines(head)
    if lines[-1].strip() and len(head) == HEADER_BYTES:
        lines = _header_lines(head_of(path, LARGEST_HEADER))
    if lines[-1].strip() and sum(map(len, lines)) == LARGEST_HEADER:
        raise VolumeError(
            f"{label}: its header has no empty line at its end in the first {LARGEST_HEADER:,} bytes; the file is damaged"
        )
    fields = {name.replace(" ", ""): value for name, value in read_header(lines).items()}
    missing = [name for name in ("dimension", "type", "encoding", "sizes") if name not in fields]
    if missing:
        raise VolumeError(f"{label}: its header lacks {', '.join(missing)}; the file is damaged")
    return fields, sum(map(len, lines))


def _header_lines(head: bytes) -> list[bytes]:
    """Return the lines up to the empty one, or all if there is none, as in a header without voxels."""
    lines: list[bytes] = []
    for line in head.splitlines(keepends=True):
        lines.append(line)
        if not line.strip():
            break
    return lines


def _data_type(header: Mapping[str, Any], label: str) -> np.dtype[Any]:
    """Translate Teem's names of a data type."""
    words = str(header["type"]).lower().removesuffix("_t").split()
    name = "".join(word for word in words if word not in ("signed", "int")) or "int"
    if name.startswith("unsigned"):
        name = f"u{name.removeprefix('unsigned') or 'int'}"
    code = {
        "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
        "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
        "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
        "longlong": "i8", "int64": "i8", "ulonglong": "u8", "uint64": "u8",
        "float": "f4", "double": "f8",
    }.get(name)  # fmt: skip
    if code is None:
        raise VolumeError(
            f"{label}: its voxels have the type {str(header['type'])[:40]!r}, which cannot be read; save "
            "them as integers or reals"
        )
    dtype = np.dtype(code)
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


def _find_data(path: Path, label: str, header: Mapping[str, Any], end: int) -> tuple[Path, int, int]:
    """Return the file with the voxels, where they are stored, and how many of their bytes, once decompressed, to skip.

    A skip of -1 means that the voxels are the last bytes of the file.
    """
    if header.get("lineskip"):
        raise VolumeError(f"{label}: lines of text precede its voxels; save it as one .nrrd file")
    skip = int(header.get("byteskip", 0))
    if skip < 0 and str(header["encoding"]).lower() != "raw":
        raise VolumeError(f"{label}: its byte skip {skip} is valid for raw voxels only; the file is damaged")
    name = header.get("datafile")
    if name is None:
        return path, end, skip
    return data_file(path.parent, str(name), label), 0, skip
