"""How a network reads volumes and their labels, in Python and in files.

Reading(step=2, intensity=(0, 255), ignore_label=7).to_plain()    {"step": 2, "intensity": [0, 255], "ignore_label": 7, ...}
"""

from __future__ import annotations

import operator
from collections.abc import Sequence  # noqa: TC003  # the command line reads it
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from evenslice._core import ConfigError, check_known, option, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evenslice.volumes.opening import VolumeLike
    from evenslice.volumes.volume import Volume
    from evenslice.volumes.windows import Scaling

# What checks and applies these options is imported where that happens: the command line is to start without it.
PLANES = ("z", "y", "x")


def refuse_without_labels(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first option that is not None, as there are no labels to which it would apply.

    Example:
        >>> refuse_without_labels({"label_values": None, "ignore_label": 255})
        Traceback (most recent call last):
        ...
        evenslice.ConfigError: ignore_label: has no effect without labels; give both
    """
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{option(name)}: has no effect without {option('labels')}; give both")


@dataclass(frozen=True, kw_only=True)
class LabelValues:
    """The meaning of each value in labels.

    Attributes:
        label_values: the value of each class in labels; None for 0, 1, 2 ...
        other_labels: any other value in labels is an "error" or "background", class 0.
        ignore_label: the value of voxels that do not count, whose class is ``IGNORED``; None if all count.
        instances: "sparse" or "dense" if labels number objects, whose boundaries within slices are then class 1: "sparse"
            for objects on a background, 0; "dense" for objects that fill the volume, where 0 is boundary too.

    Raises:
        ConfigError: a value is not a whole number, or there are none for the classes to have.

    Example:
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume
        >>> stored = open_volume(np.array([[[0, 255, 7]]], np.uint8))
        >>> LabelValues(label_values=[0, 255], ignore_label=7).class_volume(stored, 2)[0].tolist()
        [[0, 1, -100]]
        >>> LabelValues(label_values=[0, 7], other_labels="background").class_volume(stored, 2)[0].tolist()
        [[0, 0, 1]]
    """

    IGNORED: ClassVar[int] = -100
    """The class of voxels that count neither in a loss nor in scores; PyTorch's cross entropy leaves it out, too."""

    label_values: Sequence[int] | None = None
    other_labels: str = "error"
    ignore_label: int | None = None
    instances: str | None = None

    def __post_init__(self) -> None:
        check_known("other_labels", self.other_labels, ("error", "background"))
        values: Any = self.label_values
        if values is not None:
            if isinstance(values, str) or not hasattr(values, "__getitem__"):  # the order of a set is any
                raise ConfigError(f"{option('label_values', values)}: give a value for each class")
            whole = tuple(_whole("label_values", values, value) for value in values)
            object.__setattr__(self, "label_values", whole)
        if self.ignore_label is not None:
            number = _whole("ignore_label", self.ignore_label, self.ignore_label)
            object.__setattr__(self, "ignore_label", number)

    def refuse(self) -> None:
        """Raise ConfigError if an option is given, as there are no labels to which it would apply."""
        others = None if self.other_labels == "error" else self.other_labels
        refuse_without_labels({**self.to_dict(), "other_labels": others})

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
            check_known("instances", self.instances, ("sparse", "dense"))
            if classes not in {None, 2}:
                raise ConfigError(f"{given}: gives 2 classes, inside and boundary, not {classes}")
            if values is not None or self.other_labels != "error":
                other = "other_labels" if values is None else "label_values"
                raise ConfigError(f"{given}: object numbers are not class values; omit {option(other)}")
        elif self.ignore_label in known:
            number = known.index(self.ignore_label)
            raise ConfigError(f"{option('ignore_label', self.ignore_label)}: is the value of class {number}")

    def check_written(self) -> None:
        """Raise ConfigError if a segmentation, whose voxels are unsigned integers, cannot hold the values of the classes."""
        values = self.label_values
        if values and not 0 <= min(values) <= max(values) < 2**32:
            raise ConfigError(f"{option('label_values', values)}: segment writes 0 to 2^32 - 1")

    def of_classes(self, classes: int | None) -> tuple[int, ...]:
        """Return the value of each class; there are none if neither they nor the number of classes are known."""
        return tuple(range(classes or 0) if self.label_values is None else self.label_values)

    def to_dict(self) -> dict[str, Any]:
        """Return the options of labels as plain values, by their names.

        Example:
            >>> LabelValues(label_values=[0, 255]).to_dict()
            {'label_values': [0, 255], 'other_labels': 'error', 'ignore_label': None, 'instances': None}
        """
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(LabelValues)}

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
        from evenslice.volumes.labels import class_volume

        self.check(classes)
        values = self.of_classes(classes)
        return class_volume(stored, values, self.other_labels, self.ignore_label, self.instances)

    def background_volume(self, stored: Volume) -> Volume | None:
        """Return where stored values are the background of sparse objects, as a volume of bool; None for other labels.

        Example:
            >>> import numpy as np
            >>> from evenslice.volumes import open_volume
            >>> objects = open_volume(np.array([[[0, 0, 7]]], np.uint8))
            >>> LabelValues(instances="sparse").background_volume(objects)[0].tolist()
            [[True, True, False]]
        """
        from evenslice.volumes.volume import map_voxels

        return map_voxels(stored, partial(operator.eq, 0), bool) if self.instances == "sparse" else None


