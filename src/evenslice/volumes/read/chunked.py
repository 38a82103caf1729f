"""Volumes that Zarr puts together from chunks, in a folder or at an address.

Zarr arrays (format 2 and 3) and OME-Zarr images (0.1 to 0.5); N5 and Neuroglancer's precomputed volumes, which
``DecodedChunks`` shows to Zarr as its own. The latter two count their axes x first; here, as everywhere, z comes first.

Source of N5: https://github.com/saalfeldlab/n5, and the attributes of n5-viewer, Neuroglancer and COSEM for voxel sizes.
Source of precomputed: volume.md and sharded.md in
https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed, and
src/sliceview/compressed_segmentation/README.md there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import os
import struct
import threading
from functools import lru_cache
from itertools import chain, islice, product
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from evenslice._core import ConfigError, VolumeError, option
from evenslice.volumes.read.arrays import ArrayInChunks
from evenslice.volumes.read.chunk_files import ChunkFiles, encoded_limit, require_whole_blosc
from evenslice.volumes.read.source import (
    LARGEST_OFFSET,
    LARGEST_PIECE,
    Place,
    in_voxels,
    letters,
    pick_level,
    require_inside,
    require_known,
    require_piece,
    scaled_spacing,
    without_warnings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.read.source import VoxelSize

_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}


class ChunkStore(WrapperStore[Any]):
    """The files below a folder or an address, as Zarr reads them; what is listed are those of a folder.

    Args:
        place: the folder or address.
    """

    def __init__(self, place: Place) -> None:
        self.files = ChunkFiles(place)
        super().__init__(
            MemoryStore(read_only=True) if self.files.remote else LocalStore(place.path, read_only=True)
        )
        self._most, self._blosc = LARGEST_PIECE, False

    def expect(self, array: Any) -> None:
        """From now on, expect the chunks of an array, a ``zarr.Array`` that was opened in this store."""
        voxels = math.prod(array.shards or array.chunks)
        # Filters may widen voxels to 64 bits; each chunk of a shard has an entry in its index.
        self._most = encoded_limit(8 * voxels + 128 * voxels // max(math.prod(array.chunks), 1))
        metadata = array.metadata
        last = metadata.compressor if metadata.zarr_format == 2 else metadata.codecs[-1]
        self._blosc = "blosc" in type(last).__name__.lower()

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Return the content of a file or a part of it, None if it is missing."""
        read = _in_thread if self.files.remote else asyncio.to_thread
        found = await read(self._read, key, byte_range)
        return None if found is None else (prototype or default_buffer_prototype()).buffer.from_bytes(found)

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        """Return parts of several files."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    def _read(self, key: str, byte_range: Any) -> bytes | None:
        if key.rpartition("/")[2] in _METADATA:
            return self.files.read_metadata(key)
        found = self.files.read(key, self._most, None if byte_range is None else _span(byte_range))
        if self._blosc and byte_range is None and found is not None:
            require_whole_blosc(found)
        return found


class DecodedChunks(ChunkStore):
    """A volume of another format, as Zarr reads it: an array of uncompressed chunks.

    Args:
        place: where it is.
        shape: its shape.
        chunks: that of a chunk, which the last ones along an axis need not have.
        dtype: data type of the voxels.
        decode: returns the chunk with an index in the grid; None for zeros.
    """

    def __init__(
        self,
        place: Place,
        shape: Sequence[int],
        chunks: Sequence[int],
        dtype: np.dtype[Any],
        decode: Callable[[tuple[int, ...]], NDArray[Any] | None],
    ) -> None:
        super().__init__(place)
        self._chunks, self._dtype, self._decode = tuple(chunks), dtype.newbyteorder("<"), decode
        layout: dict[str, Any] = {
            "shape": shape,
            "chunks": chunks,
            "dtype": self._dtype,
            "fill_value": 0,
            "compressors": None,
        }
        metadata = zarr.create_array(MemoryStore(), **layout).metadata
        self._header = metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes()

    def _read(self, key: str, byte_range: Any) -> bytes | None:  # noqa: ARG002  # Zarr asks for whole chunks
        if key == "zarr.json":
            return self._header
        if not key.startswith("c/"):
            return None
        chunk = self._decode(tuple(map(int, key.split("/")[1:])))
        if chunk is None:
            return None
        whole = np.zeros(self._chunks, self._dtype)
        whole[tuple(map(slice, chunk.shape))] = chunk
        return whole.tobytes()


async def _in_thread(function: Callable[..., bytes | None], *arguments: Any) -> bytes | None:
    """Call a function in a thread for which nothing waits when the process is interrupted; a server may be slow."""
    done: concurrent.futures.Future[bytes | None] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()

    def work() -> None:
        try:
            done.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001  # raised where it is awaited
            done.set_exception(error)

    threading.Thread(target=work, name="evenslice reading a chunk", daemon=True).start()
    return await asyncio.wrap_future(done)


def _span(request: Any) -> slice:
    """Return what one of Zarr's requests for a part of a file means."""
    if hasattr(request, "suffix"):
        return slice(-request.suffix, None)
    return slice(request.offset, None) if hasattr(request, "offset") else slice(request.start, request.end)


