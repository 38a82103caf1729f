"""A Zarr store that holds back metadata until all chunks are written, and remembers what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.core.sync import sync
from zarr.storage import WrapperStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype


class MetadataLast(WrapperStore["Store"]):
    """Passes chunks on and holds metadata in memory until ``release`` writes them, the root last.

    Attributes:
        written: the keys that were written, whether in full or not.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written: set[str] = set()
        self._held: dict[str, Buffer] = {}

    def release(self) -> None:
        """Write the metadata, from the innermost to the root."""
        for key in sorted(self._held, key=lambda key: (-key.count("/"), key)):
            self.written.add(key)
            sync(self._store.set(key, self._held[key]))

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a held or stored value."""
        if key in self._held:
            return prototype.buffer.from_bytes(self._held[key].to_bytes())
        return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Hold metadata; store anything else."""
        if key.rpartition("/")[2] == "zarr.json":
            self._held[key] = value
        else:
            self.written.add(key)
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Set a key that is neither held nor stored."""
        if key not in self._held and not await self._store.exists(key):
            await self.set(key, value)

    async def exists(self, key: str) -> bool:
        """Return whether a key is held or stored."""
        return key in self._held or await super().exists(key)
