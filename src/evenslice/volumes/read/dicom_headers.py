"""DICOM headers: read without the voxels, and asked for values that may be missing or empty."""

from __future__ import annotations

import logging
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import needs_extra
from evenslice.volumes.read.source import BoundedFile

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
    "DoseGridScaling",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

# Without any handler, logging prints what pydicom says about damaged files beside the one line of our own error.
logging.getLogger("pydicom").addHandler(logging.NullHandler())

_warnings = threading.Lock()  # Python's filters of warnings belong to all threads


def is_dicom(path: Path) -> bool:
    """Return whether a file starts as a DICOM file does."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_header(path: Path) -> Any:
    """Read what is needed of a header; what pydicom warns about is either checked here or does not matter."""
    with needs_extra("medical", "reading a DICOM volume"):
        import pydicom
    with _warnings, warnings.catch_warnings(), BoundedFile(path) as file:
        warnings.simplefilter("ignore")
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))


def first(header: Any, name: str) -> Any:
    """Return the first item of a sequence, or None."""
    items = header.get(name)
    return items[0] if items else None


def pick(groups: Sequence[Any], header: Any, name: str) -> Any:
    """Return the functional group of a frame: its own, else the shared one, else the header itself, as in old objects."""
    for group in groups:
        found = first(group, name)
        if found is not None:
            return found
    return header


def numbers(item: Any, name: str, count: int) -> tuple[float, ...] | None:
    """Return so many finite numbers, or None if there are others."""
    stated = item.get(name)
    if stated is None or not hasattr(stated, "__len__") or len(stated) != count:
        return None
    found = tuple(float(part) for part in stated)
    return found if np.isfinite(found).all() else None


def number(item: Any, name: str, default: float) -> float:
    """Return a finite number, or the default if there is none."""
    stated = item.get(name)
    found = default if stated is None or stated == "" else float(stated)
    return found if np.isfinite(found) else default


def whole(item: Any, name: str, default: int = 0) -> int:
    """Return a whole number, or the default if there is none."""
    stated = item.get(name)
    return default if stated is None or stated == "" else int(stated)
