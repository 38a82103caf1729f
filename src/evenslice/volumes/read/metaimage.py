"""MetaImage, the format of ITK: a text header, then the voxels (``.mha``) or the name of their file (``.mhd``).

Source: the documentation of MetaIO, https://itk.org/Wiki/ITK/MetaIO/Documentation, and for what it omits the reader of
ITK (lengths in mm, positions as in DICOM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError
from evenslice.volumes.geometry import affine_from_lps, millimetres, normal_unit
from evenslice.volumes.read.checks import describe_content
from evenslice.volumes.read.places import data_file
from evenslice.volumes.read.raw import Encoding, RawSource, head_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["MetaImageSource"]

_TYPES = {
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


class MetaImageSource(RawSource):
    """The voxels of a MetaImage in stored order: channel (if there are several), x, y, z, t, and up to three more."""

    format = "MetaImage"

    def __init__(self, path: Path, label: str) -> None:
        head = head_of(path)
        header, end = _parse(head, label)
        sizes = [int(size) for size in header["DimSize"].split()]
        if len(sizes) != int(header["NDims"]) or not 1 <= len(sizes) <= 7:
            raise VolumeError(
                f"{label}: its header claims {header['NDims']} axes of sizes {sizes}; the file is damaged"
            )
        channels = int(header.get("ElementNumberOfChannels", 1))
        lead = (channels,) if channels > 1 else ()
        shape, dtype = (*lead, *sizes), _data_type(header, label)
        self.names = ("c" if lead else "") + "xyztuvw"[: len(sizes)]
        self._place(header, len(lead), len(sizes))
        data, offset = _find_data(path, label, header, end)
        if data != path:
            self.files = (path, data)
        compressed = _true(header.get("CompressedData"))
        skipped = int(header.get("HeaderSize", 0))  # in place of the header itself, wherever the voxels are
        if skipped > 0:
            offset = skipped
        elif skipped < 0 and not compressed:  # the voxels are the last bytes of the file
            offset = data.stat().st_size - int(np.prod(shape, dtype=object)) * dtype.itemsize
        encoding: Encoding = "deflate" if compressed else "raw"
        super().__init__(data, label, dtype, shape, offset, encoding)

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


def _parse(head: bytes, label: str) -> tuple[dict[str, str], int]:
    """Read the lines ``key = value`` up to ``ElementDataFile``.

    Returns:
        The header and its length in bytes.
    """
    header: dict[str, str] = {}
    end = 0
    for line in head.splitlines(keepends=True):
        end += len(line)
        key, equals, value = (part.strip() for part in _text(line).partition("="))
        # ITK also writes what it knows from DICOM and NRRD: "0008|0060 = CT", "NRRD_kinds[0] = domain".
        if not equals or not key or not key.isprintable() or len(key) > 80:
            break
        header[key] = value
        if key == "ElementDataFile":
            missing = [name for name in ("NDims", "DimSize", "ElementType") if name not in header]
            if missing:
                raise VolumeError(f"{label}: its header lacks {', '.join(missing)}; the file is damaged")
            return header, end
    if "NDims" in header:
        raise VolumeError(f"{label}: its header lacks ElementDataFile; the file is damaged")
    raise VolumeError(
        f"{label}: is not a MetaImage, its content is {describe_content(head)}; name a file whose suffix "
        "matches its content"
    )


def _text(line: bytes) -> str:
    """Decode a line, which may name a file: in UTF-8, as ITK writes it, or as older programs do."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _data_type(header: Mapping[str, str], label: str) -> np.dtype[Any]:
    kind = header["ElementType"].removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise VolumeError(
            f"{label}: its voxels are {kind[:40]}, which cannot be read; save it as one of {', '.join(_TYPES)}"
        )
    if header.get("BinaryData") is not None and not _true(header["BinaryData"]):
        raise VolumeError(f"{label}: its voxels are stored as text; save it as binary data")
    msb = header.get("ElementByteOrderMSB", header.get("BinaryDataByteOrderMSB"))
    return np.dtype(_TYPES[kind]).newbyteorder(">" if _true(msb) else "<")


def _find_data(path: Path, label: str, header: Mapping[str, str], end: int) -> tuple[Path, int]:
    """Return the file with the voxels, and where they begin unless the header says so."""
    name = header["ElementDataFile"]
    if name.upper() == "LOCAL":
        return path, end
    return data_file(path.parent, name, label), 0


def _numbers(text: str, count: int) -> list[float]:
    numbers = [float(part) for part in text.split()]
    if len(numbers) < count:
        raise ValueError(f"{count} numbers expected in {text[:60]!r}")
    return numbers[:count]


def _true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("true", "1", "t", "yes")
