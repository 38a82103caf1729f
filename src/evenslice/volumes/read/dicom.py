"""DICOM: the slices of a series in a folder, or the frames of one file, sorted by position in the patient.

Classic and enhanced objects come to frames of one form.
Source: DICOM PS3.3, sections C.7.6.2 (image plane), C.7.6.16 (functional groups) and C.11.1 (rescaling).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels

from evenslice._core import ConfigError, MissingExtraError, VolumeError, option
from evenslice.volumes.geometry import affine_from_lps
from evenslice.volumes.read.formats import dicom_files, natural_order
from evenslice.volumes.read.source import (
    VoxelSource,
    reporting_read_errors,
    require_bytes,
    require_piece,
    without_warnings,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.source import Place

# Without a handler, logging would print the warnings of pydicom about damaged files next to our own error.
logging.getLogger("pydicom").addHandler(logging.NullHandler())

EVEN = 0.05
"""Relative difference up to which distances between slices count as equal."""


@dataclass(frozen=True)
class Frame:
    """One image: its file, its type, and its position in the patient.

    Attributes:
        path: the file.
        index: index of the frame in the file.
        shape: rows, columns, and samples per pixel if there are several.
        dtype: data type as decoded.
        scaling: factor of the stored values, and what is added after multiplication.
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
    scaling: tuple[float, float]
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    pixel: NDArray[np.float64] | None
    gap: float | None
    order: tuple[int, ...]


