"""HDF5 files: one dataset (z, y, x) or (channel, z, y, x), chunked and gzip-compressed."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from evenslice._core import OutputError, needs_extra
from evenslice.volumes.write.image import chunk_shape, sizes_in

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import ReadableBuffer

    from evenslice.volumes.write.image import Image

__all__ = ["beside_volume", "write_hdf5"]

COMPRESSION = 4

_OF_VOXELS = {"element_size_um", "DIMENSION_LABELS", "axistags"}
"""Attributes of a dataset that say how its voxels lie."""


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


def beside_volume(path: Path, dataset: str | None) -> str | None:
    """Return what a file holds beside one dataset and how its voxels lie; None if that is nothing.

    Args:
        path: the file.
        dataset: the path of the dataset, with a slash at its start; None for the first one.

    Raises:
        OutputError: it is not an HDF5 file.
    """
    h5py = _h5py()
    held: dict[str, bool] = {}  # by path, whether it is a dataset
    noted: list[tuple[str, str]] = []  # paths with names of attributes

    def visit(name: str, link: Any) -> None:
        node = file[name] if isinstance(link, h5py.HardLink) else None
        held[f"/{name}"] = isinstance(node, h5py.Dataset)
        if node is not None:
            noted.extend((f"/{name}", attribute) for attribute in node.attrs)

    try:
        with h5py.File(path, "r") as file:
            noted.extend(("/", attribute) for attribute in file.attrs)
            file.visititems_links(visit)
            before = int(file.userblock_size)
    except Exception as error:  # of damaged files h5py raises RuntimeError and SystemError, too
        raise OutputError(f"{path}: is not an HDF5 file and is not replaced; choose another name") from error
    dataset = dataset or next((name for name, holds_voxels in held.items() if holds_voxels), "/")
    above = {str(group) for group in PurePosixPath(dataset).parents}
    others = [name for name, holds_voxels in held.items() if not (holds_voxels and name == dataset)]
    lost = [name for name in others if held[name] or name not in above]
    lost += [f"the attribute {name} of {at}" for at, name in noted if at != dataset or name not in _OF_VOXELS]
    lost += ["a user block"] if before else []
    return next(iter(lost), None)


def _h5py() -> Any:
    with needs_extra("volumes", "writing an HDF5 volume"):
        import h5py
    return h5py
