"""DICOM: the slices of a series in a folder, or the frames of one file, sorted by position in the patient."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, option
from evenslice.volumes.geometry import affine_from_lps
from evenslice.volumes.read.checks import require_signature
from evenslice.volumes.read.dicom_series import Series, decode, is_dicom, read_series
from evenslice.volumes.read.slice_folder import KINDS, natural_order
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.dicom_series import Frame

__all__ = ["DicomSource", "dicom_files"]

EVEN = 0.05
"""Relative difference up to which distances between slices count as equal."""


class DicomSource(VoxelSource):
    """The frames of one series as z, y, x, with an axis t before z if there are several at each position."""

    format = "DICOM"

    def __init__(self, files: Sequence[Path], label: str, series: int | None) -> None:
        if len(files) == 1 and not is_dicom(files[0]):
            require_signature(files[0], label, "a DICOM file")
        chosen = _choose(read_series(natural_order(files), label), label, series)
        self._label = label
        self.selected = () if series is None else ("series",)
        self.files = tuple(dict.fromkeys(frame.path for frame in chosen.frames))
        first = _check_alike(chosen.frames, label)
        self._frames = _stack(chosen.frames, label)
        times, depth = self._frames.shape
        self.shape = ((times,) if times > 1 else ()) + (depth, *first.shape)
        self.names = ("t" if times > 1 else "") + "zyx" + ("s" if len(first.shape) > 2 else "")
        self.chunks = (*[1] * (len(self.shape) - len(first.shape)), *first.shape)
        scaled = any((frame.slope, frame.intercept) != (1.0, 0.0) for frame in chosen.frames)
        # Single precision is exact enough for rescaled 16-bit values, as in NIfTI.
        self.dtype = np.result_type(first.dtype, np.float32) if scaled else first.dtype
        self._place()

    def _place(self) -> None:
        """Set voxel size and affine from the first and last slice."""
        first, last = self._frames[0, 0], self._frames[0, -1]
        depth = self._frames.shape[1]
        if first.pixel is None:
            return
        step: NDArray[np.float64] | None = None
        if first.position is not None and first.orientation is not None:
            if depth > 1 and last.position is not None:
                step = (np.array(last.position) - np.array(first.position)) / (depth - 1)
            elif first.gap is not None:
                step = np.cross(first.orientation[:3], first.orientation[3:]) * first.gap
        distance = float(np.linalg.norm(step)) if step is not None else first.gap
        if distance is None:
            return
        sizes = {"z": distance, "y": first.pixel[0], "x": first.pixel[1]}
        self.spacing = tuple(sizes.get(name, float("nan")) for name in self.names or "")
        self.unit = "mm"
        if step is not None and first.orientation is not None and first.position is not None:
            row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
            directions = np.stack([row * first.pixel[1], column * first.pixel[0], step], axis=1)
            self.affine = affine_from_lps(directions, first.position)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the frames under ``key``."""
        count = (self.names or "").index("y")
        grid = self._frames if count == 2 else self._frames[0]
        frames = grid[key[:count]]
        blocks = [pixels[key[count:]].copy() for pixels in decode(frames.flat, self._label)]
        return np.stack(blocks).astype(self.dtype, copy=False).reshape(*frames.shape, *blocks[0].shape)


def dicom_files(path: Path) -> list[Path]:
    """Return the DICOM files directly in a folder, whatever their names, except hidden ones and those named as other images."""
    return [
        file
        for file in path.iterdir()
        if file.suffix.lower() not in KINDS
        and not file.name.startswith(".")
        and file.is_file()
        and is_dicom(file)
    ]


def _choose(found: list[Series], label: str, wanted: int | None) -> Series:
    """Return the only series, or the one that the user selected.

    Raises:
        VolumeError: there is none, or there are several and the user selected none.
        ConfigError: there is no such series.
    """
    if not found:
        raise VolumeError(
            f"{label}: its DICOM files contain no image; name a folder of CT, MR or other slices"
        )
    if wanted is None:
        if len(found) == 1:
            return found[0]
        listing = "; ".join(
            f"{number}: {series.title} ({len(series.frames)} images, UID …{series.uid[-12:]})"
            for number, series in enumerate(found[:8])
        )
        raise VolumeError(
            f"{label}: holds {len(found)} series ({listing}{'; …' if len(found) > 8 else ''}); pick one "
            f"with {option('select', {'series': 0})}, or name a folder with one series"
        )
    if not 0 <= wanted < len(found):
        raise ConfigError(
            f"{label}: {option('select', {'series': wanted})} is out of range; it holds series 0 to {len(found) - 1}"
        )
    return found[wanted]