class DicomSource(VoxelSource):
    """The frames of one series as z, y, x, with an axis t before z if there are several at each position."""

    format = "DICOM"

    def __init__(self, place: Place) -> None:
        path = place.path
        files = natural_order(dicom_files(path)) if path.is_dir() else [path]
        frames = _choose(_read_series(files), place.series)
        self.files = tuple(dict.fromkeys(frame.path for frame in frames))
        first = _check_alike(frames)
        self._frames = _stack(frames)
        times, depth = self._frames.shape
        self.shape = (*[times] * (times > 1), depth, *first.shape)
        self.names = "t" * (times > 1) + "zyx" + "s" * (len(first.shape) > 2)
        self.chunks = (*[1] * (len(self.shape) - len(first.shape)), *first.shape)
        scaled = any(frame.scaling != (1.0, 0.0) for frame in frames)
        # Single precision is exact enough for rescaled 16-bit values, as in NIfTI.
        self.dtype = np.result_type(first.dtype, np.float32) if scaled else first.dtype
        self._set_place()

    def _set_place(self) -> None:
        """Set voxel size and affine from the first and last slice."""
        first, last = self._frames[0, 0], self._frames[0, -1]
        step: NDArray[np.float64] | None = None
        if first.position is not None and first.orientation is not None:
            if len(self._frames[0]) > 1 and last.position is not None:
                step = (last.position - first.position) / (len(self._frames[0]) - 1)
            elif first.gap is not None:
                step = _normal(first.orientation) * first.gap
        distance = float(np.linalg.norm(step)) if step is not None else first.gap
        if distance is None or first.pixel is None:
            return
        rows, columns = first.pixel.tolist()
        sizes = {"z": distance, "y": rows, "x": columns}
        self.voxel_size = tuple(sizes.get(name, math.nan) for name in self.names or ""), "mm"
        if step is not None:
            row, column = first.orientation[:3], first.orientation[3:]
            self.affine = affine_from_lps(
                np.stack([row * columns, column * rows, step], axis=1), first.position
            )

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the frames under ``key``."""
        count = (self.names or "").index("y")
        frames = (self._frames if count == 2 else self._frames[0])[key[:count]]
        blocks = [pixels[key[count:]].copy() for pixels in _decode(frames.flat)]
        return np.stack(blocks).astype(self.dtype, copy=False).reshape(*frames.shape, *blocks[0].shape)


def _decode(frames: Iterable[Frame]) -> Iterator[NDArray[Any]]:
    """Yield the rescaled pixels of frames; consecutive frames of one file are read together.

    Raises:
        VolumeError: they cannot be decoded, or do not match the header.
    """
    for path, group in groupby(frames, key=lambda frame: frame.path):
        wanted = list(group)
        with reporting_read_errors(path.name, "DICOM"):
            images = iter_pixels(path, indices=[frame.index for frame in wanted])
            for frame, pixels in zip(wanted, images, strict=True):
                if pixels.shape != frame.shape or pixels.dtype.newbyteorder("=") != frame.dtype:
                    raise ValueError(f"an image is {pixels.shape} {pixels.dtype}, unlike its header")
                slope, intercept = frame.scaling
                plain = frame.scaling == (1.0, 0.0)
                yield pixels if plain else np.asarray(pixels, np.float64) * slope + intercept


# Headers


def _read_series(files: Sequence[Path]) -> list[tuple[int, str, str, list[Frame]]]:
    """Read the headers of files and group their frames into series; files without an image are omitted.

    Returns:
        For each series its number, UID, title and frames, in the order of the files; sorted by number.

    Raises:
        VolumeError: a header is damaged, impossible or unsupported.
        MissingExtraError: the voxels are compressed and their decoder is not installed.
    """
    found: dict[str, tuple[int, str, str, list[Frame]]] = {}
    for file in files:
        with reporting_read_errors(file.name, "DICOM"):
            with without_warnings():  # what matters is checked here
                header = pydicom.dcmread(file, stop_before_pixels=True, defer_size=2**16)
            if not _holds_image(header):
                continue
            uid, number = str(header.get("SeriesInstanceUID", "")), _whole(header, "SeriesNumber")
            title = f"{header.get('Modality', '')} {header.get('SeriesDescription', '')}".strip()
            *_, frames = found.setdefault(uid, (number, uid, title or "no title", []))
            frames.extend(_frames(header, file))
    return sorted(found.values(), key=lambda series: series[:2])


def _choose(found: list[tuple[int, str, str, list[Frame]]], wanted: int | None) -> list[Frame]:
    """Return the frames of the only series, or of the one that the user selected.

    Raises:
        VolumeError: there is none, or there are several and the user selected none.
        ConfigError: there is no such series.
    """
    if not found:
        raise VolumeError("its DICOM files contain no image; name a folder of CT, MR or other slices")
    if (len(found) == 1 and wanted is None) or wanted in range(len(found)):
        return found[wanted or 0][3]
    listing = "; ".join(
        f"{place}: {title} ({len(frames)} images, UID …{uid[-12:]})"
        for place, (_, uid, title, frames) in enumerate(found[:8])
    )
    raise (VolumeError if wanted is None else ConfigError)(
        f"holds {len(found)} series ({listing}); pick one with {option('select', {'series': 0})}"
    )


def _holds_image(header: Any) -> bool:
    """Return whether a file holds an image, not a report, a structure set, a mesh or a radiation dose.

    Raises:
        VolumeError: it is of a kind that does, and has none.
    """
    kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    name = "DICOM file" if kind is None else kind.name
    if "Rows" in header and "Columns" in header:
        return not name.startswith("RT Dose")
    images = ("DICOM file", "Image Storage", "Segmentation Storage", "Map Storage")
    if any(word in name for word in images) and not name.startswith("Surface Segmentation"):
        raise VolumeError(f"is truncated, it is of the kind {name} but has no image; copy it again")
    return False


def _frames(header: Any, path: Path) -> Iterator[Frame]:
    """Yield the frames of a file, with their shared and their own metadata."""
    count = max(_whole(header, "NumberOfFrames", 1), 1)
    require_bytes(path, count)  # of a byte each, at least
    shape, dtype = _shape_and_type(header)
    syntax = header.file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        raise MissingExtraError(
            f"its images are compressed as {syntax.name}; install a decoder: pip install 'evenslice[medical]'"
        )
    if not syntax.is_encapsulated and len(shape) == 2:
        require_bytes(path, math.prod(shape) * count * _whole(header, "BitsAllocated") // 8)
    if "ModalityLUTSequence" in header:
        raise VolumeError("its values refer to a modality lookup table; save it rescaled")
    shared = _first(header, "SharedFunctionalGroupsSequence")
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    if own and len(own) != count:
        raise ValueError(f"it claims {count} frames and describes {len(own)}")
    for index in range(count):
        # The functional groups of a frame: its own, else the shared ones, else the header itself, as in classic objects.
        groups = [group for group in (own[index] if own else None, shared) if group is not None]
        measures, values, plane, placed = (
            next((item for group in groups if (item := _first(group, f"{name}Sequence")) is not None), header)
            for name in ("PixelMeasures", "PixelValueTransformation", "PlaneOrientation", "PlanePosition")
        )
        position = None if count > 1 and not own else _numbers(placed, "ImagePositionPatient", 3)
        gap = abs(_number(measures, "SpacingBetweenSlices")) or _number(measures, "SliceThickness")
        slope = _number(values, "RescaleSlope", 1.0)
        intercept = _number(values, "RescaleIntercept")
        if not slope or not np.isfinite(slope + intercept):  # all voxels would be alike
            raise VolumeError(f"its values are scaled by {slope:g}; correct the header, mostly to 1")
        numbers = ("TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber")
        yield Frame(
            path=path,
            index=index,
            shape=shape,
            dtype=dtype,
            scaling=(slope, intercept),
            position=position,
            orientation=_numbers(plane, "ImageOrientationPatient", 6),
            pixel=_numbers(measures, "PixelSpacing", 2),
            gap=gap if 0 < gap < math.inf else None,
            order=(*(_whole(header, name) for name in numbers), index),
        )


def _shape_and_type(header: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    rows, columns, samples = (_whole(header, name, 1) for name in ("Rows", "Columns", "SamplesPerPixel"))
    bits = _whole(header, "BitsAllocated")
    shape = (rows, columns, *((samples,) if samples > 1 else ()))
    if "PixelRepresentation" in header:
        kind = "i" if _whole(header, "PixelRepresentation") == 1 else "u"
    else:
        kind = "f" if bits >= 32 else "u"  # parametric maps of floats lack it
    dtype = np.dtype(f"{kind}{max(bits, 8) // 8}")
    require_piece("its images", shape, dtype)
    return shape, dtype


def _normal(orientation: Any) -> NDArray[np.float64]:
    return np.cross(orientation[:3], orientation[3:])


def _first(header: Any, name: str) -> Any:
    """Return the first item of a sequence, or None."""
    items = header.get(name)
    return items[0] if items else None


def _numbers(item: Any, name: str, count: int) -> NDArray[np.float64] | None:
    """Return ``count`` finite numbers, or None if the element has anything else."""
    stated = item.get(name)
    if stated is None or not hasattr(stated, "__len__") or len(stated) != count:
        return None
    found = np.array([float(part) for part in stated])
    return found if np.isfinite(found).all() else None


def _number(item: Any, name: str, default: float = 0.0) -> float:
    stated = item.get(name)
    return default if stated is None or stated == "" else float(stated)


def _whole(item: Any, name: str, default: int = 0) -> int:
    return int(_number(item, name, default))


# The frames of a series


def _check_alike(frames: Sequence[Frame]) -> Frame:
    """Raise VolumeError if the frames of a series differ in size, type, direction or distance of pixels; return the first."""
    first = frames[0]
    for name in ("shape", "dtype", "orientation", "pixel"):
        for frame in frames[1:]:
            one, other = getattr(first, name), getattr(frame, name)
            measured = isinstance(one, np.ndarray) and other is not None
            if not (
                np.allclose(one, other, rtol=1e-3, atol=1e-3) if measured else np.array_equal(one, other)
            ):
                raise VolumeError(
                    f"images of one series differ in {name}, {first.path.name} has {one} and {frame.path.name} {other}"
                )
    return first


def _stack(frames: Sequence[Frame]) -> NDArray[Any]:
    """Sort frames by position, and those at one position by time.

    Returns:
        The frames as an array (t, z).

    Raises:
        VolumeError: only some have a position; or the number of frames differs between positions, or their distances are
            uneven; or two of the same number have none.
    """
    first = frames[0]
    without = [frame for frame in frames if frame.position is None]
    if first.orientation is None or len(without) == len(frames):
        return _in_order(frames)
    if without:
        raise VolumeError(f"{without[0].path.name} states no position, as others do; complete its header")
    places = np.array([frame.position for frame in frames])
    heights = places @ _normal(first.orientation)
    order = np.argsort(heights, kind="stable")
    near = 0.01 * min(first.pixel) if first.pixel is not None and min(first.pixel) > 0 else 1e-4
    starts = [0, *(np.flatnonzero(np.diff(heights[order]) > near) + 1).tolist()]
    groups = [
        sorted((frames[int(number)] for number in part), key=lambda frame: frame.order)
        for part in np.split(order, starts[1:])
    ]
    counts = [len(group) for group in groups]
    if min(counts) != max(counts):
        odd = groups[counts.index(min(counts))][0]
        raise VolumeError(
            f"{max(counts)} images are at some positions and {min(counts)} at that of {odd.path.name}; complete the series"
        )
    _check_even([group[0] for group in groups], heights[order][starts])
    return np.array(groups, object).T


def _in_order(frames: Sequence[Frame]) -> NDArray[Any]:
    """Sort frames without positions by their numbers, or leave them in the order of the file names if they have none.

    Returns:
        The frames as an array (1, z).

    Raises:
        VolumeError: two have the same number.
    """
    found = sorted(frames, key=lambda frame: frame.order)
    if len({frame.order for frame in found}) > 1:
        for frame, after in pairwise(found):
            if frame.order == after.order:
                raise VolumeError(
                    f"{frame.path.name} and {after.path.name} have the same number and no position; keep one volume"
                )
    return np.array([found], object)


def _check_even(slices: Sequence[Frame], heights: NDArray[np.float64]) -> None:
    """Raise if the slices of a volume are not equally spaced, or do not lie above each other along one line."""
    distances = np.diff(heights)
    if not len(distances):
        return
    usual = float(np.median(distances))
    odd = int(np.argmax(np.abs(distances - usual)))
    if abs(distances[odd] - usual) > EVEN * usual:
        raise VolumeError(
            f"slices are {usual:.4g} mm apart, but {slices[odd].path.name} and {slices[odd + 1].path.name} are "
            f"{distances[odd]:.4g} mm apart; complete the series, or name an evenly spaced part"
        )
    if slices[0].pixel is None:
        return
    steps = np.diff(np.array([frame.position for frame in slices]), axis=0)
    aside = np.linalg.norm(steps - np.median(steps, axis=0), axis=1)
    odd = int(np.argmax(aside))
    if aside[odd] > max(0.5 * min(slices[0].pixel), EVEN * usual):  # a tilted gantry shifts all alike
        raise VolumeError(
            f"{slices[odd + 1].path.name} lies {aside[odd]:.4g} mm to the side of where it would follow "
            f"{slices[odd].path.name}; name a part that is aligned"
        )
