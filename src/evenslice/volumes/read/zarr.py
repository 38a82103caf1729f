"""Zarr arrays (format 2 and 3) and OME-Zarr images (0.1 to 0.5), in a folder or at an address.

Zarr puts the chunks of N5 and precomputed volumes together, too: ``DecodedChunks`` shows them to it as its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from evenslice._core import VolumeError
from evenslice.volumes.read.chunk_files import ChunkFiles, encoded_limit, require_whole_blosc
from evenslice.volumes.read.source import (
    LARGEST_PIECE,
    Place,
    VoxelSource,
    in_voxels,
    letters,
    pick_level,
    require_inside,
    require_piece,
    scaled_spacing,
    without_warnings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

_PATIENCE = 3
"""Seconds that are waited for reads that nobody needs any more."""

_WAITING = "evenslice: waits for the others"
"""Name of tasks that wait for Zarr's tasks, which do not wait for each other."""

_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}


class ArrayInChunks(VoxelSource):
    """An array that Zarr puts together."""

    array: Any
    fresh = True

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the chunks under ``key``."""
        try:
            return np.asarray(self.array[key])
        except Exception:
            settle(_PATIENCE)  # what fails in other chunks later would be printed
            raise


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
                named: Any = getattr(node.metadata, "dimension_names", None) or node.attrs.get(
                    "_ARRAY_DIMENSIONS"
                )
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
        images = _images(group)
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
        scale, translation = _placement(len(names), [dataset, image])
        if scale is not None:
            self.voxel_size = scaled_spacing(scale, [axis.get("unit") for axis in axes], names)
        self.offset = in_voxels(translation, scale or [1] * len(names))
        return array


def _images(group: Any) -> Sequence[Mapping[str, Any]]:
    """Return the multiscales entries of a group: under "ome" since OME-Zarr 0.5, at the top before; none of another group."""
    ome = group.attrs.get("ome", dict(group.attrs))
    return (ome.get("multiscales") or ()) if isinstance(ome, dict) else ()


def _placement(
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
        self._header = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {"name": "default"},
            "fill_value": 0,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        }

    def array(self) -> Any:
        """Return the ``zarr.Array``."""
        return zarr.open_array(self, mode="r")

    def _read(self, key: str, byte_range: Any) -> bytes | None:  # noqa: ARG002  # Zarr asks for whole chunks
        if key == "zarr.json":
            return json.dumps(self._header).encode()
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


def settle(seconds: float | None = None) -> None:
    """Wait for whatever Zarr reads and writes, after a chunk has failed: its other tasks go on.

    Args:
        seconds: how long at most; by default until all is done.
    """
    sync(_all_others(seconds))


async def _all_others(seconds: float | None) -> None:
    own = asyncio.current_task()
    if own is not None:
        own.set_name(_WAITING)
    if others := {task for task in asyncio.all_tasks() if task.get_name() != _WAITING}:
        done, _ = await asyncio.wait(others, timeout=seconds)
        for task in done:
            if not task.cancelled():
                task.exception()  # else asyncio reports it, with its traceback
