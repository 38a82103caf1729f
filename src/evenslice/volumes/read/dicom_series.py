"""The frames of DICOM files, in one form for classic and enhanced objects: their metadata, and their pixels.

Source: DICOM PS3.3, sections C.7.6.2 (image plane), C.7.6.16 (functional groups) and C.11.1 (rescaling).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import MissingExtraError, VolumeError, needs_extra, open_regular
from evenslice.volumes.read.checks import (
    reporting_read_errors,
    require_bytes,
    require_piece,
    without_warnings,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Frame", "Series", "decode", "is_dicom", "read_series"]

# Without a handler, logging would print the warnings of pydicom about damaged files next to our own error.
logging.getLogger("pydicom").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Frame:
    """One image: its file, its type, and its position in the patient.

    Attributes:
        path: the file.
        index: index of the frame in the file.
        shape: rows, columns, and samples per pixel if there are several.
        dtype: data type as decoded.
        slope: factor of the stored values.
        intercept: added after multiplication.
        position: centre of the first pixel in the patient in mm (x to the left, y to the back, z to the head), or None.
        orientation: direction of a row (in which the column index increases), then of a column, or None.
        pixel: distance of rows, then of columns, in mm, or None.
        gap: distance to the next slice in mm according to the header, or None.
        order: sort key of frames at the same position.
    """

    path: Path
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel: tuple[float, ...] | None
    gap: float | None
    order: tuple[int, ...]


@dataclass
class Series:
    """The frames of one series.

    Attributes:
        uid: unique identifier.
        number: number given by the scanner.
        title: modality and description.
        frames: frames in the order of the files.
    """

    uid: str
    number: int
    title: str
    frames: list[Frame]


def is_dicom(path: Path) -> bool:
    """Return whether a file has the signature of DICOM."""
    with open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"


def _read_header(path: Path) -> Any:
    """Read the required elements of a header, without warnings: what matters is checked by the caller."""
    with needs_extra("medical", "reading a DICOM volume"):
        import pydicom
    with without_warnings():
        return pydicom.dcmread(path, stop_before_pixels=True, defer_size=2**16)


def read_series(files: Sequence[Path], label: str) -> list[Series]:
    """Read the headers of files and group their frames into series, sorted by number; files without an image are omitted.

    Raises:
        VolumeError: a header is damaged, impossible or unsupported.
        MissingExtraError: the voxels are compressed and their decoder is not installed.
    """
    found: dict[str, Series] = {}
    for file in files:
        where = _where_in(label, file)
        with reporting_read_errors(where, "DICOM"):
            header = _read_header(file)
            if "Rows" not in header or "Columns" not in header:
                _require_no_image(header, where)
                continue
            uid = str(header.get("SeriesInstanceUID", ""))
            title = (
                f"{header.get('Modality', '')} {header.get('SeriesDescription', '')}".strip() or "no title"
            )
            series = found.setdefault(uid, Series(uid, _whole(header, "SeriesNumber"), title, []))
            series.frames.extend(_frames(header, file, where))
    return sorted(found.values(), key=lambda series: (series.number, series.uid))


def decode(frames: Iterable[Frame], label: str) -> Iterator[NDArray[Any]]:
    """Yield the rescaled pixels of frames; consecutive frames of one file are read together.

    Raises:
        VolumeError: they cannot be decoded, or do not match the header.
    """
    from pydicom.pixels.utils import iter_pixels

    for path, group in groupby(frames, key=lambda frame: frame.path):
        where, wanted = _where_in(label, path), list(group)
        with reporting_read_errors(where, "DICOM"):
            images = iter_pixels(path, indices=[frame.index for frame in wanted])
            for frame, pixels in zip(wanted, images, strict=True):
                yield _rescaled(pixels, frame, where)


def _rescaled(pixels: NDArray[Any], frame: Frame, where: str) -> NDArray[Any]:
    if pixels.shape != frame.shape or pixels.dtype.newbyteorder("=") != frame.dtype:
        raise VolumeError(
            f"{where}: its image is {pixels.shape} {pixels.dtype} and its header claims {frame.shape} "
            f"{frame.dtype}; the file is damaged"
        )
    if (frame.slope, frame.intercept) == (1.0, 0.0):
        return pixels
    return np.asarray(pixels, np.float64) * frame.slope + frame.intercept


def _where_in(label: str, path: Path) -> str:
    """Return the label of a file in a folder, or of the file that was opened."""
    return label if label.endswith(path.name) else f"{label}: {path.name}"


def _require_no_image(header: Any, where: str) -> None:
    """Raise unless a file without an image is of a kind that has none: a report, a structure set, a mesh, a dose histogram."""
    kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    name = "DICOM file" if kind is None else kind.name
    if name.startswith("Surface Segmentation") or "DVHSequence" in header:
        return
    if kind is None or any(
        word in name for word in ("Image Storage", "Dose Storage", "Segmentation Storage", "Map Storage")
    ):
        raise VolumeError(f"{where}: is truncated, it is of the kind {name} but has no image; copy it again")


def _frames(header: Any, path: Path, where: str) -> Iterator[Frame]:
    """Yield the frames of a file, with their shared and their own metadata."""
    count = max(_whole(header, "NumberOfFrames", 1), 1)
    if count > (held := path.stat().st_size):
        raise VolumeError(f"{where}: claims {count:,} frames in {held:,} bytes; the file is damaged")
    shape, dtype = _shape_and_type(header, where)
    _check_syntax(header, path, where, shape, count)
    if "ModalityLUTSequence" in header:
        raise VolumeError(
            f"{where}: its values refer to a modality lookup table, which cannot be read; save it rescaled"
        )
    shared = _first(header, "SharedFunctionalGroupsSequence")
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    if own and len(own) != count:
        raise VolumeError(f"{where}: claims {count} frames and describes {len(own)}; the file is damaged")
    stated = header.get("GridFrameOffsetVector")  # of one frame, a number
    offsets = [] if stated is None else np.atleast_1d(np.asarray(stated, dtype=float)).tolist()
    for index in range(count):
        groups = [group for group in (own[index] if own else None, shared) if group is not None]
        group = partial(_pick, groups, header)
        measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
        orientation = _numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
        position = None
        if count == 1 or own:
            position = _numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3)
        if len(offsets) == count and orientation is not None:
            position = _dose_position(header, orientation, offsets[index], offsets[0])
        gap = abs(_number(measures, "SpacingBetweenSlices", 0.0)) or _number(measures, "SliceThickness", 0.0)
        yield Frame(
            path=path,
            index=index,
            shape=shape,
            dtype=dtype,
            slope=_rescaling(values, "RescaleSlope", where)
            or _rescaling(header, "DoseGridScaling", where)
            or 1.0,
            intercept=_rescaling(values, "RescaleIntercept", where, may_be_zero=True) or 0.0,
            position=position,
            orientation=orientation,
            pixel=_numbers(measures, "PixelSpacing", 2),
            gap=gap if gap > 0 else None,
            order=(
                _whole(header, "TemporalPositionIdentifier"),
                _whole(header, "AcquisitionNumber"),
                _whole(header, "InstanceNumber"),
                index,
            ),
        )


def _rescaling(item: Any, name: str, where: str, *, may_be_zero: bool = False) -> float | None:
    """Return a number that stored values are multiplied by or that is added to them, or None if the element is missing or empty.

    Raises:
        VolumeError: it is not finite, or multiplies by zero, which would make all voxels alike.
    """
    from pydicom.tag import Tag

    stated = item.get(name)
    if stated is None or stated == "":
        return None
    found = float(stated)
    if not np.isfinite(found) or not (found or may_be_zero):
        right = "a finite number" if may_be_zero else "a finite number other than 0, mostly 1"
        raise VolumeError(f"{where}: {name} {Tag(name)} is {found:g}; correct the header to {right}")
    return found


def _shape_and_type(header: Any, where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    rows, columns, samples = (_whole(header, name, 1) for name in ("Rows", "Columns", "SamplesPerPixel"))
    bits = _whole(header, "BitsAllocated")
    if rows < 1 or columns < 1 or samples not in (1, 3, 4) or bits not in (1, 8, 16, 32, 64):
        raise VolumeError(
            f"{where}: claims an impossible image of {rows} x {columns} pixels, {samples} samples, {bits} "
            "bits; the file is damaged"
        )
    shape = (rows, columns, *((samples,) if samples > 1 else ()))
    if "PixelRepresentation" in header:
        kind = "i" if _whole(header, "PixelRepresentation") == 1 else "u"
    else:
        kind = "f" if bits >= 32 else "u"  # parametric maps of floats lack it
    dtype = np.dtype(f"{kind}{max(bits, 8) // 8}")
    require_piece(where, "its images", shape, dtype)
    return shape, dtype


def _check_syntax(header: Any, path: Path, where: str, shape: tuple[int, ...], count: int) -> None:
    """Raise if the voxels cannot be decoded, or are uncompressed and the file is too short."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_deflated:
        raise VolumeError(
            f"{where}: is compressed as a whole (deflated); save it uncompressed, or with compressed images"
        )
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise VolumeError(
            f"{where}: its images are stored as {syntax.name}, which cannot be read; save it uncompressed"
        ) from None
    if not decoder.is_available:
        raise MissingExtraError(
            f"{where}: its images are compressed as {syntax.name}; install a decoder with: pip install "
            "'evenslice[medical]'"
        )
    if not syntax.is_encapsulated and len(shape) == 2:
        bits = _whole(header, "BitsAllocated")
        require_bytes(path, where, shape[0] * shape[1] * count * bits // 8)


def _dose_position(
    header: Any, orientation: tuple[float, ...], offset: float, first_offset: float
) -> tuple[float, ...] | None:
    """Return the position of a frame of a radiation dose, which states offsets from the first frame, or z of each frame.

    Source: PS3.3, section C.8.8.3.2. Offsets count along the normal and start at zero; z, whatever the normal, towards
    the head.
    """
    first = _numbers(header, "ImagePositionPatient", 3)
    if first is None:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    if first_offset and normal[2] < 0:
        normal = -normal
    return tuple((np.array(first) + (offset - first_offset) * normal).tolist())


def _first(header: Any, name: str) -> Any:
    """Return the first item of a sequence, or None."""
    items = header.get(name)
    return items[0] if items else None


def _pick(groups: Sequence[Any], header: Any, name: str) -> Any:
    """Return the functional group of a frame: its own, else the shared one, else the header itself, as in classic objects."""
    for group in groups:
        found = _first(group, name)
        if found is not None:
            return found
    return header


def _numbers(item: Any, name: str, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers, or None if the element has anything else."""
    stated = item.get(name)
    if stated is None or not hasattr(stated, "__len__") or len(stated) != count:
        return None
    found = tuple(float(part) for part in stated)
    return found if np.isfinite(found).all() else None


def _number(item: Any, name: str, default: float) -> float:
    """Return a finite number, or the default."""
    stated = item.get(name)
    found = default if stated is None or stated == "" else float(stated)
    return found if np.isfinite(found) else default


def _whole(item: Any, name: str, default: int = 0) -> int:
    """Return an integer, or the default."""
    stated = item.get(name)
    return default if stated is None or stated == "" else int(stated)
