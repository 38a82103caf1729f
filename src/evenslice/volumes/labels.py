"""Labels of an image: what their values mean, whether they lie where it does, and where each class is found.

labels = LabelValues(label_values=[0, 255], ignore_label=128).class_volume(open_labels("mask.tif", volume), 2)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from evenslice._core import ConfigError, VolumeError, check_known, option
from evenslice.volumes.blocks import iterate_blocks
from evenslice.volumes.geometry import axis_codes, fit_spacing, is_invertible, millimetres
from evenslice.volumes.opening import is_masked, list_given, open_volume
from evenslice.volumes.volume import map_voxels, reads_around, reslice, take_region

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from evenslice.volumes.opening import VolumeLike
    from evenslice.volumes.scaling import Scaling
    from evenslice.volumes.volume import Volume

IGNORED = -100
"""The class number of voxels that count neither in a loss nor in scores; PyTorch's cross entropy leaves it out, too."""

OtherLabels = Literal["error", "background"]
"""What label values are that belong to no class: an error, or class 0."""

Instances = Literal["sparse", "dense"]
"""What 0 is in labels that number objects: the background of "sparse" ones, or what lies between "dense" ones."""

_LARGEST_WRITTEN = 2**32 - 1

HALF_VOXEL = (
    0.501  # half of one, and room for the rounding of single precision, in which NIfTI stores positions
)

_BLOCK_BYTES = 2**22
_BOUNDARY_BYTES = 2**25  # of a block that is read with chunks around it, so that few are decoded twice


def refuse_without_labels(**options: Any) -> None:
    """Raise ConfigError for the first option that is not None, as there are no labels to which it would apply.

    Example:
        >>> refuse_without_labels(label_values=None, ignore_label=255)
        Traceback (most recent call last):
        ...
        evenslice.ConfigError: ignore_label: has no effect without labels; give both
    """
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{option(name)}: has no effect without {option('labels')}; give both")


