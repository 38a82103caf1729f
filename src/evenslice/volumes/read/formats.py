"""The formats that can be read, and which a path has; and folders of images, one per slice.

A new format needs a module with a ``VoxelSource`` and a row here.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, did_you_mean, needs_extra, open_regular
from evenslice.volumes.read.chunk_files import ChunkFiles
from evenslice.volumes.read.source import Place, VoxelSource, pick_level, reporting_read_errors, require_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    # Shape (y, x) or (y, x, sample) and data type of an image, and what reads the part of it under a key.
    Slice = tuple[tuple[int, ...], np.dtype[Any], Callable[[tuple[slice, ...]], NDArray[Any]]]


@dataclass(frozen=True)
class ReadFormat:
    """A file format that can be read.

    Attributes:
        name: its name in messages.
        suffixes: suffixes of file names, in lower case.
        source: the ``VoxelSource`` that opens a place, as "module.Class"; imported, with its library, on first use.
        extra: the optional dependencies that this takes.
        levels: whether it stores several resolution levels to choose from.
    """

    name: str
    suffixes: tuple[str, ...]
    source: str
    extra: str = "volumes"
    levels: bool = False


# Any folder with Zarr metadata, whatever its suffix.
ZARR = ReadFormat("Zarr", (".zarr",), "chunked.ZarrSource", levels=True)
N5 = ReadFormat("N5", (".n5",), "chunked.N5Source", levels=True)
PRECOMPUTED = ReadFormat("Neuroglancer precomputed", (), "chunked.PrecomputedSource", levels=True)
IN_CHUNKS = {"zarr": ZARR, "n5": N5, "precomputed": PRECOMPUTED}
"""Formats that are read at addresses too, by the names that may stand before these."""

DICOM = ReadFormat("DICOM", (".dcm", ".dicom", ".ima"), "dicom.DicomSource", "medical")
SLICES = ReadFormat("folder of slices", (), "formats.SliceFolderSource")
READ_FORMATS = (
    ReadFormat("TIFF", (".tif", ".tiff", ".btf", ".tf8"), "tiff.TiffSource"),
    ReadFormat("NIfTI", (".nii", ".nii.gz"), "flat_files.NiftiSource"),
    DICOM,
    ReadFormat("MetaImage", (".mha", ".mhd"), "flat_files.MetaImageSource"),
    ReadFormat("NRRD", (".nrrd", ".nhdr"), "flat_files.NrrdSource", "medical"),
    ReadFormat("HDF5", (".h5", ".hdf5", ".hdf", ".he5", ".nxs", ".ims"), "hdf5.Hdf5Source"),
    ReadFormat("MRC", (".mrc", ".mrcs", ".map", ".rec"), "flat_files.MrcSource"),
    ReadFormat("NumPy array", (".npy",), "flat_files.NpySource"),
    ZARR,
    N5,
)

_NAMED = re.compile(r"\.(zarr|n5|precomputed)(?:/|$)", re.IGNORECASE)


def open_source(place: Place) -> VoxelSource:
    """Open the stored array at a place.

    Raises:
        VolumeError: it cannot be opened.
        ConfigError: it has no such level.
        MissingExtraError: a package that reads it is not installed.
    """
    with reporting_read_errors(place.label, "a volume"):
        found = find_read_format(place)
        if not found.levels:
            pick_level([place], place.level)
    with reporting_read_errors(place.label, found.name), needs_extra(found.extra, f"reading {found.name}"):
        module, _, name = found.source.partition(".")
        source: type[VoxelSource] = getattr(import_module(f"evenslice.volumes.read.{module}"), name)
        return source(place)  # type: ignore[call-arg]  # as its docstring says


def find_read_format(place: Place) -> ReadFormat:
    """Return the format of a place: by content for an address and a folder, by suffix for a file.

    Raises:
        VolumeError: nothing is there, or its format is unknown.
    """
    if isinstance(place.location, str):
        named = _NAMED.findall(place.location)
        kind = place.kind or (named[-1].lower() if named else None)
        return IN_CHUNKS[kind] if kind else _format_of_chunks(place) or ZARR
    path = place.path
    if path.is_dir():
        return _format_of_chunks(place) or _format_of_files(path)
    if not path.exists():
        raise VolumeError("no such file or folder; check the path")
    if not path.is_file() or not path.stat().st_size:
        raise VolumeError("is empty, or a pipe, a socket or a device; give a file with voxels")
    name = path.name.lower()
    for file_format in READ_FORMATS:
        if name.endswith(file_format.suffixes):
            return file_format
    if is_dicom(path):
        return DICOM  # which scanners and archives name in any way
    if kind := image_kind(path):
        raise VolumeError(f"is a single {kind} image; name the folder that holds all slices")
    suffix = path.suffix.lower()
    raise VolumeError(
        f"{f'cannot read {suffix!r} files' if suffix else 'has no suffix that names a format'}; "
        f"{did_you_mean(suffix, [file_format.suffixes[0] for file_format in READ_FORMATS])}"
    )


def _format_of_chunks(place: Place) -> ReadFormat | None:
    """Return the format whose metadata is in a folder or at an address; None if there is none.

    At an address, where each look takes time, that of Zarr is not looked for: it is what is left.
    """
    files = ChunkFiles(place)
    if not files.remote and any(
        (place.path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup")
    ):
        return ZARR
    for name, mark, found in (
        ("info", b'"scales"', PRECOMPUTED),
        ("attributes.json", b"{", N5),
        ("s0/attributes.json", b"{", N5),
    ):
        content = files.read_metadata(name)
        if content is not None and mark in content and content.lstrip().startswith(b"{"):
            return found
    return N5 if not files.remote and place.path.suffix.lower() == ".n5" else None


def _format_of_files(path: Path) -> ReadFormat:
    """Return the format of a folder with one slice per file."""
    if any(dicom_files(path)):
        return DICOM
    if slice_files(path):
        return SLICES
    folders = sorted(item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    inside = f"; it holds the folders {', '.join(folders[:6])}" if folders else ""
    raise VolumeError(f"is a folder without volume or slices; name a volume file or a folder of one{inside}")


# Folders of images (TIFF, PNG or JPEG), one per slice

KINDS = {".tif": "TIFF", ".tiff": "TIFF", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""The formats of images by suffix."""

SLICE_FOLDER = "folder of "
"""How the names of the formats of such folders begin."""


def is_dicom(path: Path) -> bool:
    """Return whether a file has the signature of DICOM."""
    with open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"


def dicom_files(path: Path) -> Iterator[Path]:
    """Yield the DICOM files directly in a folder, whatever their names, except hidden ones and those named as other images."""
    return (file for file in _visible_files(path) if not image_kind(file) and is_dicom(file))


def slice_files(path: Path) -> list[Path]:
    """Return the images in a folder in natural order.

    Raises:
        VolumeError: the images have different formats.
    """
    files = [file for file in _visible_files(path) if image_kind(file)]
    kinds = sorted({image_kind(file) for file in files})
    if len(kinds) > 1:
        raise VolumeError(f"is a folder of {' and '.join(kinds)} images; keep one format")
    return natural_order(files)


def _visible_files(path: Path) -> Iterator[Path]:
    return (file for file in path.iterdir() if not file.name.startswith(".") and file.is_file())


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


def image_kind(file: Path) -> str:
    """Return the format of an image by its suffix; "" for another file."""
    return KINDS.get(file.suffix.lower(), "")


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
