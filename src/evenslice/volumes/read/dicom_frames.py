"""DICOM files to frames: what each header says about each image in the file, in one form for old and enhanced objects.

Source: DICOM PS3.3, sections C.7.6.2 (image plane), C.7.6.16 (functional groups) and C.11.1 (rescaling).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import MissingExtraError, VolumeError
from evenslice.volumes.read.dicom_headers import first, number, numbers, pick, read_header, whole
from evenslice.volumes.read.source import BoundedFile, reading, require_bytes, require_chunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Frame", "Series", "decode", "read_series"]

MOST_FRAMES = 100_000


@dataclass(frozen=True)
class Frame:
    """One image: where it is stored, what it is, and where it lies in the patient.

    Attributes:
        path: its file.
        index: its number in the file.
        shape: rows, columns, and samples of a pixel if there are several.
        dtype: data type as decoded.
        slope: what stored values are multiplied by.
        intercept: what is added then.
        position: centre of the first pixel in the patient in mm (x to the left, y to the back, z to the head), or None.
        orientation: direction of a row (in which the column index rises), then of a column, or None.
        pixel: distance of rows, then of columns, in mm, or None.
        gap: distance to the next slice in mm as the header states it, or None.
        order: sorts frames that lie at the same position.
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
        uid: what tells it from others.
        number: number that the scanner gave it.
        title: modality and description.
        frames: in the order of the files.
    """

    uid: str
    number: int
    title: str
    frames: list[Frame]


def read_series(files: Sequence[Path], label: str) -> list[Series]:
    """Read the headers of files, and sort their frames into series by number; files without an image are left out.

    Raises:
        VolumeError: a header is damaged, claims the impossible, or describes what is not read.
        MissingExtraError: the voxels are compressed and their decoder is not installed.
    """
    found: dict[str, Series] = {}
    count = 0
    for file in files:
        where = _where(label, file)
        with reading(where, "DICOM"):
            header = read_header(file)
            if "Rows" not in header or "Columns" not in header:
                _require_no_image(header, where)
                continue
            uid = str(header.get("SeriesInstanceUID", ""))
            title = (
                f"{header.get('Modality', '')} {header.get('SeriesDescription', '')}".strip() or "no title"
            )
            series = found.setdefault(uid, Series(uid, whole(header, "SeriesNumber"), title, []))
            for frame in _frames(header, file, where):
                series.frames.append(frame)
                count += 1
            if count > MOST_FRAMES:
                raise VolumeError(
                    f"{label}: holds more than {MOST_FRAMES:,} images; name a folder that holds fewer"
                )
    return sorted(found.values(), key=lambda series: (series.number, series.uid))


def decode(frames: Sequence[Frame], label: str) -> Iterator[NDArray[Any]]:
    """Yield the pixels of frames, rescaled; those of one file that follow each other are read in one go.

    Raises:
        VolumeError: they cannot be decoded, or are not what the header said.
    """
    from pydicom.pixels.utils import iter_pixels

    start = 0
    while start < len(frames):
        path = frames[start].path
        stop = start
        while stop < len(frames) and frames[stop].path == path:
            stop += 1
        group = frames[start:stop]
        with reading(_where(label, path), "DICOM"), BoundedFile(path) as file:
            images = iter_pixels(file, indices=[frame.index for frame in group])
            for frame, pixels in zip(group, images, strict=True):
                yield _rescaled(pixels, frame, _where(label, path))
        start = stop


def _where(label: str, path: Path) -> str:
    """Name a file in a folder, or the file that was opened."""
    return label if label.endswith(path.name) else f"{label}: {path.name}"


def _rescaled(pixels: NDArray[Any], frame: Frame, where: str) -> NDArray[Any]:
    if pixels.shape != frame.shape or pixels.dtype.newbyteorder("=") != frame.dtype:
        raise VolumeError(
            f"{where}: its image is {pixels.shape} {pixels.dtype} and its header claims {frame.shape} {frame.dtype}; the file is damaged"
        )
    if (frame.slope, frame.intercept) == (1.0, 0.0):
        return pixels
    return np.asarray(pixels, np.float64) * frame.slope + frame.intercept


def _require_no_image(header: Any, where: str) -> None:
    """Raise unless a file without an image is one that has none: a report, a structure set, the directory of a medium."""
    kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    name = "DICOM file" if kind is None else kind.name
    if kind is None or any(
        word in name for word in ("Image Storage", "Dose Storage", "Segmentation Storage", "Map Storage")
    ):
        raise VolumeError(f"{where}: is truncated, it is a {name} without an image; copy it again")


def _frames(header: Any, path: Path, where: str) -> Iterator[Frame]:
    """Yield the frames of a file, with what all share and what each has of its own."""
    count = max(whole(header, "NumberOfFrames", 1), 1)
    if count > MOST_FRAMES:
        raise VolumeError(f"{where}: claims {count:,} frames, more than the {MOST_FRAMES:,} that are read")
    shape, dtype = _shape_and_type(header, where)
    _check_syntax(header, path, where, shape, count)
    if "ModalityLUTSequence" in header:
        raise VolumeError(f"{where}: a table gives its values a meaning, which is not read; save it rescaled")
    shared = first(header, "SharedFunctionalGroupsSequence")
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    if own and len(own) != count:
        raise VolumeError(f"{where}: claims {count} frames and describes {len(own)}; the file is damaged")
    for index in range(count):
        groups = [group for group in (own[index] if own else None, shared) if group is not None]
        group = partial(pick, groups, header)
        measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
        orientation = numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
        position = None
        if count == 1 or own:
            position = numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3)
        offsets = header.get("GridFrameOffsetVector")
        if offsets is not None and len(offsets) == count and orientation is not None:
            position = _dose_position(header, orientation, float(offsets[index]))
        slope = number(values, "RescaleSlope", number(header, "DoseGridScaling", 1.0) or 1.0)
        gap = number(measures, "SpacingBetweenSlices", number(measures, "SliceThickness", 0.0))
        yield Frame(
            path=path,
            index=index,
            shape=shape,
            dtype=dtype,
            slope=slope or 1.0,
            intercept=number(values, "RescaleIntercept", 0.0),
            position=position,
            orientation=orientation,
            pixel=numbers(measures, "PixelSpacing", 2),
            gap=gap if gap > 0 else None,
            order=(
                whole(header, "TemporalPositionIdentifier"),
                whole(header, "AcquisitionNumber"),
                whole(header, "InstanceNumber"),
                index,
            ),
        )


def _shape_and_type(header: Any, where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    rows, columns, samples = (whole(header, name, 1) for name in ("Rows", "Columns", "SamplesPerPixel"))
    bits = whole(header, "BitsAllocated")
    if rows < 1 or columns < 1 or samples not in (1, 3, 4) or bits not in (1, 8, 16, 32, 64):
        raise VolumeError(
            f"{where}: claims an impossible image of {rows} x {columns} pixels, {samples} samples, {bits} bits; the file is damaged"
        )
    shape = (rows, columns, *((samples,) if samples > 1 else ()))
    if "PixelRepresentation" in header:
        kind = "i" if whole(header, "PixelRepresentation") == 1 else "u"
    else:
        kind = "f" if bits >= 32 else "u"  # parametric maps of real numbers state none
    dtype = np.dtype(f"{kind}{max(bits, 8) // 8}")
    require_chunk(where, "its images", shape, dtype)
    return shape, dtype


def _check_syntax(header: Any, path: Path, where: str, shape: tuple[int, ...], count: int) -> None:
    """Raise if the voxels cannot be decoded, or the file is too short to hold them uncompressed."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_deflated:
        raise VolumeError(f"{where}: is deflated as a whole; save it uncompressed, or with compressed images")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise VolumeError(
            f"{where}: its images are stored as {syntax.name}, which is not read; save it uncompressed"
        ) from None
    if not decoder.is_available:
        raise MissingExtraError(
            f"{where}: its images are compressed as {syntax.name}; install a decoder with: pip install 'evenslice[medical]'"
        )
    if not syntax.is_encapsulated and len(shape) == 2:
        bits = whole(header, "BitsAllocated")
        require_bytes(path, where, shape[0] * shape[1] * count * bits // 8)


def _dose_position(header: Any, orientation: tuple[float, ...], offset: float) -> tuple[float, ...] | None:
    """Return where a frame of a radiation dose lies, which states the distance of each frame from the first."""
    first = numbers(header, "ImagePositionPatient", 3)
    if first is None:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    return tuple((np.array(first) + offset * normal).tolist())