# Zarr


class ZarrSource(ArrayInChunks):
    """A Zarr array, or one resolution level of an OME-Zarr image."""

    def __init__(self, place: Place) -> None:
        level = place.level
        store = ChunkStore(place)
        with without_warnings():  # of codecs that other programs may not read
            node: Any = zarr.open(store, mode="r")
            if isinstance(node, zarr.Array):
                array = pick_level([node], level)
                # Of Zarr 3, or of xarray.
                named: Any = getattr(node.metadata, "dimension_names", None)
                named = named or node.attrs.get("_ARRAY_DIMENSIONS")
                self.names = letters(named) if named else None
            else:
                array = self._open_level(node, level)
        self.array, metadata = array, array.metadata
        self.format = f"{'Zarr' if array is node else 'OME-Zarr'} v{metadata.zarr_format}"
        self.shape, self.dtype, self.chunks = array.shape, np.dtype(array.dtype), array.chunks
        require_piece("its chunks", array.chunks, self.dtype)
        codecs = () if metadata.zarr_format == 3 else (metadata.compressor, *(metadata.filters or ()))
        if any(codec is not None and codec.codec_id == "pickle" for codec in codecs):
            raise VolumeError("its chunks are pickled Python objects, which are never loaded")
        store.expect(array)

    def _open_level(self, group: Any, level: int) -> Any:
        """Open the array of a level and set the names, spacing and unit of its axes."""
        ome = group.attrs.get("ome", dict(group.attrs))  # at the top before OME-Zarr 0.5
        images = ome.get("multiscales") if isinstance(ome, dict) else None
        if not images:
            # At an address, folders are not listed.
            inside = ["0"] * ("0" in group) + sorted({*group.array_keys(), *group.group_keys()} - {"0"})
            raise VolumeError(
                f"is a Zarr group without OME-Zarr metadata; name an array inside ({', '.join(inside[:6]) or 'none is found'})"
            )
        image = images[0]
        dataset = pick_level(image["datasets"], level)
        path = dataset["path"]
        path = require_inside(f"level {level}", path.strip("/") if isinstance(path, str) else path)
        array = group[path]
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes") or "tczyx"]
        if len(axes) != array.ndim:
            raise ValueError(f"its metadata names {len(axes)} axes, its array has {array.ndim}")
        names = [str(axis["name"]).lower() for axis in axes]
        self.names = letters(names)
        scale, translation = _ome_placement(len(names), [dataset, image])
        if scale is not None:
            self.voxel_size = scaled_spacing(scale, [axis.get("unit") for axis in axes], names)
        self.offset = in_voxels(translation, scale or [1] * len(names))
        return array


