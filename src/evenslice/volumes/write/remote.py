"""OME-Zarr in object storage, through fsspec. Nothing can be renamed there, so existing volumes are never replaced."""

from __future__ import annotations

import re
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from evenslice._core import EvensliceError, OutputError, needs_extra, option, reason
from evenslice.volumes.read.remote import s3_connection
from evenslice.volumes.write.zarr import write_zarr_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice.volumes.write.image import Image

__all__ = ["check_remote", "write_remote"]

WRITABLE = ("s3",)

_METADATA = ("zarr.json", ".zgroup", ".zarray")
_CHUNK = re.compile(r"[0-9]+/c(/[0-9]+)+")


def check_remote(url: str, label: str, *, force: bool) -> None:
    """Check that an address can be written and does not exist.

    Args:
        url: the address.
        label: the address, as the user wrote it.
        force: whether chunks that a killed process left there are to be removed.

    Raises:
        OutputError: its protocol is not supported, it exists, or it cannot be written.
        MissingExtraError: a required package is not installed.
    """
    protocol = url.partition("://")[0]
    if protocol not in WRITABLE:
        known = ", ".join(f"{name}://" for name in WRITABLE)
        raise OutputError(
            f"{label}: cannot write to {protocol}:// addresses; name a folder, or start it with {known}"
        )
    with _reaching(label):
        system, root = _file_system(url)
        system.invalidate_cache()
        there = system.exists(root)
        left = _leftovers(system, root) if there else []
        if not there:
            _try_writing(system, root)
    if left and not force:
        raise OutputError(
            f"{label}: holds chunks without metadata, left by an upload that was interrupted; make sure that nobody is writing "
            f"there, and remove them with {option('force')}, or choose another name"
        )
    if there and not left:
        raise OutputError(
            f"{label}: exists, and a remote volume cannot be replaced in one step; choose another name, or "
            "remove it first"
        )


def _try_writing(system: Any, root: str) -> None:
    """Write an empty object beside the output and remove it: neither buckets nor permissions can be asked about."""
    probe = f"{root}.{uuid.uuid4().hex}.writable"
    system.pipe_file(probe, b"")
    with suppress(Exception):  # what may be written, but not removed
        system.rm_file(probe)


def _leftovers(system: Any, root: str) -> list[str]:
    """Return the chunks that a killed process left at an address; none if anything else is there."""
    if any(system.exists(f"{root}/{name}") for name in _METADATA):  # which is written last
        return []
    found: list[str] = system.find(root)
    return found if all(_CHUNK.fullmatch(name.removeprefix(f"{root}/")) for name in found) else []


def write_remote(url: str, label: str, image: Image) -> None:
    """Write an image to an address that ``check_remote`` passed; after a failure, what it has written is removed.

    Raises:
        OutputError: it cannot be written.
    """
    from zarr.storage import FsspecStore

    from evenslice.volumes.write.metadata_last import RecordedStore

    with _reaching(label):
        system, root = _file_system(url)
        if left := _leftovers(system, root):
            system.rm(left)
        store = RecordedStore(FsspecStore.from_url(url, _options(url)))
        try:
            write_zarr_store(store, image, url.rpartition("/")[2])
        except BaseException:
            with suppress(Exception):  # most likely this fails for the same reason
                system.invalidate_cache()
                there = set(system.find(root))
                # Not the folder: others may have written to it since.
                system.rm([path for key in sorted(store.written) if (path := f"{root}/{key}") in there])
            raise


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    with needs_extra("remote", "writing to an address"):
        import fsspec

        if url.startswith("s3:"):
            import s3fs  # noqa: F401  # fsspec imports it by name
    system, root = fsspec.url_to_fs(url, **_options(url))
    return system, root


def _options(url: str) -> dict[str, Any]:
    # Credentials come from where the AWS tools look for them, as in `read.remote`.
    return s3_connection() if url.startswith("s3:") else {}


@contextmanager
def _reaching(label: str) -> Iterator[None]:
    """Turn any exception of the storage client into an OutputError."""
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        raise OutputError(
            f"{label}: cannot be written ({reason(error)}); check the address, the credentials and the network"
        ) from error
