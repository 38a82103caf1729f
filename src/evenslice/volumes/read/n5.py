"""N5 data sets, of one or several resolution levels, in a folder or at an address.

Source: https://github.com/saalfeldlab/n5 (the format), and the attributes of n5-viewer, Neuroglancer and COSEM for voxel
sizes. N5 counts its axes x first; here, as everywhere, z comes first.
"""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, did_you_mean, needs_extra, option
from evenslice.volumes.read.checks import require_piece
from evenslice.volumes.read.chunk_files import (
    ChunkFiles,
    assemble,
    decompress,
    encoded_limit,
    read_json_object,
)
from evenslice.volumes.read.metadata import LARGEST_OFFSET, is_sizes, letters, scaled_spacing
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit
    from evenslice.volumes.read.location import Place

__all__ = ["ATTRIBUTES", "N5Source", "group_above", "is_n5"]

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


def is_n5(path: Path) -> bool:
    """Return whether a folder is an N5 data set or group."""
    return any((path / name).is_file() for name in (ATTRIBUTES, f"s0/{ATTRIBUTES}"))


def group_above(path: Path) -> tuple[Path, int] | None:
    """Return the group that a data set is a level of, and which level; None if it is none."""
    name = path.name.removeprefix("s")
    if path.name == name or not (name.isascii() and name.isdecimal()):
        return None
    if not (path.parent / f"s0/{ATTRIBUTES}").is_file():  # a container of data sets that have such names
        return None
    return path.parent, int(name)


class N5Source(VoxelSource):
    """An N5 data set, or one level of several in a group, named s0, s1, ..."""

    format = "N5"
    fresh = True
    chunks: tuple[int, ...]

    def __init__(self, place: Place) -> None:
        label, level = place.label, place.level
        self._files = ChunkFiles(place)
        group = read_json_object(self._files, ATTRIBUTES) or {}
        self._folder = ""
        found = group
        if "dimensions" not in group:
            self._folder = f"s{level}/"
            inner = read_json_object(self._files, f"{self._folder}{ATTRIBUTES}")
            if inner is None or "dimensions" not in inner:
                raise _no_dataset(self._files)
            found = inner
        elif level:
            raise ConfigError(f"{label}: has only one resolution level; omit {option('level', level)}")
        dimensions, blocks = found["dimensions"], found.get("blockSize")
        if not is_sizes(dimensions) or not is_sizes(blocks, len(dimensions)):
            raise _damaged(
                label,
                f"dimensions {str(dimensions)[:60]} and blockSize {str(blocks)[:60]} do not belong together",
            )
        if found.get("dataType") not in TYPES:
            kind = str(found.get("dataType"))[:40]
            raise VolumeError(f"{label}: its data type {kind!r} cannot be read; {did_you_mean(kind, TYPES)}")
        self.shape = tuple(dimensions[::-1])
        self.chunks = tuple(blocks[::-1])
        self.dtype = np.dtype(found["dataType"])
        require_piece(label, "its blocks", self.chunks, self.dtype)
        self._codec = _codec(found, label)
        self.names = _names(found, group, len(dimensions))
        self.spacing, self.unit, self.offset = _placement(found, group, level, len(dimensions), self.names)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the blocks under ``key``."""
        return assemble(key, self.chunks, self.dtype, self._block, remote=self._files.remote)

    def _block(self, index: tuple[int, ...]) -> NDArray[Any] | None:
        name = self._folder + "/".join(map(str, index[::-1]))
        size = math.prod(self.chunks) * self.dtype.itemsize
        content = self._files.read(name, encoded_limit(size))
        if content is None:
            return None
        shape, start = _header(content, len(index))
        if any(length > most for length, most in zip(shape, self.chunks, strict=True)):
            raise ValueError(f"block {name} has the shape {shape}, more than {self.chunks}")
        least = tuple(
            min(length, size - i * length)
            for i, length, size in zip(index, self.chunks, self.shape, strict=True)
        )
        if any(length < needed for length, needed in zip(shape, least, strict=True)):
            raise ValueError(
                f"block {name} has the shape {shape}, less than {least}, which lie in the volume"
            )
        size = math.prod(shape) * self.dtype.itemsize
        packed = content[start:]
        data = _unpacked(packed, self._codec)
        if len(data) != size:
            raise ValueError(f"block {name} has {len(data):,} bytes where its shape {shape} needs {size:,}")
        return np.frombuffer(data, self.dtype.newbyteorder(">")).reshape(shape)


def _header(content: bytes, dimensions: int) -> tuple[tuple[int, ...], int]:
    """Return the shape of a block and where its data starts.

    Raises:
        ValueError: it is no block of numbers, or has another number of dimensions.
    """
    mode, count = struct.unpack_from(">HH", content)
    if mode not in (0, 1) or count != dimensions:
        raise ValueError(
            f"a block of mode {mode} with {count} dimensions where mode 0 with {dimensions} belongs"
        )
    shape = struct.unpack_from(f">{count}I", content, 4)
    return shape[::-1], 4 + 4 * count + (4 if mode else 0)


def _codec(attributes: Mapping[str, Any], label: str) -> str | None:
    """Return what numcodecs calls the compression of a data set; None for none."""
    stated = attributes.get("compression", attributes.get("compressionType"))
    name = stated.get("type") if isinstance(stated, dict) else stated
    if not isinstance(name, str) or name not in CODECS:
        raise VolumeError(
            f"{label}: its compression {str(name)[:40]!r} cannot be read; {did_you_mean(str(name)[:40], CODECS)}"
        )
    if CODECS[name] is not None:
        with needs_extra("volumes", f"reading N5 blocks compressed with {name}"):
            import numcodecs  # noqa: F401
    return CODECS[name]


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


def _names(found: Mapping[str, Any], group: Mapping[str, Any], dimensions: int) -> str | None:
    """Return a letter for each dimension, z first; N5 has x, y, z if it does not say anything else."""
    stated = found.get("axes", group.get("axes"))
    if isinstance(stated, list) and len(stated) == dimensions:
        named = letters([str(name).lower() for name in stated])
        if named:
            return named[::-1]
    return "zyx" if dimensions == 3 else None


def _placement(
    found: Mapping[str, Any], group: Mapping[str, Any], level: int, dimensions: int, names: str | None
) -> tuple[tuple[float, ...] | None, Unit | None, tuple[float, ...] | None]:
    """Return voxel sizes, their unit, and where the centre of the first voxel lies in voxels, z first; None if not stated."""
    factors = _factors(found, group, level, dimensions)
    transform = found.get("transform")
    if isinstance(transform, dict) and names:  # of COSEM's data sets
        sizes, units, place = (_by_name(transform, key, names) for key in ("scale", "units", "translate"))
        spacing = scaled_spacing(sizes, units or [], names) if sizes and units else (None, None)
        if sizes and place:
            return *spacing, _in_voxels(place, sizes)
    else:
        spacing = _resolution(found, group, dimensions, names, factors)
    # The first voxel of a coarser level is centred on the voxels of the finest one that it covers.
    centred = None if factors is None else _in_voxels([(factor - 1) / 2 for factor in factors], factors)
    return *spacing, centred


def _resolution(
    found: Mapping[str, Any],
    group: Mapping[str, Any],
    dimensions: int,
    names: str | None,
    factors: list[float] | None,
) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Return the voxel sizes that n5-viewer and Neuroglancer state, of a level that has none as multiples of the finest."""
    keys = ("resolution", "pixelResolution")
    sizes = next((item[key] for item in (found, group) for key in keys if key in item), None)
    units = found.get("units", group.get("units"))
    if isinstance(sizes, dict):  # of n5-viewer
        units = sizes.get("unit", units)
        sizes = sizes.get("dimensions")
    listed = _numbers(sizes, dimensions)
    if listed is None:
        return None, None
    if factors is not None and "resolution" not in found:
        listed = [size * factor for size, factor in zip(listed, factors, strict=True)]
    units = units[::-1] if isinstance(units, list) else [units] * dimensions
    return scaled_spacing(listed, units if len(units) == dimensions else [None] * dimensions, names)


