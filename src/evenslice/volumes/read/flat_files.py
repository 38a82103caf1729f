"""Voxels that lie in a file one after the other, uncompressed; and the formats that are no more than that: NumPy and MRC.

A file is mapped anew for each read, so that it is not kept open, and one that has become shorter is an error.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.read.checks import (
    describe_content,
    require_bytes,
    require_signature,
    without_warnings,
)
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FlatArray", "FlatSource", "MrcSource", "NpySource"]

_NPY_HEADER_BYTES = 2**17
"""Bytes in which a header has to end; NumPy itself refuses one of more than 10,000."""

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

    def __init__(self, path: Path, label: str) -> None:
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


class MrcSource(FlatSource):
    """An MRC or CCP4 map: a volume, a stack of images, or a stack of volumes with an axis t before z."""

    def __init__(self, path: Path, label: str) -> None:
        header, head = _read_mrc_header(path, label)
        columns, rows, sections = (int(header[name]) for name in ("nx", "ny", "nz"))
        extended = int.from_bytes(head[_MRC_EXTENDED : _MRC_EXTENDED + 4], _order(header), signed=True)
        names = _mrc_names(header)
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
        start = _MRC_HEADER_BYTES + extended if extended >= 0 else -1
        super().__init__(FlatArray(path, label, _mrc_data_type(header, head, label), start, shape))
        self.format = "MRC volume stack" if stacked else "MRC"
        self.names = names
        # In a stack of images there is one interval along the sections, and their distance is unknown.
        if stacked or int(header[f"m{names[0]}"]) == sections:
            sizes = {axis: float(header.cella[axis]) / max(int(header[f"m{axis}"]), 1) for axis in "xyz"}
            self.spacing = tuple(sizes.get(name, float("nan")) for name in names)
            self.unit = "angstrom"


def _read_mrc_header(path: Path, label: str) -> tuple[Any, bytes]:
    """Return the header as mrcfile parses it, and its bytes."""
    with needs_extra("volumes", "reading an MRC volume"):
        import mrcfile
    with open_regular(path) as file:
        head = file.read(_MRC_HEADER_BYTES)
    if head[208:212] not in (b"MAP ", b"MAP\0"):
        raise VolumeError(
            f"{label}: is not an MRC file, its content is {describe_content(head)}; name a file whose "
            "suffix matches its content"
        )
    # From the file itself, mrcfile would read the extended header too, and allocate whatever size the header claims for it.
    alone = io.BytesIO(head[:_MRC_EXTENDED] + bytes(4) + head[_MRC_EXTENDED + 4 :])
    with without_warnings():
        header = mrcfile.mrcinterpreter.MrcInterpreter(alone, header_only=True).header
    return header, head


def _mrc_data_type(header: Any, head: bytes, label: str) -> np.dtype[Any]:
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


def _mrc_names(header: Any) -> str:
    """Name sections, rows and columns by the axes in the header, by default z, y, x."""
    axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    return "".join(" xyz"[axis] for axis in axes) if sorted(axes) == [1, 2, 3] else "zyx"
