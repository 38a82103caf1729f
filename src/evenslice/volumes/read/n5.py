"""N5 data sets, of one or several resolution levels, in a folder or at an address.

Source: https://github.com/saalfeldlab/n5 (the format), and the attributes of n5-viewer, Neuroglancer and COSEM for voxel
sizes. N5 counts its axes x first; here, as everywhere, z comes first.
"""

from __future__ import annotations

import math
import struct
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, option
from evenslice.volumes.read.chunk_files import ChunkFiles, decompress, encoded_limit
from evenslice.volumes.read.source import (
    in_voxels,
    letters,
    pick_level,
    require_known,
    require_piece,
    scaled_spacing,
)
from evenslice.volumes.read.zarr import ArrayInChunks, DecodedChunks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.read.source import Place, VoxelSize

ATTRIBUTES = "attributes.json"
TYPES = (
    "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64",
)  # fmt: skip
CODECS = {
    "raw": None,
    "gzip": "gzip",
    "bzip2": "bz2",
    "xz": "lzma",
    "blosc": "blosc",
    "zstd": "zstd",
    "lz4": "lz4",
}
"""The compressions of N5, and what numcodecs calls them."""

_LZ4 = struct.Struct("<8sBIII")
"""What precedes each piece of a stream of lz4-java: its mark, method, and sizes before and after, and a checksum."""


class N5Source(ArrayInChunks):
    """An N5 data set, or one level of several in a group, named s0, s1, ..."""

    format = "N5"
    chunks: tuple[int, ...]

    def __init__(self, place: Place) -> None:
        label, level = place.label, place.level
        self._files = files = ChunkFiles(place)
        group = files.read_json(ATTRIBUTES) or {}
        self._folder, found = "", group
        if "dimensions" not in group:
            self._folder = f"s{level}/"
            found = files.read_json(f"{self._folder}{ATTRIBUTES}") or {}
            if "dimensions" not in found:
                raise _no_dataset(files)
        else:
            pick_level(label, [group], level)
        dimensions = len(found["dimensions"])
        stated = found.get("compression", found.get("compressionType"))
        codec = stated.get("type") if isinstance(stated, dict) else stated
        self._codec = CODECS[require_known(label, "compression", codec, CODECS)]
        self.dtype = np.dtype(require_known(label, "data type", found.get("dataType"), TYPES))
        require_piece(label, "its blocks", found["blockSize"], self.dtype)
        self.array = DecodedChunks(
            place, found["dimensions"][::-1], found["blockSize"][::-1], self.dtype, self._block
        ).array()
        self.shape, self.chunks = self.array.shape, self.array.chunks
        named = found.get("axes", group.get("axes"))
        letter = letters(named[::-1]) if isinstance(named, list) and len(named) == dimensions else None
        # N5 has x, y, z if it does not say anything else.
        self.names = letter or ("zyx" if dimensions == 3 else None)
        self.voxel_size, self.offset = _placement(found, group, level, dimensions, self.names)

    def _block(self, index: tuple[int, ...]) -> NDArray[Any] | None:
        name = self._folder + "/".join(map(str, index[::-1]))
        content = self._files.read(name, encoded_limit(math.prod(self.chunks) * self.dtype.itemsize))
        if content is None:
            return None
        mode, count = struct.unpack_from(">HH", content)
        if mode not in (0, 1) or count != len(index):
            raise ValueError(
                f"a block of mode {mode} with {count} dimensions where mode 0 with {len(index)} belongs"
            )
        shape = struct.unpack_from(f">{count}I", content, 4)[::-1]
        for length, place, most, size in zip(shape, index, self.chunks, self.shape, strict=True):
            if not min(most, size - place * most) <= length <= most:
                raise ValueError(f"block {name} has the shape {shape} in a grid of {self.chunks}")
        data = _unpacked(content[4 + 4 * count + 4 * mode :], self._codec)
        return np.frombuffer(data, self.dtype.newbyteorder(">")).reshape(shape)