def _ome_placement(
    dimensions: int, transformed: Sequence[Mapping[str, Any]]
) -> tuple[list[float] | None, list[float]]:
    """Return the scale along each dimension, None if none is stated, and the translation after it.

    Source: OME-Zarr 0.4 and 0.5, section "multiscales" metadata: the transformations of a dataset are applied first,
    those of the image after them.
    """
    scale, translation = np.ones(dimensions), np.zeros(dimensions)
    stated = [item for entry in transformed for item in entry.get("coordinateTransformations") or ()]
    for transformation in stated:
        if transformation.get("type") == "scale":
            factors = np.asarray(transformation["scale"], float)
            scale, translation = scale * factors, translation * factors
        elif transformation.get("type") == "translation":
            translation = translation + np.asarray(transformation["translation"], float)
    found = any(item.get("type") == "scale" for item in stated)
    return scale.tolist() if found else None, translation.tolist()


# N5

ATTRIBUTES = "attributes.json"
CODECS = {
    "raw": None,
    "gzip": "gzip",
    "bzip2": "bz2",
    "xz": "lzma",
    "blosc": "blosc",
    "zstd": "zstd",
    "lz4": "lz4",
}
"""The compressions of N5, and what imagecodecs calls them."""

_LZ4 = struct.Struct("<8sBIII")
"""What precedes each piece of a stream of lz4-java: its mark, method, and sizes before and after, and a checksum."""


class N5Source(ArrayInChunks):
    """An N5 data set, or one level of several in a group, named s0, s1, ..."""

    format = "N5"
    chunks: tuple[int, ...]

    def __init__(self, place: Place) -> None:
        level = place.level
        self._files = files = ChunkFiles(place)
        group = files.read_json(ATTRIBUTES) or {}
        self._folder, found = "", group
        if "dimensions" not in group:
            self._folder = f"s{level}/"
            found = files.read_json(f"{self._folder}{ATTRIBUTES}") or {}
            if "dimensions" not in found:
                raise _no_dataset(files)
        else:
            pick_level([group], level)
        dimensions = len(found["dimensions"])
        stated = found.get("compression", found.get("compressionType"))
        codec = stated.get("type") if isinstance(stated, dict) else stated
        self._codec = CODECS[require_known("compression", codec, CODECS)]
        self.dtype = np.dtype(str(found["dataType"]))
        require_piece("its blocks", found["blockSize"], self.dtype)
        grid = found["dimensions"][::-1], found["blockSize"][::-1]
        self.array = zarr.open_array(DecodedChunks(place, *grid, self.dtype, self._block), mode="r")
        self.shape, self.chunks = self.array.shape, self.array.chunks
        named = found.get("axes", group.get("axes"))
        letter = letters(named[::-1]) if isinstance(named, list) and len(named) == dimensions else None
        # N5 has x, y, z if it does not say anything else.
        self.names = letter or ("zyx" if dimensions == 3 else None)
        self.voxel_size, self.offset = _n5_placement(found, group, level, dimensions, self.names)

    def _block(self, index: tuple[int, ...]) -> NDArray[Any] | None:
        name = self._folder + "/".join(map(str, index[::-1]))
        content = self._files.read(name, encoded_limit(math.prod(self.chunks) * self.dtype.itemsize))
        if content is None:
            return None
        mode, count = struct.unpack_from(">HH", content)
        if mode not in (0, 1) or count != len(index):
            raise ValueError(f"a block has mode {mode} and {count} dimensions, not 0 and {len(index)}")
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
        found.append(part if stored else imagecodecs.lz4_decode(part, out=length))
        place += size
    return b"".join(found)


def decompress(packed: bytes, codec: str) -> bytes:
    """Decompress a chunk.

    Args:
        packed: the chunk.
        codec: what imagecodecs calls the compression.

    Raises:
        ValueError: it ends early.

    Example:
        >>> import bz2
        >>> decompress(bz2.compress(b"aaa"), "bz2")
        b'aaa'
    """
    if codec == "blosc":
        require_whole_blosc(packed)
    return bytes(getattr(imagecodecs, f"{codec}_decode")(packed))