def _whole(name: str, given: Any, value: Any) -> int:
    try:
        if int(value) == value:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"{option(name, given)}: labels are whole numbers")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class Reading(LabelValues):
    """How a network reads volumes and their labels.

    Attributes:
        step: distance between neighbouring slices of a window.
        plane: the axis along which slices follow one another: "y", "x", or "z" (no change).
        intensity: the voxel values that become 0 and 1; None for percentiles of each volume.
        fill: the voxel value that replaces NaN and infinity, and masked voxels of an array; None if there must be none.
        label_values: the value of each class in labels; None for 0, 1, 2 ...
        other_labels: any other value in labels is an "error" or "background", class 0.
        ignore_label: the value of voxels that do not count; None if all count.
        instances: "sparse" or "dense" if labels number objects, whose boundaries within slices are then class 1: "sparse"
            for objects on a background, 0; "dense" for objects that fill the volume, where 0 is boundary too.
        overlapping: True if several channels of the output can be on at once, as with a sigmoid for each; False if
            they exclude each other. None if unknown: True if the network ends in a sigmoid, else False.

    Raises:
        ConfigError: an option is out of range, or options of labels contradict each other.

    Example:
        >>> Reading(step=2, label_values=[0, 255]).labels.label_values
        (0, 255)
    """

    step: int = 1
    plane: str = "z"
    intensity: tuple[float, float] | None = None
    fill: float | None = None
    overlapping: bool | None = None

    def __post_init__(self) -> None:
        from evenslice.volumes.windows import Scaling, two_numbers

        check_known("plane", self.plane, PLANES)
        if not isinstance(self.overlapping, bool | None):
            raise ConfigError(f"{option('overlapping', self.overlapping)}: must be True, False or None")
        low, high = (0, 1) if self.intensity is None else two_numbers(self.intensity)
        scaling = Scaling(low, high, fill=self.fill)  # checks them
        object.__setattr__(self, "step", whole_number("step", self.step, 1))
        object.__setattr__(self, "fill", scaling.fill)
        if self.intensity is not None:
            object.__setattr__(self, "intensity", (scaling.low, scaling.high))
        super().__post_init__()
        self.check()

    def open(self, volume: VolumeLike) -> Volume:
        """Open a volume in the plane of this reading, with the masked voxels of an array filled.

        Raises:
            VolumeError: it cannot be opened.
            ConfigError: the data type of a masked array does not hold the fill value.

        Example:
            >>> import numpy as np
            >>> Reading(plane="y", fill=9).open(np.ma.masked_equal([[[1, 2], [3, 4]]], 2))[0].tolist()
            [[1, 9]]
        """
        from evenslice.volumes.opening import is_array, open_volume

        plane = None if self.plane == "z" else self.plane  # which leaves it as it was opened
        return open_volume(volume, plane=plane, fill=self.fill if is_array(volume) else None)

    def fit_scaling(self, volume: Volume, *, seed: int = 0, blank: bool = True) -> Scaling:
        """Return the scaling of an opened volume: by ``intensity``, else by the percentiles of a sample.

        Args:
            volume: the volume to scale.
            seed: seed of the sample.
            blank: accept a constant volume, such as an empty tile, if ``intensity`` is given.

        Raises:
            ConfigError: ``intensity`` makes (almost) all voxels of a sample equal (not checked at an address).
            VolumeError: the sample is constant, and no ``intensity`` given, or not ``blank``; or there is NaN or infinity
                and no ``fill`` (searched for in the whole volume up to 4 GiB, else, and at an address, in the sample;
                ``WindowGrid`` checks each window).

        Example:
            >>> import numpy as np
            >>> from evenslice.volumes import open_volume
            >>> volume = open_volume(np.arange(1001, dtype=np.float32).reshape(7, 11, 13))
            >>> Reading().fit_scaling(volume)
            Scaling(low=5.0, high=995.0, fill=None)
        """
        from evenslice.volumes.windows import fit_scaling

        return fit_scaling(volume, self.intensity, self.fill, seed=seed, blank=blank)

    @property
    def labels(self) -> LabelValues:
        """The meaning of each value in labels."""
        return LabelValues(**self.to_dict())

    @classmethod
    def from_plain(cls, stated: Mapping[str, Any]) -> Self:
        """Return the reading that a file states among other entries, with defaults for missing ones.

        Raises:
            ValueError: an entry cannot be right.

        Example:
            >>> Reading.from_plain({"step": 2, "intensity": [0, 255], "anything": None}).intensity
            (0.0, 255.0)
        """
        names = [entry.name for entry in fields(cls)]
        try:
            return cls(**{name: stated[name] for name in names if stated.get(name) is not None})
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def to_plain(self) -> dict[str, Any]:
        """Return every option by name, as JSON holds it.

        Example:
            >>> Reading(intensity=(0, 255)).to_plain()["intensity"]
            [0.0, 255.0]
        """
        names = ("step", "plane", "intensity", "fill", *self.to_dict(), "overlapping")
        return {name: _plain(getattr(self, name)) for name in names}

    def with_given(self, given: Mapping[str, Any]) -> Self:
        """Return a copy with other options, where they are not None.

        Object numbers are not class values, so ``instances`` and ``label_values`` replace each other.

        Example:
            >>> Reading(step=2, label_values=[0, 5]).with_given({"instances": "dense"}).label_values
        """
        for name in given:
            check_known("reading", name, [entry.name for entry in fields(self)])
        stated = {name: value for name, value in given.items() if value is not None}
        if "instances" in stated:
            stated = {"label_values": None, "other_labels": "error", **stated}
        elif {"label_values", "other_labels"} & stated.keys():
            stated = {"instances": None, **stated}
        return replace(self, **stated)

    def without_labels(self) -> Self:
        """Return this without the options of labels, for volumes that have none.

        Example:
            >>> Reading(step=2, ignore_label=7).without_labels() == Reading(step=2)
            True
        """
        return replace(self, **asdict(LabelValues()))


