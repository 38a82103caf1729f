"""HDF5 files: one dataset (z, y, x) or (channel, z, y, x), chunked and gzip-compressed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from evenslice._core import OutputError, needs_extra
from evenslice.volumes.write.image import chunk_shape, sizes_in

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import ReadableBuffer

    from evenslice.volumes.write.image import Image

__all__ = ["datasets_in", "write_hdf5"]

COMPRESSION = 4


def write_hdf5(path: Path, image: Image, dataset: str) -> None:
    """Write one dataset into a new file, with its voxel size as the attribute ``element_size_um``, as in ilastik and Fiji."""
    chunks = chunk_shape(image.zyx, image.dtype.itemsize)
    lead = (1,) if image.stacked else ()
    with _Sink(path, "w+") as sink:
        with _h5py().File(sink, "w") as file:
            array = file.create_dataset(
                dataset,
                shape=image.shape,
                dtype=image.dtype,
                chunks=(*lead, *chunks),
                compression="gzip",
                compression_opts=COMPRESSION,
                shuffle=True,
                track_times=False,  # so that the same voxels make the same file
            )
            for number, axis in enumerate("czyx" if image.stacked else "zyx"):
                array.dims[number].label = axis
            if image.spacing is not None and image.unit is not None:
                array.attrs["element_size_um"] = sizes_in(image.spacing, image.unit, "um")
            for channel, part, voxels in image.slabs(multiple=chunks[0]):
                array[(channel, part) if image.stacked else part] = voxels
                sink.check()
        sink.check()


class _Sink(io.FileIO):
    """A file that records write errors instead of raising them.

    The HDF5 library cannot release a file that it fails to write, and crashes later. So writes seem to succeed, and
    ``check`` raises the recorded error.
    """

    _failure: OSError | None = None

    def check(self) -> None:
        """Raise the recorded error, if any."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all bytes, or record why not."""
        rest = memoryview(data).cast("B")
        length = len(rest)
        try:
            while rest and self._failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._failure = error
        return length

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length of the file, or record why not."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return size or 0


def datasets_in(path: Path) -> list[str]:
    """Return the paths of all datasets and of soft and external links in a file.

    Raises:
        OutputError: it is not an HDF5 file.
    """
    h5py = _h5py()
    found: list[str] = []

    def visit(name: str, link: Any) -> None:
        if not isinstance(link, h5py.HardLink) or isinstance(file[name], h5py.Dataset):
            found.append(f"/{name}")

    try:
        with h5py.File(path, "r") as file:
            file.visititems_links(visit)
    except Exception as error:  # of damaged files h5py raises RuntimeError and SystemError, too
        raise OutputError(f"{path}: is not an HDF5 file and is not replaced; choose another name") from error
    return found


def _h5py() -> Any:
    with needs_extra("volumes", "writing an HDF5 volume"):
        import h5py
    return h5py
