"""Which files of a folder are its slices: DICOM, or images in the natural order of their names, and which are missing.

"slice2" comes before "slice10".
"""

from __future__ import annotations

import re
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING

from evenslice._core import VolumeError, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

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


def slice_files(path: Path, label: str) -> list[Path]:
    """Return the images in a folder in natural order.

    Raises:
        VolumeError: the images have different formats.
    """
    files = [file for file in _visible_files(path) if image_kind(file)]
    kinds = sorted({image_kind(file) for file in files})
    if len(kinds) > 1:
        raise VolumeError(
            f"{label}: is a folder of {' and '.join(kinds)} images; keep one format, or name another folder"
        )
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