@dataclass(frozen=True, kw_only=True)
class LabelValues:
    """What the values of labels mean; fields are named as the arguments of ``evaluate``, ``audit`` and ``SliceWindows``.

    Attributes:
        label_values: the value of each class; None for 0, 1, 2 ...
        other_labels: what all other values are: "error", or "background", which is class 0.
        ignore_label: the value of voxels that do not count, whose class is ``IGNORED``; None if all count.
        instances: "sparse" or "dense" if the values number objects, whose boundaries are class 1; see
            ``_boundaries``.

    Raises:
        ConfigError: a value is not a whole number, or there are none for the classes to have.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> stored = open_volume(np.array([[[0, 255, 7]]], np.uint8))
        >>> LabelValues(label_values=[0, 255], ignore_label=7).class_volume(stored, 2)[0].tolist()
        [[0, 1, -100]]
        >>> LabelValues(label_values=[0, 7], other_labels="background").class_volume(stored, 2)[0].tolist()
        [[0, 0, 1]]
    """

    label_values: Sequence[int] | None = None
    other_labels: str = "error"
    ignore_label: int | None = None
    instances: str | None = None

    def __post_init__(self) -> None:
        check_known("other_labels", self.other_labels, get_args(OtherLabels))
        values: Any = self.label_values
        if values is not None:
            # The order of a set is any.
            if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
                raise ConfigError(
                    f"{option('label_values', values)}: give the value of each class, as 0, 255"
                )
            whole = tuple(_whole("label_values", values, value) for value in values)
            object.__setattr__(self, "label_values", whole)
        if self.ignore_label is not None:
            number = _whole("ignore_label", self.ignore_label, self.ignore_label)
            object.__setattr__(self, "ignore_label", number)

    def refuse(self) -> None:
        """Raise ConfigError if an option is given, as there are no labels to which it would apply."""
        others = None if self.other_labels == "error" else self.other_labels
        refuse_without_labels(**{**asdict(self), "other_labels": others})

    def check(self, classes: int | None = None) -> None:
        """Raise ConfigError if the options contradict each other, or do not suit the number of classes, if that is known."""
        values, known = self.label_values, self.of_classes(classes)
        if values is not None:
            count = max(len(values), 1) if classes is None else classes
            if not len(set(values)) == len(values) == count:
                each = "each class" if classes is None else f"each of the {classes} classes"
                raise ConfigError(f"{option('label_values', values)}: give a different value for {each}")
        if self.instances is not None:
            given = option("instances", self.instances)
            check_known("instances", self.instances, get_args(Instances))
            if classes not in {None, 2}:
                raise ConfigError(f"{given}: gives 2 classes, inside and boundary, not {classes}")
            if values is not None or self.other_labels != "error":
                other = "other_labels" if values is None else "label_values"
                raise ConfigError(f"{given}: object numbers are not class values; omit {option(other)}")
        elif self.ignore_label in known:
            number = known.index(self.ignore_label)
            raise ConfigError(f"{option('ignore_label', self.ignore_label)}: is the value of class {number}")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values, by their names.

        Example:
            >>> LabelValues(label_values=[0, 255]).to_dict()
            {'label_values': [0, 255], 'other_labels': 'error', 'ignore_label': None, 'instances': None}
        """
        values = self.label_values
        return {**asdict(self), "label_values": None if values is None else list(values)}

    def check_written(self) -> None:
        """Raise ConfigError if a segmentation, whose voxels are unsigned integers, cannot hold the values of the classes."""
        values = self.label_values
        if values and not 0 <= min(values) <= max(values) <= _LARGEST_WRITTEN:
            raise ConfigError(
                f"{option('label_values', values)}: segment writes these values as unsigned integers"
            )

    def class_volume(self, stored: Volume, classes: int | None) -> Volume:
        """Return the volume of classes, 0 to ``classes`` - 1, of stored label values.

        Args:
            stored: label values, whole numbers of any data type.
            classes: number of classes; None for as many as ``label_values`` or, without these, for class numbers that
                are not checked.

        Returns:
            A volume of int64, which raises VolumeError on reading a value of no class.

        Raises:
            ConfigError: see ``check``; or all others are background, but there are no classes to be other than.
        """
        self.check(classes)
        if self.instances is not None:
            axes = stored._stored.arrangement.zyx[1:]  # noqa: SLF001  # set by `open_volume`
            dense = self.instances == "dense"
            find = partial(_boundaries, path=stored.path, axes=axes, dense=dense, ignore=self.ignore_label)
            return map_voxels(stored, find, np.int64, around=True)
        known, lenient = self.of_classes(classes), self.other_labels == "background"
        if lenient and not known:
            raise ConfigError(
                f"{option('other_labels', self.other_labels)}: give {option('label_values')} too"
            )
        find = partial(_classes, path=stored.path, values=known, lenient=lenient, ignore=self.ignore_label)
        return map_voxels(stored, find, np.int64)

    def background_volume(self, stored: Volume) -> Volume | None:
        """Return where stored values are the background of sparse objects, as a volume of bool; None for other labels.

        Example:
            >>> from evenslice.volumes import open_volume
            >>> objects = open_volume(np.array([[[0, 0, 7]]], np.uint8))
            >>> LabelValues(instances="sparse").background_volume(objects)[0].tolist()
            [[True, True, False]]
            >>> LabelValues(instances="dense").background_volume(objects) is None
            True
        """
        return map_voxels(stored, _is_background, np.bool_) if self.instances == "sparse" else None

    def of_classes(self, classes: int | None) -> tuple[int, ...]:
        """Return the value of each class; none if neither the values nor the number of classes are known."""
        return tuple(range(classes or 0) if self.label_values is None else self.label_values)


def _is_background(stored: NDArray[Any]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = stored == 0
    return found


def _whole(name: str, given: Any, value: Any) -> int:
    try:
        if int(value) == value:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"{option(name, given)}: labels are whole numbers")


def _refuse_fractions(stored: NDArray[Any], path: str) -> None:
    """Raise VolumeError if values are no labels at all: fractions, NaN and infinity."""
    if stored.dtype.kind == "f":
        wrong = ~np.isfinite(stored) | (np.floor(stored) != stored)
        if wrong.any():
            raise VolumeError(
                f"{path}: holds {stored[wrong].flat[0].item():g}, which is not a label; labels are whole numbers"
            )


def _classes(
    stored: NDArray[Any], path: str, values: tuple[int, ...], *, lenient: bool, ignore: int | None
) -> NDArray[np.int64]:
    """Return the class of each stored value; without values of classes, the values themselves."""
    _refuse_fractions(stored, path)
    ignored = np.zeros(stored.shape, bool) if ignore is None else stored == ignore
    if not values:
        return np.where(ignored, IGNORED, stored.astype(np.int64))
    # Of two types of integers, NumPy may compare both as float64, to which large neighbours are equal.
    numbers = {"b": np.dtype(np.int64), "f": np.dtype(np.float64)}.get(stored.dtype.kind, stored.dtype)
    held = [(value, index) for index, value in enumerate(values) if _holds(numbers, value)]
    rising = np.array([value for value, _ in sorted(held)], numbers)
    place = np.searchsorted(rising, stored).clip(max=len(rising) - 1)
    known = rising[place] == stored if held else np.zeros(stored.shape, bool)
    if not lenient and not (known | ignored).all():
        raise _of_no_class(path, values, stored[~(known | ignored)].flat[0].item())
    found = np.array([index for _, index in sorted(held)] or [0], np.int64)[place * known]
    return np.where(ignored, IGNORED, np.where(known, found, 0))


def _holds(dtype: np.dtype[Any], value: int) -> bool:
    """Return whether a data type has a whole number, so that voxels can be equal to it."""
    if dtype.kind == "f":
        return abs(value) <= float(np.finfo(dtype).max) and float(value) == value
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max)


def _of_no_class(path: str, values: tuple[int, ...], value: float) -> VolumeError:
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
    numbers: NDArray[Any], path: str, axes: tuple[int, ...], *, dense: bool, ignore: int | None
) -> NDArray[np.int64]:
    """Return 1 where numbers of objects differ within a slice, two voxels wide, and 0 elsewhere.

    A voxel is on a boundary if its number is not that of a neighbour by an edge in its slice, as in the mode "thick" of
    scikit-image's ``find_boundaries``; of dense objects, what is 0 lies between them and is boundary itself. Next to
    ignored voxels there is none.
    """
    _refuse_fractions(numbers, path)
    counts = np.ones(numbers.shape, bool) if ignore is None else numbers != ignore
    found = (numbers == 0) & dense
    for axis in axes:
        here, there = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        meet = (numbers[here] != numbers[there]) & counts[here] & counts[there]
        found[here] |= meet
        found[there] |= meet
    return np.where(counts, found, IGNORED).astype(np.int64, copy=False)


def open_labels(labels: VolumeLike, volume: Volume) -> Volume:
    """Open the labels of a volume, sliced along the same axis; of a file of the whole image, the region of the volume.

    Raises:
        VolumeError: they cannot be read, or have another shape, or lie elsewhere (see ``check_place``).

    Example:
        >>> import numpy as np
        >>> image = open_volume(np.zeros((2, 4, 4)))
        >>> open_labels(np.zeros((2, 4, 5), np.uint8), image)
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: labels of shape (2, 4, 5) do not fit <array> of shape (2, 4, 4)
    """
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
    check_place(opened, volume)
    return opened


def open_several_labels(labels: VolumeLike | Sequence[VolumeLike], volumes: Sequence[Volume]) -> list[Volume]:
    """Open the label volumes of volumes, one for each.

    Raises:
        ConfigError: their number is not that of the volumes.
        VolumeError: one cannot be read, or does not have the shape or the place of its volume.
    """
    given = list_given(labels)
    if len(given) != len(volumes):
        count = "1 volume" if len(volumes) == 1 else f"{len(volumes)} volumes"
        raise ConfigError(f"{len(given)} label volumes for {count}; give one for each")
    return [open_labels(item, volume) for item, volume in zip(given, volumes, strict=True)]


def check_place(labels: Volume, volume: Volume) -> None:
    """Raise if labels of the shape of an image lie elsewhere in space, by the affines that the files of both state.

    Not compared are labels whose axes the user has named, and those with x, y and z along the axes of space from its origin,
    as programs write that know of no place. Unless their voxels have size 1, such labels are compared all the same with an
    image that fills the same box or its mirror image: one of the two then has axes that were reversed or exchanged.

    Raises:
        VolumeError: a corner voxel of the labels lies more than half a voxel from that of the image.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> check_place(open_volume(np.zeros((2, 3, 4))), open_volume(np.ones((2, 3, 4))))
    """
    if labels.affine is None or volume.affine is None or not is_invertible(volume.affine):
        return
    if labels.origin.axes_given or not (labels.placed and volume.placed) or _is_unplaced(labels, volume):
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
class ClassIndex:
    """How often each class occurs, and where to find some of its voxels.

    Attributes:
        counts: (classes,) number of voxels of each class.
        positions: for each class the sorted flat indices (z, y, x in C order) of a random sample of its voxels; empty
            for class 0, the background, and for test data.
    """

    counts: NDArray[np.int64]
    positions: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class LabelledVolume:
    """Consecutive slices of an image with their labels.

    Attributes:
        name: the image as the configuration names it, with the range of slices if it is part of a file.
        volume: the image, (z, y, x).
        labels: the class of each of its voxels, int64, 0 to classes - 1, or ``IGNORED``.
        scaling: the map from voxel values to 0..1.
        index: how often and where each class occurs.
        background: where sparse objects are not, whose boundaries are the labels; None for other labels.
    """

    name: str
    volume: Volume
    labels: Volume
    scaling: Scaling
    index: ClassIndex
    background: Volume | None = None

    @property
    def classes(self) -> int:
        """The number of classes, including background."""
        return len(self.index.counts)


def index_classes(labels: Volume, classes: int, *, keep: int, seed: int = 0) -> ClassIndex:
    """Count the voxels of each class and sample those of the foreground, reading the labels once.

    Args:
        labels: a volume of class numbers, as from ``LabelValues.class_volume``.
        classes: number of classes.
        keep: size limit of the sample of each foreground class; each voxel is equally likely.
        seed: seed of the sample.

    Raises:
        VolumeError: a value belongs to no class, or the file cannot be read.

    Example:
        >>> from evenslice.volumes import open_volume
        >>> index_classes(open_volume(np.array([[[0, 1], [1, 0]]])), 2, keep=10)
        ClassIndex(counts=array([2, 2]), positions=(array([], dtype=int64), array([1, 2])))
    """
    random = np.random.default_rng(seed)
    counts = np.zeros(classes, np.int64)
    samples = [_Sample(keep if number else 0, random) for number in range(classes)]
    for block in _blocks(labels):
        voxels = labels[block]
        found = np.bincount(voxels[voxels >= 0], minlength=classes)  # the others are ignored
        counts += found
        for number in np.flatnonzero(found):
            if samples[number].size:
                places = np.nonzero(voxels == number)
                shifted = [inside + part.start for inside, part in zip(places, block, strict=True)]
                samples[number].add(np.ravel_multi_index(shifted, labels.shape))
    return ClassIndex(counts, tuple(np.sort(sample.items) for sample in samples))


def check_classes(labels: Volume) -> None:
    """Read labels once, so that a value of no class is found before anything is computed.

    Raises:
        VolumeError: a value belongs to no class, or the file cannot be read.

    Example:
        >>> from evenslice.volumes import LabelValues, open_volume
        >>> check_classes(LabelValues().class_volume(open_volume(np.array([[[0, 1, 7]]])), 2))
        Traceback (most recent call last):
        ...
        evenslice.VolumeError: <array>: holds the label value 7, but the 2 classes have the values 0, 1; set
        label_values=[0, 7] or classes if it is that of a class, ignore_label=7 if such voxels do not count, or take
        others as other_labels='background'
    """
    for block in _blocks(labels):
        labels[block]


def _blocks(labels: Volume) -> Iterator[tuple[slice, slice, slice]]:
    return iterate_blocks(labels, _BOUNDARY_BYTES if labels.chunks and reads_around(labels) else _BLOCK_BYTES)


class _Sample:
    """A uniform sample of bounded size of items that arrive in pieces: those with the smallest random keys."""

    def __init__(self, size: int, random: np.random.Generator) -> None:
        self.size = size
        self.items = np.empty(0, np.int64)
        self._keys = np.empty(0)
        self._random = random

    def add(self, items: NDArray[np.int64]) -> None:
        keys = np.concatenate([self._keys, self._random.random(len(items))])
        items = np.concatenate([self.items, items])
        if len(items) > self.size:
            chosen = np.argpartition(keys, self.size)[: self.size]
            keys, items = keys[chosen], items[chosen]
        self._keys, self.items = keys, items
