"""Labels of an image: what their values mean, whether they lie where it does, and where each class is found.

(stored,) = open_labels("mask.tif", [volume])
labels = LabelValues(label_values=[0, 255], ignore_label=128).class_volume(stored, 2)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, option
from evenslice.volumes.geometry import axis_codes, fit_spacing, is_invertible, millimetres
from evenslice.volumes.opening import is_masked, list_given, open_volume
from evenslice.volumes.volume import iterate_blocks, map_voxels, reslice, take_region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.volumes.opening import VolumeLike
    from evenslice.volumes.volume import Volume
    from evenslice.volumes.windows import Scaling

IGNORED = -100  # ``LabelValues.IGNORED``
HALF_VOXEL = 0.501  # and room for the rounding of single precision, in which NIfTI stores positions

MOST_CLASSES = 16  # that labels lack by mistake; more values are numbers of objects


def class_volume(
    stored: Volume, values: tuple[int, ...], other_labels: str, ignore: int | None, instances: str | None
) -> Volume:
    """Return the volume of classes of stored label values, of which there is one for each class unless there are none."""
    if instances is not None:
        find = partial(_boundaries, stored.path, instances == "dense", ignore)
        return map_voxels(stored, find, np.int64, around=True)
    lenient = other_labels == "background"
    if lenient and not values:
        raise ConfigError(f"{option('other_labels', other_labels)}: give {option('label_values')} too")
    return map_voxels(stored, partial(_classes, stored.path, values, lenient, ignore), np.int64)


def _refuse_fractions(stored: NDArray[Any], path: str) -> None:
    """Raise VolumeError if values are no labels at all: fractions, NaN and infinity."""
    if stored.dtype.kind == "f":
        wrong = ~np.isfinite(stored) | (np.floor(stored) != stored)
        if wrong.any():
            value = stored[wrong].flat[0]
            raise VolumeError(f"{path}: holds {value:g}, which is not a label; labels are whole numbers")


def _classes(
    path: str,
    values: tuple[int, ...],
    lenient: bool,
    ignore: int | None,
    stored: NDArray[Any],  # to be pickled
) -> NDArray[np.int64]:
    """Return the class of each stored value; without values of classes, the values themselves."""
    _refuse_fractions(stored, path)
    ignored = _is_ignored(stored, ignore)
    if not values:
        return np.where(ignored, IGNORED, stored.astype(np.int64))
    # Of two types of integers, NumPy may compare both as float64, to which large neighbours are equal.
    numbers = {"b": np.dtype(np.int64), "f": np.dtype(np.float64)}.get(stored.dtype.kind, stored.dtype)
    held = [(value, index) for index, value in enumerate(values) if _holds(numbers, value)]
    rising = np.array([value for value, _ in sorted(held)], numbers)
    place = np.searchsorted(rising, stored).clip(max=len(rising) - 1)
    known = rising[place] == stored if held else np.zeros(stored.shape, bool)
    if not lenient and not (known | ignored).all():
        raise _of_no_class(path, values, np.unique(stored[~(known | ignored)]))
    found = np.array([index for _, index in sorted(held)] or [0], np.int64)[place * known]
    return np.where(ignored, IGNORED, np.where(known, found, 0))


def _is_ignored(stored: NDArray[Any], ignore: int | None) -> NDArray[np.bool_]:
    ignored: NDArray[np.bool_] = stored == ignore
    return np.zeros(stored.shape, bool) if ignore is None else ignored


def _holds(dtype: np.dtype[Any], value: int) -> bool:
    """Return whether a data type has a whole number, so that voxels can be equal to it."""
    if dtype.kind == "f":
        return abs(value) <= float(np.finfo(dtype).max) and float(value) == value
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max)


def _of_no_class(path: str, values: tuple[int, ...], others: NDArray[Any]) -> VolumeError:
    if len(others) > MOST_CLASSES:
        return VolumeError(
            f"{path}: holds {len(others)} values or more beside those of the {len(values)} classes; if they number objects, "
            f"give {option('instances', 'sparse')} for objects on a background 0, or dense"
        )
    value = others[0].item()
    number, shown = int(value), str(+value).removesuffix(".0")
    # A mask, whose foreground is perhaps 255; no class is written as a negative number.
    mask = [values[0], number] if len(values) == 2 else None
    of_class = f"{option('label_values', mask)} or {option('classes')} if it is that of a class, "
    return VolumeError(
        f"{path}: holds the label value {shown}, but the {len(values)} classes have the values "
        f"{', '.join(map(str, values))}; set {of_class if number > 0 else ''}{option('ignore_label', number)} if such "
        f"voxels do not count, or take others as {option('other_labels', 'background')}"
    )


def _boundaries(
    path: str,
    dense: bool,
    ignore: int | None,
    numbers: NDArray[Any],  # to be pickled
) -> NDArray[np.int64]:
    """Return 1 where numbers of objects differ within a slice, two voxels wide, and 0 elsewhere.

    A voxel is on a boundary if its number is not that of a neighbour by an edge in its slice, as in the mode "thick" of
    scikit-image's ``find_boundaries``; of dense objects, what is 0 lies between them and is boundary itself. Next to
    ignored voxels there is none.
    """
    _refuse_fractions(numbers, path)
    counts = ~_is_ignored(numbers, ignore)
    found = (numbers == 0) & dense
    for axis in (1, 2):
        here, there = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        meet = (numbers[here] != numbers[there]) & counts[here] & counts[there]
        found[here] |= meet
        found[there] |= meet
    return np.where(counts, found, IGNORED).astype(np.int64, copy=False)


def open_labels(labels: VolumeLike | Sequence[VolumeLike], volumes: Sequence[Volume]) -> list[Volume]:
    """Open the labels of volumes, one for each, sliced along the same axis; of a file of a whole image, the region of it.

    Labels that lie elsewhere in space than their image, by the affines that the files of both state, are refused. Not
    compared are labels whose axes the user has named, and those with x, y and z along the axes of space from its origin,
    as programs write that know of no place. Unless their voxels have size 1, such labels are compared all the same with an
    image that fills the same box or its mirror image: one of the two then has axes that were reversed or exchanged.

    Raises:
        ConfigError: their number is not that of the volumes.
        VolumeError: they cannot be read, or have another shape, or a corner voxel lies more than half a voxel from that of
            the image.

    Example:
        >>> import numpy as np
        >>> image = open_volume(np.zeros((2, 4, 4)))
        >>> open_labels(np.zeros((2, 4, 5), np.uint8), [image])
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: labels of shape (2, 4, 5) do not fit <array> of shape (2, 4, 4)
    """
    given = list_given(labels)
    if len(given) != len(volumes):
        count = "1 volume" if len(volumes) == 1 else f"{len(volumes)} volumes"
        raise ConfigError(f"{len(given)} label volumes for {count}; give one for each")
    return [_open_labels(item, volume) for item, volume in zip(given, volumes, strict=True)]


def _open_labels(labels: VolumeLike, volume: Volume) -> Volume:
    if is_masked(labels):
        raise VolumeError(f"<array>: labels are masked; fill them with the value of {option('ignore_label')}")
    opened = open_volume(labels, plane=volume.plane)
    of_file = volume.region is not None and isinstance(labels, str | os.PathLike)
    if of_file and reslice(opened, "z").shape == volume.whole_shape:
        opened = take_region(opened, [slice(*bounds) for bounds in volume.region or ()])
    if opened.shape != volume.shape:
        raise VolumeError(
            f"{opened.path}: labels of shape {opened.shape} do not fit {volume.path} of shape {volume.shape}"
        )
    _check_place(opened, volume)
    return opened


def _check_place(labels: Volume, volume: Volume) -> None:
    """Raise VolumeError if labels of the shape of an image lie elsewhere."""
    if labels.affine is None or volume.affine is None or not is_invertible(volume.affine):
        return
    if labels.origin.axes_given or _is_unplaced(labels, volume):
        return
    gaps = [
        _corner_gaps(own, other, labels.shape)
        for own, other in product(_placements(labels), _placements(volume))
    ]
    if not any((voxels <= HALF_VOXEL).all() for voxels, _ in gaps):
        raise VolumeError(_describe(labels, volume, float(gaps[0][1].max())))


def _is_unplaced(labels: Volume, volume: Volume) -> bool:
    """Return whether the file of labels, of which they may be a part, states only what stands for no place.

    That is all that a format can state which, as MetaImage, stores an origin in any case.
    """
    own, other = (reslice(item._whole, "z") for item in (labels, volume))  # noqa: SLF001  # as opened
    affine = np.asarray(own.affine)
    sizes = np.abs(affine.diagonal()[:3])
    if not np.allclose(affine, np.diag(affine.diagonal()), rtol=0, atol=1e-6 * sizes.min()):
        return False
    if np.allclose(sizes, 1.0 if own.unit is None else millimetres(own.unit)):
        return True
    return not np.allclose(_reach(own), _reach(other), rtol=0, atol=HALF_VOXEL * sizes.min())


def _reach(volume: Volume) -> NDArray[np.float64]:
    """Return how near and how far from the origin voxels lie along each axis of space, to whichever side."""
    distances = np.abs(np.asarray(volume.affine)[:3] @ _corners(volume.shape))
    return np.array([distances.min(axis=1), distances.max(axis=1)])


def _corners(shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return the corner voxels (x, y, z, 1) of a volume of shape (z, y, x), one a column."""
    return np.array([[*corner, 1] for corner in product(*((0, length - 1) for length in shape[::-1]))]).T


