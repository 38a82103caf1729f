"""A folder of images (TIFF, PNG or JPEG), one per slice, in the natural order of their names.

"slice2" comes before "slice10". Each file is opened once to check that all are alike, and again to be read.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.read.checks import reporting_read_errors, require_piece, require_signature
from evenslice.volumes.read.source import VoxelSource
from evenslice.volumes.read.tiff import TiffSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["KINDS", "SLICE_FOLDER", "SliceFolderSource", "missing_numbers", "natural_order", "slice_files"]

KINDS = {
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}
"""The formats of images by suffix."""

SLICE_FOLDER = "folder of "
"""How the names of the formats of such folders begin."""

_MODES = {
    "1": (np.bool_, 1),
    "L": (np.uint8, 1),
    "P": (np.uint8, 1),  # the index into the palette, which is the class in label images
    "I;16": (np.uint16, 1),
    "I;16B": (np.uint16, 1),
    "I": (np.int32, 1),
    "LA": (np.uint8, 2),
    "RGB": (np.uint8, 3),
    "RGBA": (np.uint8, 4),
    "CMYK": (np.uint8, 4),
}
"""Pillow's modes: data type and number of the samples of a pixel."""


class SliceFolderSource(VoxelSource):
    """The images of a folder as z, y, x, and an axis s for the samples of a pixel if there are several."""

    def __init__(self, files: list[Path], label: str) -> None:
        self.files = tuple(files)
        self._label = label
        kind = KINDS[files[0].suffix.lower()]
        self.format = f"{SLICE_FOLDER}{kind} slices"
        shape, self.dtype = _describe(files[0], label)
        for file in files[1:]:
            other = _describe(file, label)
            if other != (shape, self.dtype):
                raise VolumeError(
                    f"{label}: slices differ, {files[0].name} has {_words(shape, self.dtype)} and "
                    f"{file.name} {_words(*other)}; make them alike, or name another folder"
                )
        self.shape = (len(files), *shape)
        self.names, self.assumed = "zyxs"[: len(self.shape)], True
        self.chunks = (1, *shape)
        require_piece(label, "its slices", shape, self.dtype)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the slices under ``key``."""
        files = self.files or ()
        slices = [_read(file, self._label, self.shape[1:], key[1:]) for file in files[key[0]]]
        return np.stack(slices)


def slice_files(path: Path, label: str) -> list[Path]:
    """Return the images in a folder in natural order.

    Raises:
        VolumeError: the images have different formats.
    """
    files = [
        file for file in path.iterdir() if _kind(file) and not file.name.startswith(".") and file.is_file()
    ]
    kinds = sorted({_kind(file) for file in files})
    if len(kinds) > 1:
        raise VolumeError(
            f"{label}: is a folder of {' and '.join(kinds)} images; keep one format, or name another folder"
        )
    return natural_order(files)


def natural_order(files: Iterable[Path]) -> list[Path]:
    """Sort files by name, with the numbers in names by value.

    Example:
        >>> from pathlib import Path
        >>> [file.name for file in natural_order([Path("z10.png"), Path("z9.png"), Path("z9b.png")])]
        ['z9.png', 'z9b.png', 'z10.png']
    """
    return sorted(files, key=lambda file: (_natural_key(file.stem), file.name))


def missing_numbers(files: Sequence[Path]) -> list[int]:
    """Return the numbers that are missing among names that differ in one number alone.

    Numbers may have a constant distance. If more are missing than present, they number something else.

    Example:
        >>> from pathlib import Path
        >>> missing_numbers([Path(f"z{number:03}.png") for number in (0, 10, 20, 40)])
        [30]
    """
    keys = [_natural_key(file.stem) for file in natural_order(files)]
    if len({len(key) for key in keys}) != 1:
        return []
    varying = [set(parts) for parts in zip(*keys, strict=True)]
    counted = [place for place, parts in enumerate(varying) if len(parts) > 1]
    if len(counted) != 1 or counted[0] % 2 == 0:
        return []
    numbers = [key[counted[0]][0] for key in keys]
    step = gcd(*(after - before for before, after in pairwise(numbers)))
    if step == 0 or (numbers[-1] - numbers[0]) // step + 1 > 2 * len(numbers):
        return []
    return sorted({*range(numbers[0], numbers[-1], step)}.difference(numbers))


def _natural_key(name: str) -> list[tuple[int, str]]:
    # Text and numbers alternate, so that text is never compared with a number.
    return [
        (int(part), "") if number % 2 else (0, part.lower())
        for number, part in enumerate(re.split(r"([0-9]{1,18})", name))
    ]


def _kind(file: Path) -> str:
    return KINDS.get(file.suffix.lower(), "")


def _words(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{' x '.join(map(str, shape))} {dtype}"


def _describe(file: Path, label: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape (y, x) or (y, x, sample) and the data type of an image, from its header."""
    if _kind(file) == "TIFF":
        with reporting_read_errors(f"{label}: {file.name}", "TIFF"):
            return _tiff_plane(file, label)[:2]
    with _image(file, label) as image:
        dtype, samples = _MODES[image.mode]
        shape = (image.height, image.width, *((samples,) if samples > 1 else ()))
        return shape, np.dtype(dtype)


