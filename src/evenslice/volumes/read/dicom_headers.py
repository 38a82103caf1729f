"""DICOM headers: reading them without the voxels, and access to values that may be missing or empty."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, needs_extra, open_regular
from evenslice.volumes.read.checks import BoundedFile, without_warnings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["first", "is_dicom", "number", "numbers", "pick", "read_header", "whole"]

_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "InstanceNumber",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "NumberOfFrames",
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "GridFrameOffsetVector",
    "DVHSequence",
    "DoseGridScaling",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

# Without a handler, logging would print the warnings of pydicom about damaged files next to our own error.
logging.getLogger("pydicom").addHandler(logging.NullHandler())


def is_dicom(path: Path) -> bool:
    """Return whether a file has the signature of DICOM."""
    with open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"


class _Header(BoundedFile):
    """A DICOM file of which nothing is read without saying how much: pydicom does so to inflate the whole of it."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes."""
        if size is None or size < 0:
            raise VolumeError(
                "is compressed as a whole (deflated); save it uncompressed, or with compressed images"
            )
        return super().read(size)


def read_header(path: Path, where: str) -> Any:
    """Read the required elements of a header, without warnings: what matters is checked by the caller.

    Args:
        path: the file.
        where: the file, as messages should name it.

    Raises:
        VolumeError: it is deflated.
    """
    with needs_extra("medical", "reading a DICOM volume"):
        import pydicom
    with without_warnings(), _Header(path) as file:
        try:
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        except VolumeError as error:
            raise VolumeError(f"{where}: {error}") from None


def first(header: Any, name: str) -> Any:
    """Return the first item of a sequence, or None."""
    items = header.get(name)
    return items[0] if items else None


def pick(groups: Sequence[Any], header: Any, name: str) -> Any:
    """Return the functional group of a frame: its own, else the shared one, else the header itself, as in classic objects."""
    for group in groups:
        found = first(group, name)
        if found is not None:
            return found
    return header


def numbers(item: Any, name: str, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers, or None if the element has anything else."""
    stated = item.get(name)
    if stated is None or not hasattr(stated, "__len__") or len(stated) != count:
        return None
    found = tuple(float(part) for part in stated)
    return found if np.isfinite(found).all() else None


def number(item: Any, name: str, default: float) -> float:
    """Return a finite number, or the default."""
    stated = item.get(name)
    found = default if stated is None or stated == "" else float(stated)
    return found if np.isfinite(found) else default


def whole(item: Any, name: str, default: int = 0) -> int:
    """Return an integer, or the default."""
    stated = item.get(name)
    return default if stated is None or stated == "" else int(stated)