def _placements(volume: Volume) -> list[NDArray[np.float64]]:
    """Return the affine that a file states, and that with the spacing of the user, as ``segment`` writes it."""
    if volume.affine is None or volume.spacing is None or not is_invertible(volume.affine):
        return [] if volume.affine is None else [volume.affine]
    return [volume.affine, fit_spacing(volume.affine, volume.spacing, volume.unit)]


def _corner_gaps(
    own: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far the corner voxels under one affine lie from those under another: in voxels of that, and in mm."""
    gaps = (own - other)[:3] @ _corners(shape)
    return np.abs(np.linalg.solve(other[:3, :3], gaps)), np.linalg.norm(gaps, axis=0)


def _describe(labels: Volume, volume: Volume, distance: float) -> str:
    own, other = (axis_codes(np.asarray(reslice(item, "z").affine)) for item in (labels, volume))
    names = labels._whole._source().names or "zyx"  # noqa: SLF001  # as the file states them
    differs = (
        f"lies up to {distance:.4g} mm from {volume.path}"
        if own == other
        else f"its axes x, y, z run to {own}, those of {volume.path} to {other}"
    )
    return (
        f"{labels.path}: {differs}; resample it onto the image or, if the two correspond voxel by voxel as stored, open "
        f"it with {option('label_axes', names)}"
    )


@dataclass(frozen=True)
class LabelledVolume:
    """Consecutive slices of an image with their labels.

    Attributes:
        name: the image as the configuration names it, with the range of slices if it is part of a file.
        volume: the image, (z, y, x).
        labels: the class of each of its voxels, int64, 0 to classes - 1, or ``LabelValues.IGNORED``.
        scaling: the map from voxel values to 0..1.
        counts: (classes,) number of voxels of each class.
        positions: for each class the sorted flat indices (z, y, x in C order) of a random sample of its voxels; empty
            for class 0, the background, and of no class if there is no such sample.
        background: where sparse objects are not, whose boundaries are the labels; None for other labels.
    """

    name: str
    volume: Volume
    labels: Volume
    scaling: Scaling
    counts: NDArray[np.int64]
    positions: tuple[NDArray[np.int64], ...] = ()
    background: Volume | None = None

    @property
    def classes(self) -> int:
        """The number of classes, including background."""
        return len(self.counts)


def index_classes(
    labels: Volume, classes: int, *, keep: int, seed: int = 0
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]]:
    """Count the voxels of each class and sample those of the foreground, reading the labels once.

    Args:
        labels: a volume of class numbers, as from ``LabelValues.class_volume``.
        classes: number of classes.
        keep: size limit of the sample of each foreground class; each voxel is equally likely.
        seed: seed of the sample.

    Returns:
        ``counts`` and ``positions`` of a ``LabelledVolume``.

    Raises:
        VolumeError: a value belongs to no class, or the file cannot be read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> index_classes(open_volume(np.array([[[0, 1], [1, 0]]])), 2, keep=10)
        (array([2, 2]), (array([], dtype=int64), array([1, 2])))
    """
    random = np.random.default_rng(seed)
    counts = np.zeros(classes, np.int64)
    # Of each class, the voxels with the smallest of random keys.
    samples = [(np.empty(0), np.empty(0, np.int64)) for _ in range(classes)]
    for block in iterate_blocks(labels):
        voxels = labels[block]
        found = np.bincount(voxels[voxels >= 0], minlength=classes)  # the others are ignored
        counts += found
        for number in np.flatnonzero(found[1:]) + 1 if keep else ():
            places = np.nonzero(voxels == number)
            shifted = [inside + part.start for inside, part in zip(places, block, strict=True)]
            keys = np.concatenate([samples[number][0], random.random(found[number])])
            items = np.concatenate([samples[number][1], np.ravel_multi_index(shifted, labels.shape)])
            if len(items) > keep:
                chosen = np.argpartition(keys, keep)[:keep]
                keys, items = keys[chosen], items[chosen]
            samples[number] = keys, items
    return counts, tuple(np.sort(items) for _, items in samples)
