"""Decoding the frames of DICOM files with pydicom; a compressed one is never decoded to more than its header claims."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError
from evenslice.volumes.read.checks import BoundedFile, reporting_read_errors
from evenslice.volumes.read.codestreams import require_size
from evenslice.volumes.read.dicom_frames import where_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.read.dicom_frames import Frame

__all__ = ["decode"]

_TAGS = [
    *(
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "Rows",
        "Columns",
    ),
    *(
        "BitsAllocated",
        "BitsStored",
        "PixelRepresentation",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
    ),
]
_SLACK_BYTES = 2**22


def decode(frames: Sequence[Frame], label: str) -> Iterator[NDArray[Any]]:
    """Yield the rescaled pixels of frames; consecutive frames of one file are read together.

    Raises:
        VolumeError: they cannot be decoded, or do not match the header.
    """
    start = 0
    while start < len(frames):
        path = frames[start].path
        stop = start
        while stop < len(frames) and frames[stop].path == path:
            stop += 1
        group = frames[start:stop]
        with reporting_read_errors(where_in(label, path), "DICOM"), BoundedFile(path) as file:
            images = _unpacked(file, group, where_in(label, path)) if group[0].packed else _plain(file, group)
            for frame, pixels in zip(group, images, strict=True):
                yield _rescaled(pixels, frame, where_in(label, path))
        start = stop


def _plain(file: BoundedFile, frames: Sequence[Frame]) -> Iterator[NDArray[Any]]:
    """Yield frames of a file that are not compressed."""
    from pydicom.pixels.utils import iter_pixels

    return iter_pixels(file, indices=[frame.index for frame in frames])


def _unpacked(file: BoundedFile, frames: Sequence[Frame], where: str) -> Iterator[NDArray[Any]]:
    """Yield frames of a file that are compressed."""
    from pydicom import dcmread
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import as_pixel_options

    header = dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
    options = as_pixel_options(header)
    offsets, count = options.pop("extended_offsets", None), options["number_of_frames"]
    options |= {"number_of_frames": 1, "pixel_keyword": "PixelData", "pixel_vr": "OB"}
    decoder = get_decoder(header.file_meta.TransferSyntaxUID)
    file.seek(12, 1)  # tag, type and length of the element: its value begins with the table of offsets
    for frame in frames:
        packed = get_frame(file, frame.index, extended_offsets=offsets, number_of_frames=count)
        samples = math.prod(frame.shape)
        if len(packed) > 2 * samples * frame.dtype.itemsize + _SLACK_BYTES:
            raise VolumeError(
                f"{where}: a compressed image takes {len(packed):,} bytes for {samples:,} values; the file is damaged"
            )
        require_size(packed, samples, where)
        yield decoder.as_array(encapsulate([packed]), index=0, **options)[0]


def _rescaled(pixels: NDArray[Any], frame: Frame, where: str) -> NDArray[Any]:
    if pixels.shape != frame.shape or pixels.dtype.newbyteorder("=") != frame.dtype:
        raise VolumeError(
            f"{where}: its image is {pixels.shape} {pixels.dtype} and its header claims {frame.shape} "
            f"{frame.dtype}; the file is damaged"
        )
    if (frame.slope, frame.intercept) == (1.0, 0.0):
        return pixels
    return np.asarray(pixels, np.float64) * frame.slope + frame.intercept