def _n5_placement(
    found: Mapping[str, Any], group: Mapping[str, Any], level: int, dimensions: int, names: str | None
) -> tuple[VoxelSize, tuple[float, ...] | None]:
    """Return voxel sizes and unit, and where the centre of the first voxel lies in voxels, z first; None if not stated."""
    factors = found.get("downsamplingFactors")  # voxels of the finest level that one of this level covers
    listed = group.get("downsamplingFactors", group.get("scales"))
    if found is not group and factors is None and isinstance(listed, list) and level < len(listed):
        factors = listed[level]
    factors = _numbers(factors, dimensions)
    # The first voxel of a coarser level is centred on the voxels of the finest one that it covers.
    offset = None if factors is None else in_voxels([(factor - 1) / 2 for factor in factors], factors)
    transform = found.get("transform")
    if isinstance(transform, dict) and names:  # of COSEM's data sets
        sizes, units, stated = (_by_name(transform, key, names) for key in ("scale", "units", "translate"))
        offset = in_voxels(stated, sizes) if sizes and stated else offset
        return scaled_spacing(sizes or (), units or (), names), offset
    keys = ("resolution", "pixelResolution")
    sizes = next((item[key] for item in (found, group) for key in keys if key in item), None)
    units = found.get("units", group.get("units"))
    if isinstance(sizes, dict):  # of n5-viewer
        units, sizes = sizes.get("unit", units), sizes.get("dimensions")
    sizes = _numbers(sizes, dimensions)
    if sizes and factors and "resolution" not in found:  # of the finest level
        sizes = [size * factor for size, factor in zip(sizes, factors, strict=True)]
    units = units[::-1] if isinstance(units, list) else [units] * dimensions
    return scaled_spacing(sizes or (), units, names), offset


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
    level, location = files.place.level, files.place.location
    if level and files.read_json(f"s0/{ATTRIBUTES}") is not None:
        return ConfigError(f"has no {option('level', level)}, no data set s{level}; 0 is the finest")
    inside: list[str] = []
    if not isinstance(location, str):
        found = chain.from_iterable(location.glob(f"{'*/' * depth}{ATTRIBUTES}") for depth in (1, 2, 3))
        inside = [path.parent.relative_to(location).as_posix() for path in islice(found, 6)]
    named = ", ".join(inside) or "none is found"
    return VolumeError(f"is not an N5 data set, or the server forbids reading it; name one inside ({named})")


# Precomputed

INFO = "info"
ENCODINGS = ("raw", "jpeg", "png", "compressed_segmentation")
"""The encodings that are read."""

LARGEST_INDEX = 2**26
"""Size limit in bytes of the index of chunks in a minishard."""

_SUFFIXES = {".gz": "gzip", ".zstd": "zstd", ".xz": "lzma", ".bz2": "bz2", ".br": "brotli"}
"""What cloud-volume appends to the names of compressed chunks in a folder, and the compression."""

_BITS = (0, 1, 2, 4, 8, 16, 32)
_ENTRY = 16  # bytes of an entry in the index of a shard
_MASK = 2**32 - 1


