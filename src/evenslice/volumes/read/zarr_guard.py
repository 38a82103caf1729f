"""Bounds on the memory that an untrusted Zarr array can take.

Zarr decompresses a chunk to whatever size its bytes expand to, and ten of any size at once. Here, a chunk is never
decompressed to more than its shape allows, and only as many are at once as fit into the memory. (Codecs of Python objects,
one of which unpickles, belong to data types that Zarr itself no longer reads.)
"""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evenslice.volumes.read.pieces import IN_FLIGHT
from evenslice.volumes.read.unpacking import unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = ["LARGEST_INDEX", "few_chunks_at_once", "guarded"]

_SLACK_BYTES = 2**16
_WIDEST = 8
"""Factor by which filters may widen numbers: from one byte to eight."""

LARGEST_INDEX = 2**26
"""Size limit in bytes of the index of chunks in a shard."""

_CONCURRENCY = "async.concurrency"


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
            zarr.config.set({_CONCURRENCY: min(self._needed)})
        try:
            yield
        finally:
            with self._lock:
                self._needed.remove(number)
                zarr.config.set({_CONCURRENCY: min(self._needed, default=self._before)})


_limits = _Limits()


def few_chunks_at_once(array: Any) -> AbstractContextManager[None]:
    """Let Zarr decode only as many chunks of an array at once as fit into ``IN_FLIGHT`` bytes, for the length of a block.

    Args:
        array: a ``zarr.Array``.
    """
    import zarr

    fitting = IN_FLIGHT // max(1, math.prod(array.chunks) * array.dtype.itemsize)
    if array.shards:
        fitting = math.isqrt(fitting)  # Zarr reads so many shards at once, and in each so many chunks
    usual = zarr.config.get(_CONCURRENCY)
    return nullcontext() if usual is not None and usual <= fitting else _limits.at_most(max(1, fitting))


def guarded(array: Any, store: Any) -> Any:
    """Return a Zarr array with the same voxels that raises if a chunk decompresses to more than its shape allows.

    Args:
        array: an open ``zarr.Array``.
        store: the store to read its chunks from.
    """
    import zarr

    metadata = array.metadata
    size = math.prod(array.chunks) * array.dtype.itemsize
    changes = (
        _bounded_v2(metadata, size)
        if metadata.zarr_format == 2
        else {"codecs": tuple(_bounded_v3(metadata.codecs, size))}
    )
    inner = array.async_array
    place = type(inner.store_path)(store, inner.store_path.path)
    return zarr.Array(type(inner)(replace(metadata, **changes), place))


def _bounded_v2(metadata: Any, size: int) -> Mapping[str, Any]:
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
            return self.inner.decode(buf, out) if unpacked is None else unpacked

        def get_config(self) -> dict[str, Any]:
            return dict(self.inner.get_config())

    most = size * (_WIDEST if metadata.filters else 1) + _SLACK_BYTES
    filters = None if metadata.filters is None else tuple(Bounded(item, most) for item in metadata.filters)
    return {
        "compressor": None if metadata.compressor is None else Bounded(metadata.compressor, most),
        "filters": filters,
    }


def _bounded_v3(codecs: tuple[Any, ...], size: int) -> list[Any]:
    from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec
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

    widened = any(isinstance(codec, ArrayArrayCodec) for codec in codecs)
    most = size * (_WIDEST if widened else 1) + _SLACK_BYTES
    result: list[Any] = []
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            inner = _bounded_v3(codec.codecs, size)
            index = _bounded_v3(codec.index_codecs, LARGEST_INDEX)
            result.append(replace(codec, codecs=tuple(inner), index_codecs=tuple(index)))
        elif isinstance(codec, BytesBytesCodec):
            result.append(Bounded(codec, most))
        else:
            result.append(codec)
    return result
