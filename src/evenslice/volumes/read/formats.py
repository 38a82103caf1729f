"""The formats that can be read, and which a path has. A new one needs a module with a ``VoxelSource`` and a row here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING

from evenslice._core import VolumeError, did_you_mean, needs_extra, open_regular
from evenslice.volumes.read.chunk_files import ChunkFiles
from evenslice.volumes.read.source import pick_level, reporting_read_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from evenslice.volumes.read.source import Place, VoxelSource


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

    def open(self, place: Place) -> VoxelSource:
        """Open the stored array at a place.

        Raises:
            VolumeError: it cannot be opened.
            ConfigError: it has no such level.
            MissingExtraError: a package that reads it is not installed.
        """
        if not self.levels:
            pick_level([place], place.level)
        module, _, name = self.source.partition(".")
        with needs_extra(self.extra, f"reading {self.name}"):
            source: type[VoxelSource] = getattr(import_module(f"evenslice.volumes.read.{module}"), name)
        with reporting_read_errors(place.label, self.name):
            return source(place)  # type: ignore[call-arg]  # as its docstring says


# Any folder with Zarr metadata, whatever its suffix.
ZARR = ReadFormat("Zarr", (".zarr",), "chunked.ZarrSource", levels=True)
N5 = ReadFormat("N5", (".n5",), "chunked.N5Source", levels=True)
PRECOMPUTED = ReadFormat("Neuroglancer precomputed", (), "chunked.PrecomputedSource", levels=True)
IN_CHUNKS = {"zarr": ZARR, "n5": N5, "precomputed": PRECOMPUTED}
"""Formats that are read at addresses too, by the names that may stand before these."""

DICOM = ReadFormat("DICOM", (".dcm", ".dicom", ".ima"), "dicom.DicomSource", "medical")
SLICES = ReadFormat("folder of slices", (), "slice_folder.SliceFolderSource")
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
        return find_read_format(place).open(place)


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
    if not path.is_file():
        raise VolumeError("is a pipe, a socket or a device; save its content as a file")
    name = path.name.lower()
    for file_format in READ_FORMATS:
        if name.endswith(file_format.suffixes):
            return file_format
    if is_dicom(path):
        return DICOM  # which scanners and archives name in any way
    if kind := image_kind(path):
        raise VolumeError(f"is a single {kind} image; name the folder that holds all slices")
    suffix = path.suffix.lower()
    known = [suffix for file_format in READ_FORMATS for suffix in file_format.suffixes]
    raise VolumeError(
        f"{f'cannot read {suffix!r} files' if suffix else 'has no suffix that names a format'}; "
        f"{did_you_mean(suffix, known)}"
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


# The slices of a folder

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