def _check_alike(frames: Sequence[Frame], label: str) -> Frame:
    """Raise if the frames of a series differ in size, type or direction; return the first."""
    first = frames[0]
    for frame in frames[1:]:
        if (frame.shape, frame.dtype) != (first.shape, first.dtype):
            raise VolumeError(
                f"{label}: images of one series differ, {_name(first)} is {first.shape} {first.dtype} "
                f"and {_name(frame)} {frame.shape} {frame.dtype}; name a folder with images of one kind"
            )
        if (frame.orientation is None) != (first.orientation is None) or (
            frame.orientation is not None
            and first.orientation is not None
            and not np.allclose(frame.orientation, first.orientation, atol=1e-3)
        ):
            raise VolumeError(
                f"{label}: images of one series differ in orientation ({_name(first)}, "
                f"{_name(frame)}), as in a localizer; name a folder with one orientation"
            )
        if (
            frame.pixel is not None
            and first.pixel is not None
            and not np.allclose(frame.pixel, first.pixel, rtol=1e-3)
        ):
            raise VolumeError(
                f"{label}: pixels of one series differ in size ({_name(first)}, {_name(frame)}); name "
                "a folder with one size"
            )
    return first


def _stack(frames: Sequence[Frame], label: str) -> NDArray[Any]:
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
        return _in_order(frames, label)
    if without:
        raise VolumeError(
            f"{label}: {_name(without[0])} states no position, unlike other images of its series; name a folder without "
            "it, or complete its header"
        )
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    heights = np.array([np.dot(frame.position or (0, 0, 0), normal) for frame in frames])
    order = np.argsort(heights, kind="stable")
    near = 0.01 * min(first.pixel) if first.pixel and min(first.pixel) > 0 else 1e-4
    starts = [0, *(np.flatnonzero(np.diff(heights[order]) > near) + 1).tolist()]
    groups = [
        sorted((frames[int(i)] for i in part), key=lambda frame: frame.order)
        for part in np.split(order, starts[1:])
    ]
    counts = [len(group) for group in groups]
    if min(counts) != max(counts):
        odd = groups[counts.index(min(counts))][0]
        raise VolumeError(
            f"{label}: {max(counts)} images are at some positions and {min(counts)} at that of "
            f"{_name(odd)}; images are missing, or several volumes are mixed: name a folder with one "
            "volume"
        )
    _check_even(groups, heights[order][starts], label)
    grid = np.empty((counts[0], len(groups)), object)
    for z, group in enumerate(groups):
        grid[:, z] = group
    return grid


def _in_order(frames: Sequence[Frame], label: str) -> NDArray[Any]:
    """Sort frames without positions by their numbers, or leave them in the order of the file names if they have none.

    Returns:
        The frames as an array (1, z).

    Raises:
        VolumeError: two have the same number.
    """
    grid = np.empty((1, len(frames)), object)
    grid[0] = found = sorted(frames, key=lambda frame: frame.order)
    if len({frame.order for frame in found}) > 1:
        for frame, after in pairwise(found):
            if frame.order == after.order:
                raise VolumeError(
                    f"{label}: {_name(frame)} and {_name(after)} have the same number and no position; several "
                    "volumes are mixed: name a folder with one volume"
                )
    return grid


def _name(frame: Frame) -> str:
    return frame.path.name


def _check_even(groups: Sequence[Sequence[Frame]], heights: NDArray[np.float64], label: str) -> None:
    """Raise if the slices of a volume are not equally spaced, or do not lie above each other along one line."""
    distances = np.diff(heights)
    if not len(distances):
        return
    usual = float(np.median(distances))
    odd = int(np.argmax(np.abs(distances - usual)))
    if abs(distances[odd] - usual) > EVEN * usual:
        raise VolumeError(
            f"{label}: slices are {usual:.4g} mm apart, but {_name(groups[odd][0])} and "
            f"{_name(groups[odd + 1][0])} are {distances[odd]:.4g} mm apart; slices are missing or "
            "unevenly spaced: complete the series, or name a folder with an evenly spaced part"
        )
    pixel = groups[0][0].pixel
    if pixel is None:
        return
    places = np.array([group[0].position for group in groups], dtype=float)
    steps = np.diff(places, axis=0)
    aside = np.linalg.norm(steps - np.median(steps, axis=0), axis=1)
    odd = int(np.argmax(aside))
    if aside[odd] > max(0.5 * min(pixel), EVEN * usual):  # a tilted gantry shifts all alike
        raise VolumeError(
            f"{label}: {_name(groups[odd + 1][0])} lies {aside[odd]:.4g} mm to the side of where it would follow "
            f"{_name(groups[odd][0])}; align the slices, or name a folder with a part that is aligned"
        )