def _unpacked(packed: bytes, codec: str | None) -> bytes:
    """Decompress a block. Source of the format of lz4: LZ4BlockOutputStream.java of lz4-java, which N5 writes it with."""
    if codec is None:
        return packed
    if codec != "lz4":
        return decompress(packed, codec)
    found, place = [], 0
    while place < len(packed):
        mark, method, size, length, _ = _LZ4.unpack_from(packed, place)
        place += _LZ4.size
        part = packed[place : place + size]
        if mark != b"LZ4Block" or len(part) != size:
            raise ValueError(f"a block of lz4 is damaged at byte {place:,}")
        stored = method & 0xF0 == 0x10
        found.append(part if stored else decompress(struct.pack("<I", length) + part, "lz4"))
        place += size
    return b"".join(found)


def _placement(
    found: Mapping[str, Any], group: Mapping[str, Any], level: int, dimensions: int, names: str | None
) -> tuple[VoxelSize, tuple[float, ...] | None]:
    """Return voxel sizes and unit, and where the centre of the first voxel lies in voxels, z first; None if not stated."""
    factors = found.get("downsamplingFactors")  # voxels of the finest level that one of this level covers
    listed = group.get("downsamplingFactors", group.get("scales"))
    if found is not group and factors is None and isinstance(listed, list) and level < len(listed):
        factors = listed[level]
    factors = _numbers(factors, dimensions)
    transform = found.get("transform")
    if isinstance(transform, dict) and names:  # of COSEM's data sets
        sizes, units, place = (_by_name(transform, key, names) for key in ("scale", "units", "translate"))
        voxel_size = scaled_spacing(sizes, units, names) if sizes and units else (None, None)
        if sizes and place:
            return voxel_size, in_voxels(place, sizes)
    else:
        voxel_size = _resolution(found, group, dimensions, names, factors)
    # The first voxel of a coarser level is centred on the voxels of the finest one that it covers.
    centred = None if factors is None else in_voxels([(factor - 1) / 2 for factor in factors], factors)
    return voxel_size, centred


def _resolution(
    found: Mapping[str, Any],
    group: Mapping[str, Any],
    dimensions: int,
    names: str | None,
    factors: list[float] | None,
) -> VoxelSize:
    """Return the voxel sizes that n5-viewer and Neuroglancer state, of a level that has none as multiples of the finest."""
    keys = ("resolution", "pixelResolution")
    sizes = next((item[key] for item in (found, group) for key in keys if key in item), None)
    units = found.get("units", group.get("units"))
    if isinstance(sizes, dict):  # of n5-viewer
        units, sizes = sizes.get("unit", units), sizes.get("dimensions")
    listed = _numbers(sizes, dimensions)
    if listed is None:
        return None, None
    if factors is not None and "resolution" not in found:
        listed = [size * factor for size, factor in zip(listed, factors, strict=True)]
    units = units[::-1] if isinstance(units, list) else [units] * dimensions
    return scaled_spacing(listed, units, names)


def _numbers(values: Any, count: int) -> list[float] | None:
    """Return a list of numbers, which N5 writes x first, z first; None for anything else."""
    try:
        found = [float(value) for value in reversed(values)]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if len(found) == count else None


def _by_name(transform: Mapping[str, Any], key: str, names: str) -> list[Any] | None:
    """Return values of a transform for each dimension, which it lists in an order of its own; None if they are not stated."""
    try:
        entries = dict(zip(transform["axes"], transform[key], strict=True))
        return [entries[name] for name in names]
    except (TypeError, ValueError, KeyError):
        return None


def _no_dataset(files: ChunkFiles) -> ConfigError | VolumeError:
    """Return an error that says which data sets there are, if they can be listed."""
    level, label, location = files.place.level, files.place.label, files.place.location
    if level and files.read_json(f"s0/{ATTRIBUTES}") is not None:
        return ConfigError(f"{label}: has no {option('level', level)}, no data set s{level}; 0 is the finest")
    inside: Sequence[str] = ["volumes/raw"]
    listing = ", or the server forbids reading it"
    if not isinstance(location, str):
        found = chain.from_iterable(location.glob(f"{'*/' * depth}{ATTRIBUTES}") for depth in (1, 2, 3))
        listed = [path.parent.relative_to(location).as_posix() for path in islice(found, 6)]
        inside, listing = listed or inside, f" (it holds {', '.join(listed) or 'none'})"
    return VolumeError(
        f"{label}: is not an N5 data set{listing}; name one inside, as {label.rstrip('/')}/{inside[0]}"
    )
