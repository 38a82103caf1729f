"""What the values of labels mean: the class of each, what all others are, what does not count, and numbered objects.

labels = LabelValues(label_values=[0, 255], ignore_label=128).class_volume(open_volume("mask.tif"), 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from evenslice._core import ConfigError, VolumeError, check_known, option
from evenslice.volumes.boundaries import IGNORED, Instances, boundary_volume, find_fractions, no_label
from evenslice.volumes.views import map_voxels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.volumes.volume import Volume

__all__ = ["LabelValues", "OtherLabels", "refuse_without_labels"]

OtherLabels = Literal["error", "background"]
"""What label values are that belong to no class: an error, or class 0."""

_MOST_NUMBERED = 31  # larger values, such as 255, are rather those of few classes than the number of a class
_LARGEST_WRITTEN = 2**32 - 1


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
            ``boundary_volume``.

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
        values: Any = self.label_values
        ignored = self.ignore_label
        if values is not None:
            # The order of a set is any.
            if (
                not isinstance(values, Sequence | np.ndarray)
                or isinstance(values, str)
                or not np.ndim(values)
            ):
                raise ConfigError(
                    f"{option('label_values', values)}: give the value of each class, such as "
                    f"{option('label_values', [0, 255])}"
                )
            whole = tuple(_whole("label_values", values, value) for value in values)
            object.__setattr__(self, "label_values", whole)
        if ignored is not None:
            object.__setattr__(self, "ignore_label", _whole("ignore_label", ignored, ignored))

    def refuse(self) -> None:
        """Raise ConfigError if an option is given, as there are no labels to which it would apply."""
        check_known("other_labels", self.other_labels, get_args(OtherLabels))
        others = None if self.other_labels == "error" else self.other_labels
        refuse_without_labels(**{**asdict(self), "other_labels": others})

    def check(self, classes: int | None = None) -> None:
        """Raise ConfigError if the options contradict each other, or do not suit the number of classes, if that is known."""
        check_known("other_labels", self.other_labels, get_args(OtherLabels))
        values = self.label_values
        if values is not None:
            count = max(len(values), 1) if classes is None else classes
            if not len(set(values)) == len(values) == count:
                each = "each class" if classes is None else f"each of the {classes} classes"
                raise ConfigError(f"{option('label_values', values)}: give a different value for {each}")
        if self.instances is not None:
            self._check_instances(classes)
        elif self.ignore_label in (known := self.of_classes(classes)):
            raise ConfigError(
                f"{option('ignore_label', self.ignore_label)}: is the value of class "
                f"{known.index(self.ignore_label)}; give one that is of none"
            )

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
                f"{option('label_values', values)}: segment writes these values as unsigned integers; replace "
                f"those below 0 or above {_LARGEST_WRITTEN}, in the labels too"
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
            return boundary_volume(stored, self.instances, ignore=self.ignore_label)
        known, lenient = self.of_classes(classes), self.other_labels == "background"
        if lenient and not known:
            raise ConfigError(
                f"{option('other_labels', self.other_labels)}: others than which? give "
                f"{option('label_values', [0, 5])}, too"
            )
        return map_voxels(stored, _ClassMap(stored.path, known, lenient, self.ignore_label), np.int64)

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

    def _check_instances(self, classes: int | None) -> None:
        """Raise ConfigError if numbered objects are to have other classes than inside and boundary."""
        given = option("instances", self.instances)
        check_known("instances", self.instances, get_args(Instances))
        if classes not in {None, 2}:
            raise ConfigError(f"{given}: gives 2 classes, inside and boundary, not {classes}")
        if self.label_values is not None or self.other_labels != "error":
            other = "other_labels" if self.label_values is None else "label_values"
            raise ConfigError(f"{given}: object numbers are not class values; omit {option(other)}")


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


def _holds(dtype: np.dtype[Any], value: int) -> bool:
    """Return whether a data type has a whole number, so that voxels can be equal to it."""
    if dtype.kind == "f":
        try:
            return float(value) == value
        except OverflowError:
            return False
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max)


@dataclass(frozen=True)
class _ClassMap:
    """Maps stored values to class numbers."""

    path: str
    values: tuple[int, ...]
    lenient: bool = False
    ignore: int | None = None

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.int64]:
        classes, known = self._classes(stored)
        if self.ignore is not None:
            ignored = stored == self.ignore
            classes[ignored] = IGNORED
            known = known | ignored
        wrong = ~known
        if self.lenient:
            classes[wrong] = 0
            wrong = wrong & find_fractions(stored)
        if wrong.any():
            raise self._wrong(stored[wrong].flat[0].item())
        return classes

    def _classes(self, stored: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the class of each value, and whether it has one."""
        if not self.values:
            whole = ~find_fractions(stored)
            return np.where(whole, stored, 0).astype(np.int64), whole
        # Of two types of integers, NumPy may compare both as float64, to which large neighbours are equal.
        numbers = {"b": np.dtype(np.int64), "f": np.dtype(np.float64)}.get(stored.dtype.kind, stored.dtype)
        order = sorted(
            (index for index, value in enumerate(self.values) if _holds(numbers, value)),
            key=self.values.__getitem__,
        )
        if not order:
            return np.zeros(stored.shape, np.int64), np.zeros(stored.shape, bool)
        rising = np.array([self.values[index] for index in order], numbers)
        place = np.searchsorted(rising, stored).clip(max=len(rising) - 1)
        classes = np.array(order, np.int64)[place]
        return classes, rising[place] == stored

    def _wrong(self, value: float) -> VolumeError:
        if self.lenient or not self.values or value % 1:  # a fraction, NaN or infinity, whatever the options
            return no_label(self.path, value)
        shown = str(+value).removesuffix(".0")  # in full
        return VolumeError(
            f"{self.path}: holds the label value {shown}, but the {len(self.values)} classes have the values "
            f"{', '.join(map(str, self.values))}; {self._remedies(value)}, or take others as "
            f"{option('other_labels', 'background')}"
        )

    def _remedies(self, value: float) -> str:
        """Name the options under which a value would be that of a class, or of voxels that do not count."""
        number = int(value)
        void = f"{option('ignore_label', number)} if such voxels do not count"
        if number < 0:  # no class is written as a negative number
            return f"set {void}"
        numbered = self.values == tuple(range(len(self.values))) and 0 < number <= _MOST_NUMBERED
        if len(self.values) == 2:  # a mask, whose foreground is perhaps 255
            mask = f"set {option('label_values', [self.values[0], number])} if it is that of a class"
            return (
                f"{mask}, or build the network with {option('classes', number + 1)} if there are as many"
                if numbered
                else f"{mask}, {void}"
            )
        if numbered:
            return f"build the network with {option('classes', number + 1)} if there are as many"
        return f"set {option('label_values')} if it is that of a class, {void}"
