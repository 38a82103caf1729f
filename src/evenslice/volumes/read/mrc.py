"""MRC and CCP4 maps; mrcfile parses the header."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.read.checks import describe_content, without_warnings
from evenslice.volumes.read.file_voxels import FileSource, FileVoxels

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["MrcSource"]

_HEADER_BYTES = 1024
_EXTENDED = 92  # where the size of the extended header is stated
IMOD = 1146047817
"""The stamp with which IMOD marks its files."""


class MrcSource(FileSource):
    """A volume, a stack of images, or a stack of volumes with an axis t before z."""

    def __init__(self, path: Path, label: str) -> None:
        header, head = _read_header(path, label)
        columns, rows, sections = (int(header[name]) for name in ("nx", "ny", "nz"))
        extended = int.from_bytes(head[_EXTENDED : _EXTENDED + 4], _order(header), signed=True)
        if min(columns, rows, sections, extended) < 0:
            raise VolumeError(
                f"{label}: its header claims the impossible shape {(sections, rows, columns)}; the file is damaged"
            )
        names = _names(header)
        shape: tuple[int, ...] = (sections, rows, columns)
        depth = int(header.mz)
        stacked = int(header.ispg) > 400  # MRC2014: a stack of volumes adds 400 to the space group
        if stacked:
            if depth < 1 or sections % depth:
                raise VolumeError(
                    f"{label}: its {sections} sections are not a multiple of the {depth} of a volume; the "
                    "file is damaged"
                )
            shape, names = (sections // depth, depth, rows, columns), f"t{names}"
        super().__init__(
            FileVoxels(path, label, _data_type(header, head, label), _HEADER_BYTES + extended, shape)
        )
        self.format = "MRC volume stack" if stacked else "MRC"
        self.names = names
        # In a stack of images there is one interval along the sections, and their distance is unknown.
        if stacked or int(header[f"m{names[0]}"]) == sections:
            sizes = {axis: float(header.cella[axis]) / max(int(header[f"m{axis}"]), 1) for axis in "xyz"}
            self.spacing = tuple(sizes.get(name, float("nan")) for name in names)
            self.unit = "angstrom"


def _read_header(path: Path, label: str) -> tuple[Any, bytes]:
    """Return the header as mrcfile parses it, and its bytes."""
    with needs_extra("volumes", "reading an MRC volume"):
        import mrcfile
    with open_regular(path) as file:
        head = file.read(_HEADER_BYTES)
    if head[208:212] not in (b"MAP ", b"MAP\0"):
        raise VolumeError(
            f"{label}: is not an MRC file, its content is {describe_content(head)}; name a file whose "
            "suffix matches its content"
        )
    # From the file itself, mrcfile would read the extended header too, and allocate whatever size the header claims for it.
    alone = io.BytesIO(head[:_EXTENDED] + bytes(4) + head[_EXTENDED + 4 :])
    with without_warnings():
        header = mrcfile.mrcinterpreter.MrcInterpreter(alone, header_only=True).header
    return header, head


def _data_type(header: Any, head: bytes, label: str) -> np.dtype[Any]:
    """Return the type of the voxels; bytes are signed, unless IMOD, or voxels above 127, say otherwise."""
    from mrcfile.utils import dtype_from_mode

    mode = int(header.mode)
    if mode in (3, 4, 101):  # complex numbers, and two voxels per byte
        raise VolumeError(
            f"{label}: its voxels have mode {mode}, which cannot be read; save it as integers or reals "
            "(mode 0, 1, 2, 6, 12)"
        )
    if mode == 0 and _unsigned(header, head):
        return np.dtype(np.uint8)
    kind: np.dtype[Any] = np.dtype(dtype_from_mode(header.mode))
    return kind.newbyteorder(header.mode.dtype.byteorder)


def _unsigned(header: Any, head: bytes) -> bool:
    """Return whether bytes are unsigned, as IMOD wrote them before 4.2.23, and marks them in its flags since.

    Source: https://bio3d.colorado.edu/imod/doc/mrc_format.txt, on mode 0, "imodStamp" and "imodFlags".
    """
    stamp, flags = (int.from_bytes(head[start : start + 4], _order(header)) for start in (152, 156))
    if stamp == IMOD:
        return not flags & 1
    return bool(header.dmin >= 0 and 127 < header.dmax <= 255)


def _order(header: Any) -> Literal["big", "little"]:
    """Return the order of the bytes in a header."""
    return "big" if header.mode.dtype.str[0] == ">" else "little"


def _names(header: Any) -> str:
    """Name sections, rows and columns by the axes in the header, by default z, y, x."""
    axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    return "".join(" xyz"[axis] for axis in axes) if sorted(axes) == [1, 2, 3] else "zyx"