def _factors(
    found: Mapping[str, Any], group: Mapping[str, Any], level: int, dimensions: int
) -> list[float] | None:
    """Return how many voxels of the finest level one of this level covers along each dimension, z first; None if unknown."""
    factors = found.get("downsamplingFactors")
    listed = group.get("downsamplingFactors", group.get("scales"))
    if found is not group and factors is None and isinstance(listed, list) and level < len(listed):
        factors = listed[level]
    return _numbers(factors, dimensions)


def _numbers(values: Any, count: int) -> list[float] | None:
    """Return a list of numbers, which N5 writes x first, z first; None for anything else."""
    if not isinstance(values, list) or len(values) != count:
        return None
    with suppress(TypeError, ValueError, OverflowError):
        return [float(value) for value in reversed(values)]
    return None


def _by_name(transform: Mapping[str, Any], key: str, names: str) -> list[Any] | None:
    """Return values of a transform for each dimension, which it lists in an order of its own; None if they are not stated."""
    axes, values = transform.get("axes"), transform.get(key)
    if not (isinstance(axes, list) and isinstance(values, list) and len(axes) == len(values) == len(names)):
        return None
    entries = {str(axis).lower(): value for axis, value in zip(axes, values, strict=True)}
    return [entries[name] for name in names] if set(names) <= set(entries) else None


def _in_voxels(place: Sequence[Any], sizes: Sequence[Any]) -> tuple[float, ...] | None:
    """Return a place in voxels; None if it is none that voxels can have."""
    with suppress(TypeError, ValueError, OverflowError, ZeroDivisionError):
        found = tuple(float(at) / float(size) for at, size in zip(place, sizes, strict=True))
        return found if all(abs(at) <= LARGEST_OFFSET for at in found) else None
    return None


def _no_dataset(files: ChunkFiles) -> ConfigError | VolumeError:
    """Return an error that says which data sets there are, if they can be listed."""
    place, label = files.place, files.place.label
    if place.level and read_json_object(files, f"s0/{ATTRIBUTES}") is not None:
        return ConfigError(
            f"{label}: has no level {place.level} (no data set s{place.level}); 0 is the finest"
        )
    listed: list[str] = []
    if not isinstance(place.location, str):
        found = chain.from_iterable(place.location.glob(f"{'*/' * depth}{ATTRIBUTES}") for depth in (1, 2, 3))
        listed = [path.parent.relative_to(place.location).as_posix() for path in islice(found, 6)]
    inside = f" (it holds {', '.join(listed)})" if listed else ""
    example = listed[0] if listed else "volumes/raw"
    if files.remote:
        return VolumeError(
            f"{label}: is not an N5 data set, or the server forbids reading it; name one inside, as "
            f"{label.rstrip('/')}/{example}, and check your credentials"
        )
    return VolumeError(
        f"{label}: is not an N5 data set; name one inside, as {label.rstrip('/')}/{example}{inside}"
    )


def _damaged(label: str, what: str) -> VolumeError:
    return VolumeError(f"{label}: its {what}; its {ATTRIBUTES} is damaged, copy it again")
