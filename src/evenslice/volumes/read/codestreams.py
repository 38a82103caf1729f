"""The sizes that compressed images state in their own headers.

A strip of a TIFF file or a frame of a DICOM file that is compressed as an image has a header of its own, which decoders
believe: a tile of 16 x 16 pixels can expand to gigabytes. So these headers are read first.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from evenslice._core import VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["require_size"]

SLACK = 2**25
"""Samples that an image may have beyond those expected: encoders fill blocks, and some tiles at borders."""

_SIZ = b"\xff\x4f\xff\x51"
_JXL_RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_JXL_BITS = (9, 13, 18, 30)


def require_size(data: bytes, samples: int, label: str) -> None:
    """Raise VolumeError if a compressed image states far more samples than it may have.

    JPEG of all kinds, JPEG 2000, JPEG XL, JPEG XR, LERC, PNG and WebP are looked into.

    Args:
        data: the compressed image.
        samples: how many samples (pixels times channels) it should have.
        label: the file, as the user wrote it.
    """
    try:
        stated = _stated_samples(data)
    except (struct.error, IndexError):
        return  # too short to be an image: the decoder says so
    if stated > samples + SLACK:
        raise VolumeError(
            f"{label}: a compressed image states {stated:,} values where {samples:,} belong; the file is damaged"
        )


def _stated_samples(data: bytes) -> int:
    """Return the largest number of samples that the headers of an image state; 0 for another kind of data.

    Of formats with at most four channels, it is the number of pixels.
    """
    return next((read(data) for signature, read in _READERS.items() if data.startswith(signature)), 0)


def _places(data: bytes, mark: bytes) -> Iterator[int]:
    """Yield every position of a mark."""
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + 1)


def _jpeg(data: bytes) -> int:
    """Read the frame header of JPEG, lossless JPEG or JPEG-LS. Source: ITU-T T.81, section B.1.1.4, and T.87, annex C.

    What stands between two segments is skipped, as decoders do.
    """
    place = 2
    while 0 <= (place := data.find(b"\xff", place)) <= len(data) - 4:
        marker = data[place + 1]
        # Fill bytes, and marks without a length.
        if marker in (0xFF, 0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width, channels = struct.unpack_from(">HHB", data, place + 5)
            return int(height * width * channels)
        (length,) = struct.unpack_from(">H", data, place + 2)
        if marker == 0xF8 and data[place + 4] == 4:  # JPEG-LS: a size that needs more than 16 bits
            width = data[place + 5]
            size = data[place + 6 : place + 6 + 2 * width]
            return int.from_bytes(size[:width], "big") * int.from_bytes(size[width:], "big")
        place += 2 + max(length, 2)
    return 0


def _jpeg2000(data: bytes) -> int:
    """Read the headers of all JPEG 2000 codestreams. Source: ITU-T T.800, section A.5.1."""
    stated = 0
    for place in _places(data, _SIZ):
        right, bottom, left, top = struct.unpack_from(">IIII", data, place + 8)
        (channels,) = struct.unpack_from(">H", data, place + 40)
        stated = max(stated, max(right - left, 0) * max(bottom - top, 0) * channels)
    return stated


def _lerc(data: bytes) -> int:
    """Read the headers of LERC 2 images, one per band. Source: Lerc2.h of Esri's LERC."""
    stated = 0
    for place in _places(data, b"Lerc2 "):
        (version,) = struct.unpack_from("<I", data, place + 6)
        height, width, depth = struct.unpack_from("<III", data, place + (14 if version >= 3 else 10))
        stated += height * width * (depth if version >= 4 else 1)
    return stated


def _lerc1(data: bytes) -> int:
    """Read the header of a LERC 1 image. Source: CntZImage.cpp of Esri's LERC."""
    height, width = struct.unpack_from("<II", data, 18)
    return int(height * width)


def _png(data: bytes) -> int:
    width, height = struct.unpack_from(">II", data, 16)
    return int(width * height)


def _webp(data: bytes) -> int:
    """Read the first chunk of a WebP image. Source: RFC 9649, sections 2.5 to 2.7 and 3.4."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    return width * height


def _jpeg_xr(data: bytes) -> int:
    """Read the directory and the codestream header of JPEG XR. Source: ITU-T T.832, sections 8.3 and A.7."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    sizes = {0xBC80: 0, 0xBC81: 0}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from("<HHII", data, entry)
        if tag in sizes:
            sizes[tag] = value & (0xFF if kind == 1 else 0xFFFF if kind == 3 else 0xFFFFFFFF)
    stated = sizes[0xBC80] * sizes[0xBC81]
    for place in _places(data, b"WMPHOTO\0"):
        short = data[place + 10] >> 7
        width, height = struct.unpack_from(">HH" if short else ">II", data, place + 12)
        stated = max(stated, (width + 1) * (height + 1))
    return int(stated)


def _jpeg_xl(data: bytes, place: int = 2) -> int:
    """Read the size header of a JPEG XL codestream. Source: ISO/IEC 18181-1, section D.2."""
    bits, used = int.from_bytes(data[place : place + 12], "little"), 0

    def take(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    def length() -> int:
        return 1 + take(_JXL_BITS[take(2)])

    small = take(1)
    height = 8 * (take(5) + 1) if small else length()
    ratio = take(3)
    if ratio:
        over, under = _JXL_RATIOS[ratio - 1]
        width = height * over // under
    else:
        width = 8 * (take(5) + 1) if small else length()
    return width * height


def _jpeg_xl_in_boxes(data: bytes) -> int:
    """Find the codestream of JPEG XL in its boxes. Source: ISO/IEC 18181-2, section 9."""
    place = 0
    while place + 16 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        start = place + (16 if size == 1 else 8)
        if kind in (b"jxlc", b"jxlp"):
            return _jpeg_xl(data, start + 2 + (4 if kind == b"jxlp" else 0))
        step = struct.unpack_from(">Q", data, place + 8)[0] if size == 1 else size
        if step < 8:
            break
        place += step
    return 0


_READERS: dict[bytes, Callable[[bytes], int]] = {
    b"\xff\xd8": _jpeg,
    _SIZ: _jpeg2000,
    b"\0\0\0\x0cjP  ": _jpeg2000,
    b"Lerc2 ": _lerc,
    b"CntZImage ": _lerc1,
    b"\x89PNG": _png,
    b"RIFF": _webp,
    b"II\xbc": _jpeg_xr,
    b"\xff\x0a": _jpeg_xl,
    b"\0\0\0\x0cJXL ": _jpeg_xl_in_boxes,
}
"""What reads the size of an image, by how it begins."""
