"""The store by which Zarr reads the files of a volume in the same way as the other formats in chunks are read."""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype

from evenslice.volumes.read.checks import LARGEST_PIECE
from evenslice.volumes.read.chunk_files import ChunkFiles, encoded_limit, require_whole_blosc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from evenslice.volumes.read.location import Place

__all__ = ["ChunkStore"]

_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}


class ChunkStore(Store):
    """The files below a folder or an address, to be read only.

    Args:
        place: the folder or address.
    """

    supports_writes = supports_deletes = False

    def __init__(self, place: Place) -> None:
        super().__init__(read_only=True)
        self._files = ChunkFiles(place)
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
        read = _in_thread if self._files.remote else asyncio.to_thread
        found = await read(self._read, key, byte_range)
        return None if found is None else (prototype or default_buffer_prototype()).buffer.from_bytes(found)

    def _read(self, key: str, byte_range: Any) -> bytes | None:
        if key.rpartition("/")[2] in _METADATA:
            return self._files.read_metadata(key)
        found = self._files.read(key, self._most, None if byte_range is None else _span(byte_range))
        if self._blosc and byte_range is None and found is not None:
            require_whole_blosc(found)
        return found

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        """Return parts of several files."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def exists(self, key: str) -> bool:
        """Return whether there is a file."""
        return await self.get(key) is not None

    @property
    def supports_listing(self) -> bool:
        """Folders at an address are not listed: web servers cannot, and buckets need not allow it."""
        return not self._files.remote

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names in a folder."""
        for path in sorted((self._files.place.path / prefix).iterdir()):
            yield path.name

    def list(self) -> AsyncIterator[str]:
        """Not needed to read."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Not needed to read."""
        raise NotImplementedError

    async def set(self, key: str, value: Any) -> None:
        """Never write."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Never remove."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChunkStore) and self._files.place == other._files.place

    __hash__ = Store.__hash__


async def _in_thread(function: Callable[..., bytes | None], *arguments: Any) -> bytes | None:
    """Call a function in a thread for which nothing waits when the process is interrupted; a server may be slow."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes | None] = loop.create_future()

    def tell(result: bytes | None, error: Exception | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except Exception as raised:  # noqa: BLE001  # raised where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, name="evenslice reading a chunk", daemon=True).start()
    return await done


def _span(request: Any) -> slice:
    """Return what one of Zarr's requests for a part of a file means."""
    if hasattr(request, "suffix"):
        return slice(-request.suffix, None)
    return slice(request.offset, None) if hasattr(request, "offset") else slice(request.start, request.end)