def _read(file: Path, label: str, shape: tuple[int, ...], key: tuple[slice, ...]) -> NDArray[Any]:
    """Decode the part of an image under ``key``."""
    with reporting_read_errors(f"{label}: {file.name}", _kind(file)):
        if _kind(file) == "TIFF":
            found, _, source, lead = _tiff_plane(file, label)
            _require_shape(found, shape, file, label)
            part = source.read((*lead, *key))
            return part.reshape(part.shape[len(lead) :])
        with _image(file, label) as image:
            pixels = np.asarray(image)
            _require_shape(pixels.shape, shape, file, label)
            return pixels[key].copy()  # and not all of the image


def _require_shape(found: tuple[int, ...], shape: tuple[int, ...], file: Path, label: str) -> None:
    if found != shape:
        raise VolumeError(f"{label}: {file.name} has changed since the folder was opened; open it again")


def _tiff_plane(
    file: Path, label: str
) -> tuple[tuple[int, ...], np.dtype[Any], TiffSource, tuple[slice, ...]]:
    """Open a TIFF file of one image; return its shape, data type, source, and the index before y and x.

    Raises:
        VolumeError: it has several pages, or stores its samples in separate planes.
    """
    source = TiffSource(file, f"{label}: {file.name}")
    planes = 3 if (source.names or "").endswith("s") else 2
    lead = source.shape[: len(source.shape) - planes]
    if len(source.shape) < planes or any(length > 1 for length in lead):
        raise VolumeError(
            f"{label}: {file.name} holds {' x '.join(map(str, source.shape))} voxels, not one slice; name "
            "that file, or keep only single slices"
        )
    return source.shape[len(lead) :], source.dtype.newbyteorder("="), source, (slice(0, 1),) * len(lead)


@contextmanager
def _image(file: Path, label: str) -> Iterator[Any]:
    """Open a PNG or JPEG image in a context; only its header is read.

    Pillow's limit on the number of pixels, which is set per process and below the size of electron microscopy slices,
    does not apply to the readers of single formats.
    """
    with needs_extra("volumes", "reading PNG and JPEG slices"):
        from PIL.JpegImagePlugin import JpegImageFile
        from PIL.PngImagePlugin import PngImageFile
    kind = _kind(file)
    where = f"{label}: {file.name}"
    require_signature(file, where, f"a {kind} image")
    with reporting_read_errors(where, kind), open_regular(file) as stream:
        image = PngImageFile(stream) if kind == "PNG" else JpegImageFile(stream)
        if image.mode not in _MODES:
            raise VolumeError(f"{where}: its pixels have the mode {image.mode}; save it as grayscale")
        dtype, samples = _MODES[image.mode]
        require_piece(where, "its pixels", (image.height, image.width, samples), np.dtype(dtype))
        if samples > 1 and any(
            ";16" in str(tile[3]) for tile in image.tile
        ):  # Pillow would read 8 bits of them
            raise VolumeError(f"{where}: is a 16-bit colour image; save it as grayscale, or as TIFF")
        yield image
