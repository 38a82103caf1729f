"""HDF5 files: one dataset (z, y, x) or (channel, z, y, x), chunked and gzip-compressed."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from evenslice._core import OutputError, needs_extra
from evenslice.volumes.geometry import sizes_in
from evenslice.volumes.write.image import chunk_shape

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import ReadableBuffer

    from evenslice.volumes.write.image import Image

COMPRESSION = 4

_OF_VOXELS = {"element_size_um", "DIMENSION_LABELS", "axistags"}
"""Attributes of a dataset that say how its voxels lie."""


def write_hdf5(path: Path, image: Image) -> None:
    """Write one dataset into a new file, with its voxel size as the attribute ``element_size_um``, as in ilastik and Fiji."""
    chunks = chunk_shape(image.zyx, image.dtype.itemsize)
    lead = (1,) if image.stacked else ()
    with _Sink(path, "w+") as sink:
        with _h5py().File(sink, "w") as file:
            array = file.create_dataset(
                image.dataset,
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


def beside_dataset(path: Path, dataset: str | None) -> str | None:
    """Return what a file holds beside one dataset; None if that is nothing.

    Args:
        path: the file.
        dataset: the path of the dataset, with a slash at its start; None for the first one.

    Raises:
        OutputError: it is not an HDF5 file.
    """
    h5py = _h5py()
    held: dict[str, bool] = {}  # by path, whether it is a dataset
    noted: list[str] = []  # what has attributes that do not say how voxels lie

    def visit(name: str, link: Any) -> None:
        node = file[name] if isinstance(link, h5py.HardLink) else None
        held[f"/{name}"] = isinstance(node, h5py.Dataset)
        if node is not None and set(node.attrs) - _OF_VOXELS:
            noted.append(f"/{name}")

    try:
        with h5py.File(path, "r") as file:
            noted += ["/"] if file.attrs or file.userblock_size else []
            file.visititems_links(visit)
    except Exception as error:  # of damaged files h5py raises RuntimeError and SystemError, too
        raise OutputError(f"{path}: is not an HDF5 file and is not replaced; choose another name") from error
    dataset = dataset or next((name for name, holds_voxels in held.items() if holds_voxels), "/")
    above = {str(group) for group in PurePosixPath(dataset).parents}
    others = [name for name, is_dataset in held.items() if not (is_dataset and name == dataset)]
    lost = [name for name in others if held[name] or name not in above]
    return next(iter([*lost, *(f"attributes of {name}" for name in noted)]), None)


def _h5py() -> Any:
    with needs_extra("volumes", "writing an HDF5 volume"):
        import h5py
    return h5py
