"""Bounds on the memory that an untrusted Zarr array can take.

Zarr decompresses a chunk to whatever size its bytes expand to, and ten of any size at once. Here, a chunk is never
decompressed to more than its shape allows, and only as many are at once as fit into the memory. (Codecs of Python objects,
one of which unpickles, belong to data types that Zarr itself no longer reads.)
"""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.volumes.read.pieces import IN_FLIGHT
from evenslice.volumes.read.unpacking import unpack
from evenslice.volumes.read.zarr_codecs import LARGEST_INDEX, bytes_of, encoded_limit, input_limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = ["chunks_at_once", "few_chunks", "guarded"]

_SLACK_BYTES = 2**16

_CONCURRENCY = "async.concurrency"
_MISSING = 2**64 - 1  # the place of a chunk that a shard lacks


class _Limits:
    """Zarr's limit on what it reads at once, which is one for the process: the lowest that any read in progress needs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: int | None = None
        self._needed: list[int] = []

    @contextmanager
    def at_most(self, number: int) -> Iterator[None]:
        """Let Zarr read no more than a number of chunks at once, for the length of a block."""
        import zarr

        with self._lock:
            if not self._needed:
                self._before = zarr.config.get(_CONCURRENCY)
            self._needed.append(number)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._needed.remove(number)
                self._set()

    def _set(self) -> None:
        import zarr

        own = [] if self._before is None else [self._before]
        limit = min(self._needed + own) if self._needed else self._before
        if limit != zarr.config.get(_CONCURRENCY):
            zarr.config.set({_CONCURRENCY: limit})


_limits = _Limits()


def chunks_at_once(array: Any) -> int:
    """Return how many chunks of an array Zarr may decode at once to stay within ``IN_FLIGHT`` bytes, at least one.

    Args:
        array: a ``zarr.Array`` as it was opened.
    """
    fitting = IN_FLIGHT // max(1, bytes_of(math.prod(array.chunks), array))
    if array.shards:
        fitting = math.isqrt(fitting)  # Zarr reads so many shards at once, and in each so many chunks
    return max(1, fitting)


def few_chunks(number: int) -> AbstractContextManager[None]:
    """Let Zarr read no more than a number of chunks at once, for the length of a block."""
    return _limits.at_most(number)


def guarded(array: Any, store: Any) -> Any:
    """Return a Zarr array with the same voxels that raises if a chunk decompresses to more than its shape allows.

    Args:
        array: an open ``zarr.Array``.
        store: the store to read its chunks from.
    """
    import zarr

    metadata = array.metadata
    width = bytes_of(1, array)
    changes = (
        _bounded_v2(metadata, math.prod(array.chunks), width)
        if metadata.zarr_format == 2
        else {"codecs": tuple(_bounded_v3(metadata.codecs, math.prod(array.shards or array.chunks), width))}
    )
    inner = array.async_array
    place = type(inner.store_path)(store, inner.store_path.path)
    return zarr.Array(type(inner)(replace(metadata, **changes), place))


def _bounded_v2(metadata: Any, voxels: int, width: int) -> Mapping[str, Any]:
    from numcodecs.abc import Codec

    class Bounded(Codec):  # type: ignore[misc]  # numcodecs has no types
        """A codec of format 2 that decompresses at most the bytes of a chunk."""

        codec_id = "bounded"  # required by Zarr; nothing is ever written with it

        def __init__(self, inner: Any, most: int) -> None:
            self.inner, self.most = inner, most

        def encode(self, buf: Any) -> Any:
            return self.inner.encode(buf)

        def decode(self, buf: Any, out: Any = None) -> Any:
            unpacked = unpack(self.inner.codec_id, buf, self.most)
            if unpacked is not None:
                return unpacked
            allowed = input_limit(self.inner, voxels, self.most)
            if (given := memoryview(buf).nbytes) > allowed + _SLACK_BYTES:
                raise ValueError(f"a chunk has {given:,} bytes where at most {allowed:,} can be right")
            return self.inner.decode(buf, out)

        def get_config(self) -> dict[str, Any]:
            return dict(self.inner.get_config())

    most = voxels * width + _SLACK_BYTES
    filters = None if metadata.filters is None else tuple(Bounded(item, most) for item in metadata.filters)
    return {
        "compressor": None if metadata.compressor is None else Bounded(metadata.compressor, most),
        "filters": filters,
    }


def _bounded_v3(codecs: tuple[Any, ...], voxels: int, width: int) -> list[Any]:
    from zarr.abc.codec import BytesBytesCodec
    from zarr.codecs import ShardingCodec

    class Bounded(BytesBytesCodec):
        """A codec of format 3 that decompresses at most the bytes of a chunk."""

        def __init__(self, inner: Any, most: int) -> None:
            self.inner, self.most = inner, most
            self.is_fixed_size = inner.is_fixed_size
            self.name = str(inner.to_dict()["name"]).removeprefix("numcodecs.")

        def evolve_from_array_spec(self, array_spec: Any) -> Any:
            return Bounded(self.inner.evolve_from_array_spec(array_spec), self.most)

        async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
            unpacked = unpack(self.name, chunk_data.as_numpy_array(), self.most)
            if unpacked is None:
                return await self.inner._decode_single(chunk_data, chunk_spec)  # noqa: SLF001
            return chunk_spec.prototype.buffer.from_bytes(unpacked)

        def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
            return int(self.inner.compute_encoded_size(input_byte_length, chunk_spec))

        def to_dict(self) -> Any:
            return self.inner.to_dict()

    result: list[Any] = []
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            result.append(_bounded_shards(codec, voxels, width))
        elif isinstance(codec, BytesBytesCodec):
            result.append(Bounded(codec, voxels * width + _SLACK_BYTES))
        else:
            result.append(codec)
    return result


def _bounded_shards(codec: Any, voxels: int, width: int) -> Any:
    """Return a codec of shards whose index may not list more bytes than a shard can hold."""
    from zarr.codecs import ShardingCodec

    inner = math.prod(codec.chunk_shape)
    each, together = encoded_limit(inner * width), encoded_limit(voxels * width, voxels // max(inner, 1))

    class Bounded(ShardingCodec):
        """Zarr reads all chunks that it needs of a shard before it decodes any, each from wherever the index says."""

        async def _decode_shard_index(self, index_bytes: Any, chunks_per_shard: tuple[int, ...]) -> Any:
            index = await super()._decode_shard_index(index_bytes, chunks_per_shard)
            offsets, lengths = np.moveaxis(index.offsets_and_lengths, -1, 0)
            listed = lengths[offsets != _MISSING].astype(np.float64)
            if listed.size and (listed.max() > each or listed.sum() > together):
                raise ValueError(
                    f"the index of a shard lists {listed.sum():,.0f} bytes, {listed.max():,.0f} in one chunk, where at most "
                    f"{together:,} and {each:,} can be right"
                )
            return index

    return Bounded(
        chunk_shape=codec.chunk_shape,
        codecs=_bounded_v3(codec.codecs, inner, width),
        index_codecs=_bounded_v3(codec.index_codecs, LARGEST_INDEX, 1),
        index_location=codec.index_location,
    )
