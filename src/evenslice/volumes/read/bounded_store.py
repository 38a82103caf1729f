"""Zarr stores at an address, of which no more of a file is read than was agreed."""

from __future__ import annotations

from typing import Any

from zarr.abc.store import RangeByteRequest
from zarr.storage import FsspecStore

from evenslice.volumes.read.zarr_store import require_size

__all__ = ["BoundedStore"]


class BoundedStore(FsspecStore):
    """Asks for no more bytes than agreed, and refuses files that have more.

    Args:
        label: the address, as the user wrote it.
        most: largest number of bytes that are read of a file at once; None if the file system sees to it.
        options: those of ``FsspecStore``.
    """

    def __init__(self, *, label: str, most: int | None, **options: Any) -> None:
        super().__init__(**options)
        self._label, self._most = label, most

    def with_read_only(self, read_only: bool = False) -> BoundedStore:
        """Return the same store, read-only or not."""
        return BoundedStore(
            label=self._label,
            most=self._most,
            fs=self.fs,
            path=self.path,
            allowed_exceptions=self.allowed_exceptions,
            read_only=read_only,
        )

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Return the content of a file or a part of it, None if it is missing."""
        if self._most is None:
            return await super().get(key, prototype, byte_range)
        if hasattr(byte_range, "end"):
            require_size(key, byte_range.end - byte_range.start, self._label, self._most)
        elif hasattr(byte_range, "suffix"):
            require_size(key, byte_range.suffix, self._label, self._most)
        found = await super().get(key, prototype, byte_range or RangeByteRequest(0, self._most + 1))
        if found is not None:
            require_size(key, len(found), self._label, self._most)
        return found