def open_volumes(
    volume: VolumeLike | Sequence[VolumeLike], reading: Reading | Sequence[Reading] | None
) -> tuple[list[Volume], list[Reading]]:
    """Open one volume or several, and return with them how each is read; by default as ``Reading()`` says.

    Raises:
        ConfigError: there are several ways, but not one for each volume, or they differ in more than intensity and fill;
            or there is no volume.
        VolumeError: one cannot be opened.

    Example:
        >>> import numpy as np
        >>> volumes, readings = open_volumes([np.zeros((3, 4, 5)), np.zeros((1, 2, 3))], Reading(step=2))
        >>> [volume.shape for volume in volumes], [reading.step for reading in readings]
        ([(3, 4, 5), (1, 2, 3)], [2, 2])
    """
    from evenslice.volumes.opening import list_given

    given = list_given(volume)
    ways = [reading or Reading()] if isinstance(reading, Reading | None) else list(reading)
    if len({repr(replace(way, intensity=None, fill=None)) for way in ways}) > 1:
        raise ConfigError(f"{option('reading')}: several ways may differ in intensity and fill alone")
    if len(ways) not in (1, len(given)):
        count = "1 volume" if len(given) == 1 else f"{len(given)} volumes"
        raise ConfigError(f"{option('reading')}: {len(ways)} for {count}; give one for each, or one for all")
    ways *= len(given) // len(ways)
    return [way.open(item) for way, item in zip(ways, given, strict=True)], ways
