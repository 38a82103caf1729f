"""A folder of images (TIFF, PNG or JPEG), one per slice.

Each file is opened once to check that all are alike, and again to be read.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.read.formats import SLICE_FOLDER, image_kind, slice_files
from evenslice.volumes.read.source import Place, VoxelSource, reporting_read_errors, require_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    # Shape (y, x) or (y, x, sample) and data type of an image, and what reads the part of it under a key.
    Slice = tuple[tuple[int, ...], np.dtype[Any], Callable[[tuple[slice, ...]], NDArray[Any]]]


class SliceFolderSource(VoxelSource):
    """The images of a folder as z, y, x, and an axis s for the samples of a pixel if there are several."""

    assumed = True

    def __init__(self, place: Place) -> None:
        self.files = files = tuple(slice_files(place.path))
        self.format = f"{SLICE_FOLDER}{image_kind(files[0])} slices"
        found = []
        for file in files:
            with _opened(file) as (shape, dtype, _):
                found.append((shape, dtype))
            if found[-1] != found[0]:
                raise VolumeError(
                    f"slices differ, {files[0].name} has {_described(*found[0])} and {file.name} {_described(*found[-1])}"
                )
        shape, self.dtype = found[0]
        self.shape, self.chunks = (len(files), *shape), (1, *shape)
        self.names = "zyxs"[: len(self.shape)]

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the slices under ``key``."""
        return np.stack([self._read(file, key[1:]) for file in (self.files or ())[key[0]]])

    def _read(self, file: Path, key: tuple[slice, ...]) -> NDArray[Any]:
        with _opened(file) as (shape, _, read):
            if shape != self.shape[1:]:
                raise VolumeError("has changed since the folder was opened; open it again")
            return read(key)


def _described(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{' x '.join(map(str, shape))} {dtype}"


@contextmanager
def _opened(file: Path) -> Iterator[Slice]:
    """Open an image in a context; only its header is read."""
    kind = image_kind(file)
    with reporting_read_errors(file.name, kind):
        if kind == "TIFF":
            yield _tiff(file)
            return
        with open_regular(file) as stream:
            yield _png_or_jpeg(kind, stream)


def _tiff(file: Path) -> Slice:
    """Open a TIFF file of one image.

    Raises:
        VolumeError: it has several pages, or stores its samples in separate planes.
    """
    with needs_extra("volumes", "reading a TIFF slice"):
        from evenslice.volumes.read.tiff import TiffSource
    source = TiffSource(Place(file.name, file))
    lead = len(source.shape) - (3 if (source.names or "").endswith("s") else 2)
    shape = source.shape[max(lead, 0) :]
    if lead < 0 or source.shape[:lead] != (1,) * lead:
        raise VolumeError(f"holds {' x '.join(map(str, source.shape))} voxels, not one slice; name that file")

    def read(key: tuple[slice, ...]) -> NDArray[Any]:
        part = source.read((*[slice(0, 1)] * lead, *key))
        return part.reshape(part.shape[lead:])

    return shape, source.dtype.newbyteorder("="), read


def _png_or_jpeg(kind: str, stream: Any) -> Slice:
    """Open a PNG or JPEG image.

    Pillow's limit on the number of pixels, which is set per process and below the size of electron microscopy slices,
    does not apply to the readers of single formats. A palette is not applied: in label images its index is the class.
    """
    with needs_extra("volumes", "reading PNG and JPEG slices"):
        from PIL.ImageMode import getmode
        from PIL.JpegImagePlugin import JpegImageFile
        from PIL.PngImagePlugin import PngImageFile
    image = PngImageFile(stream) if kind == "PNG" else JpegImageFile(stream)
    mode = getmode(image.mode)
    samples = (len(mode.bands),) if len(mode.bands) > 1 else ()
    if samples and any(";16" in str(tile[3]) for tile in image.tile):  # Pillow would read 8 bits of them
        raise VolumeError("is a 16-bit colour image; save it as grayscale, or as TIFF")
    shape, dtype = (image.height, image.width, *samples), np.dtype(mode.typestr).newbyteorder("=")
    require_piece("its pixels", shape, dtype)
    return shape, dtype, lambda key: np.asarray(image)[key].copy()  # and not all of the image