class PrecomputedSource(ArrayInChunks):
    """One resolution level (scale) of a precomputed volume, an image or a segmentation."""

    format = "Neuroglancer precomputed"
    chunks: tuple[int, ...]

    def __init__(self, place: Place) -> None:
        level = place.level
        self._files = files = ChunkFiles(place)
        info = files.read_json(INFO)
        if info is None:
            raise VolumeError(f"has no file {INFO!r}, or the server forbids reading it; check the address")
        scale = pick_level(info["scales"], level)
        self._encoding = require_known("encoding", str(scale["encoding"]).lower(), ENCODINGS)
        self.dtype, channels = np.dtype(str(info["data_type"]).lower()), int(info["num_channels"])
        if self._encoding == "compressed_segmentation" and self.dtype not in (np.uint32, np.uint64):
            raise ValueError(f"its encoding {self._encoding} cannot hold {self.dtype}")
        self._folder = require_inside("scale", scale["key"])
        self._start = _three(scale.get("voxel_offset", [0, 0, 0]), -LARGEST_OFFSET)
        self._block = _three(scale.get("compressed_segmentation_block_size", [8, 8, 8]))
        size, chunk = _three(scale["size"]), _three(scale["chunk_sizes"][0])
        channel = (channels,) if channels > 1 else ()
        self._channels = channels
        for what, shape in (("its chunks", (channels, *chunk)), ("the blocks in them", self._block)):
            require_piece(what, shape, self.dtype)
        grid = (*channel, *size[::-1]), (*channel, *chunk[::-1])
        self.array = zarr.open_array(DecodedChunks(place, *grid, self.dtype, self._chunk), mode="r")
        self.names = "czyx" if channel else "zyx"
        self.shape, self.chunks = self.array.shape, self.array.chunks
        # Counted from the corner of a voxel, where the offset of a volume is that of its centre.
        self.offset = (*(0.0 for _ in channel), *(start + 0.5 for start in self._start[::-1]))
        self._shards = None
        if scale.get("sharding") is not None:
            counts = [-(-length // part) for length, part in zip(size, chunk, strict=True)]
            self._shards = Shards(scale["sharding"], files, self._folder, counts)
        resolution = scale.get("resolution")
        if isinstance(resolution, list) and len(resolution) == 3:
            sizes = [*(math.nan for _ in channel), *resolution[::-1]]
            self.voxel_size = scaled_spacing(sizes, ["nm"] * len(sizes), self.names)

    def _chunk(self, index: tuple[int, ...]) -> NDArray[Any] | None:
        """Decode the chunk of a place in the grid; None if it is not stored."""
        along = zip(index[-3:], self.chunks[-3:], self.shape[-3:], strict=True)
        bounds = [(place * size, min((place + 1) * size, length)) for place, size, length in along]
        full = (self._channels, *(stop - start for start, stop in bounds))
        most = encoded_limit(math.prod(self.chunks) * self.dtype.itemsize)
        if self._shards is not None:
            content = self._shards.read(index[:-4:-1], most)
        else:
            spans = zip(bounds[::-1], self._start, strict=True)
            name = "_".join(f"{start + origin}-{stop + origin}" for (start, stop), origin in spans)
            content = self._stored(f"{self._folder}/{name}", most, math.prod(full) * self.dtype.itemsize)
        return None if content is None else self._decoded(content, full).reshape(*full[4 - len(index) :])

    def _stored(self, name: str, most: int, size: int) -> bytes | None:
        """Return the content of a chunk's file, which cloud-volume compresses, and in a folder names by how."""
        folder = self._files.place.location
        if isinstance(folder, str):
            content = self._files.read(name, most) or b""
            # A web server says so, or decompresses it; S3 sends it as it is. No chunk begins with these two bytes but raw
            # voxels, whose number is known.
            if content.startswith(b"\x1f\x8b") and not (self._encoding == "raw" and len(content) == size):
                return decompress(content, "gzip")
            return content or None
        for suffix, codec in _SUFFIXES.items():
            # A look costs little, and of most volumes many chunks are missing.
            if os.path.lexists(folder / f"{name}{suffix}"):
                packed = self._files.read(f"{name}{suffix}", most)
                return None if packed is None else decompress(packed, codec)
        return self._files.read(name, most)

    def _decoded(self, content: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
        """Decode a chunk of a shape (c, z, y, x).

        Raises:
            ValueError: it is damaged or does not have this shape.
        """
        if self._encoding == "raw":
            return np.frombuffer(content, self.dtype.newbyteorder("<")).reshape(shape)
        if self._encoding == "compressed_segmentation":
            return decode_segmentation(content, shape, self.dtype, self._block)
        # An image whose pixels, row by row, are the voxels, and its colours the channels.
        decode = imagecodecs.jpeg8_decode if self._encoding == "jpeg" else imagecodecs.png_decode
        pixels = decode(content)
        if pixels.dtype != self.dtype:
            raise ValueError(f"a chunk is an image of {pixels.dtype} in a volume of {self.dtype}")
        found: NDArray[Any] = np.moveaxis(pixels.reshape(*shape[1:], shape[0]), -1, 0)
        return found


def _three(value: Any, least: int = 1) -> tuple[int, ...]:
    """Return three whole numbers, along x, y, z."""
    if len(value) != 3 or any(type(size) is not int or not least <= size < LARGEST_OFFSET for size in value):
        raise ValueError(f"{str(value)[:60]} stands where three whole numbers from {least} on belong")
    return tuple(value)


# Compressed segmentations


def decode_segmentation(
    content: bytes, full: tuple[int, ...], dtype: np.dtype[Any], block: tuple[int, ...]
) -> NDArray[Any]:
    """Decode a compressed segmentation.

    Args:
        content: little-endian 32-bit words: the position of each channel, then the channels.
        full: (channels, z, y, x).
        dtype: uint32 or uint64.
        block: size along x, y, z of the blocks, each of which has a table of its labels and few bits for each voxel.

    Raises:
        IndexError, ValueError: it is truncated, or a position is outside of it, or the width of numbers is none that the
            format has.
    """
    words = np.frombuffer(content, "<u4")
    result = np.empty(full, dtype)
    depth, height, width = block[::-1]
    grid = [-(-length // size) for length, size in zip(full[1:], block[::-1], strict=True)]
    for channel, layer in product(range(full[0]), range(grid[0])):  # to hold less at once
        own = words[words[channel] :]
        # Blocks are counted, and filled, x first.
        headers = own[np.arange(2 * math.prod(grid))].reshape(grid[0], -1, 2)[layer]
        part = result[channel, layer * depth :][:depth]  # beyond a chunk, blocks are not decoded
        blocks = _decode_blocks(own, headers, len(part) * height * width, dtype)
        blocks = blocks.reshape(*grid[1:], len(part), height, width).transpose(2, 0, 3, 1, 4)
        whole = blocks.reshape(len(part), grid[1] * height, grid[2] * width)
        part[...] = whole[:, : full[2], : full[3]]
    return result


def _decode_blocks(
    words: NDArray[Any], headers: NDArray[Any], voxels: int, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Decode blocks of equal size: (blocks, 2) headers to (blocks, voxels)."""
    tables, widths, starts = headers[:, 0] & 0xFFFFFF, headers[:, 0] >> 24, headers[:, 1].astype(np.int64)
    each_word = dtype.itemsize // 4
    result = np.empty((len(headers), voxels), dtype)
    for width in np.unique(widths).tolist():
        if width not in _BITS:
            raise ValueError(f"a block of a compressed segmentation has numbers of {width} bits")
        chosen = widths == width
        entries = np.zeros((np.count_nonzero(chosen), voxels), np.int64)
        if width:
            each = 32 // width
            packed = words[starts[chosen, None] + np.arange(-(-voxels // each))]
            shifts = np.arange(each, dtype=np.uint32) * np.uint32(width)
            found = (packed[..., None] >> shifts) & np.uint32(2**width - 1)
            entries = found.reshape(len(found), -1)[:, :voxels].astype(np.int64)
        places = tables[chosen, None].astype(np.int64) + each_word * entries
        labels = words[places].astype(dtype)
        if each_word == 2:
            labels |= words[places + 1].astype(dtype) << np.uint64(32)
        result[chosen] = labels
    return result


# Shards


class Shards:
    """The chunks of a scale, stored in shards.

    A shard starts with an index of its minishards, each of which has an index of its chunks; of a shard only these and the
    chunk are read.

    Args:
        sharding: the metadata of the shards.
        files: the files of the volume.
        folder: that of the scale.
        grid: number of chunks along x, y, z.

    Raises:
        TypeError, KeyError, ValueError: the metadata cannot be right.
    """

    def __init__(self, sharding: Any, files: ChunkFiles, folder: str, grid: list[int]) -> None:
        # Bits of a chunk's number that are dropped before it is hashed; of the hash, those that choose the minishard, and
        # those above them that choose the shard.
        self._preshift, self._minishards, self._shards = (
            int(sharding[name]) for name in ("preshift_bits", "minishard_bits", "shard_bits")
        )
        if sharding["@type"] != "neuroglancer_uint64_sharded_v1" or not 0 <= self._minishards <= 32:
            raise ValueError("its shards are of another kind")
        self._hashed = ("identity", "murmurhash3_x86_128").index(sharding["hash"])
        self._packed_index, self._packed_data = (
            ("raw", "gzip").index(sharding.get(name, "raw"))
            for name in ("minishard_index_encoding", "data_encoding")
        )
        self._files, self._folder, self._grid = files, folder, grid
        self._index = lru_cache(256)(self._read_index)

    def read(self, cell: tuple[int, ...], most: int) -> bytes | None:
        """Return the encoded chunk at a place (x, y, z) in the grid; None if it is not stored.

        Args:
            cell: the place.
            most: the most bytes that the chunk can have.

        Raises:
            ValueError: an index is damaged.
            VolumeError: the shard cannot be read.
        """
        number = chunk_number(cell, self._grid)
        value = number >> self._preshift
        value = murmur_hash(value) if self._hashed else value
        minishard = value & (2**self._minishards - 1)
        shard = value >> self._minishards & (2**self._shards - 1)
        name = f"{self._folder}/{shard:0{max(1, -(-self._shards // 4))}x}.shard"
        numbers, starts, sizes = self._index(minishard, name)
        place = int(np.searchsorted(numbers, np.uint64(number)))
        if place == len(numbers) or int(numbers[place]) != number:
            return None
        content = self._part(name, most, int(starts[place]), int(sizes[place]))
        return decompress(content, "gzip") if content and self._packed_data else content

    def _read_index(self, minishard: int, name: str) -> NDArray[np.uint64]:
        """Return the numbers, starts and sizes of the chunks of a minishard, (3, chunks), in the order of numbers."""
        entry = self._files.read(name, _ENTRY, slice(_ENTRY * minishard, _ENTRY * (minishard + 1)))
        start, stop = struct.unpack("<QQ", entry) if entry else (0, 0)
        content = self._part(name, LARGEST_INDEX, start, stop - start) or b""
        if content and self._packed_index:
            content = decompress(content, "gzip")
        index = np.frombuffer(content, "<u8").reshape(3, -1).astype(np.uint64)
        index[0] = np.cumsum(index[0])  # stored as differences; a chunk starts where the one before it ends
        index[1] = np.cumsum(index[1]) + np.cumsum(index[2]) - index[2]
        return index[:, np.argsort(index[0], kind="stable")]

    def _part(self, name: str, most: int, start: int, size: int) -> bytes | None:
        """Return a part of a shard, whose positions count from the end of its own index."""
        if not 0 <= size <= most:
            raise ValueError(f"an index of a shard states {size:,} bytes, more than the {most:,} of a chunk")
        first = _ENTRY * 2**self._minishards + start
        return self._files.read(name, most, slice(first, first + size)) if size else b""


def chunk_number(cell: tuple[int, ...], grid: list[int]) -> int:
    """Return the compressed Morton code of a place in a grid: the bits of its indices in turn, those needed.

    Example:
        >>> chunk_number((1, 1, 0), [2, 4, 1]), chunk_number((0, 2, 0), [2, 4, 1])
        (3, 4)
    """
    bits = [(length - 1).bit_length() for length in grid]
    number = place = 0
    for bit in range(max(bits)):
        for index, length in zip(cell, bits, strict=True):
            if bit < length:
                number |= (index >> bit & 1) << place
                place += 1
    return number


def murmur_hash(value: int) -> int:
    """Return the lower 64 bits of MurmurHash3_x86_128 of a number as eight little-endian bytes, seed 0.

    Example:
        >>> murmur_hash(0)
        5148371408780832321
    """
    low, high = value & _MASK, value >> 32
    # Eight bytes are a tail of two words; the other two lanes start, and stay, at the seed.
    hashes = [_mix(low, 0x239B961B, 15, 0xAB0E9789), _mix(high, 0xAB0E9789, 16, 0x38B34AE5), 0, 0]
    hashes = [item ^ 8 for item in hashes]
    hashes = _spread([_final(item) for item in _spread(hashes)])
    return hashes[0] | hashes[1] << 32


def _mix(word: int, factor: int, turn: int, after: int) -> int:
    word = word * factor & _MASK
    return (word << turn | word >> 32 - turn) * after & _MASK


def _spread(hashes: list[int]) -> list[int]:
    first = sum(hashes) & _MASK
    return [first, *((item + first) & _MASK for item in hashes[1:])]


def _final(item: int) -> int:
    item = (item ^ item >> 16) * 0x85EBCA6B & _MASK
    item = (item ^ item >> 13) * 0xC2B2AE35 & _MASK
    return item ^ item >> 16
