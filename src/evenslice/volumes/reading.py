"""How a network reads volumes and their labels, in Python and in files.

Reading(step=2, intensity=(0, 255), ignore_label=7).to_plain()    {"step": 2, "intensity": [0, 255], "ignore_label": 7, ...}
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  # the command line reads it
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from evenslice._core import ConfigError, check_known, option, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evenslice.volumes.labels import LabelValues
    from evenslice.volumes.scaling import Scaling
    from evenslice.volumes.volume import Volume

# What checks and applies these options is imported where that happens: the command line is to start without it.
OF_LABELS = ("label_values", "other_labels", "ignore_label", "instances")
PLANES = ("z", "y", "x")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a network reads volumes and their labels.

    Attributes:
        step: distance between neighbouring slices of a window.
        plane: the axis along which slices follow one another: "y", "x", or "z", which leaves a volume as it was opened.
        intensity: the voxel values that become 0 and 1; None for percentiles of each volume.
        fill: the voxel value that replaces NaN and infinity, and masked voxels of an array; None if there must be none.
        label_values: the value of each class in labels; None for 0, 1, 2 ...
        other_labels: what all other values in labels mean: an "error", or "background", which is class 0.
        ignore_label: the value of voxels that do not count; None if all count.
        instances: "sparse" or "dense" if labels number objects, whose boundaries within slices are then class 1: "sparse"
            for objects on a background, 0; "dense" for objects that fill the volume, where 0 is boundary too.
        overlapping: whether several channels of the output can be on at once, as with a sigmoid for each, and are classes of
            their own; False if they exclude each other. None if that is not known: a sigmoid at the end of the network then
            tells, else they are assumed to exclude each other.

    Raises:
        ConfigError: an option is out of range, or those of labels contradict each other.

    Example:
        >>> Reading(step=2, label_values=[0, 255]).labels.label_values
        (0, 255)
    """

    step: int = 1
    plane: str = "z"
    intensity: tuple[float, float] | None = None
    fill: float | None = None
    label_values: Sequence[int] | None = None
    other_labels: str = "error"
    ignore_label: int | None = None
    instances: str | None = None
    overlapping: bool | None = None

    def __post_init__(self) -> None:
        from evenslice.volumes.scaling import Scaling, two_numbers

        check_known("plane", self.plane, PLANES)
        if not isinstance(self.overlapping, bool | None):
            raise ConfigError(f"{option('overlapping', self.overlapping)}: must be True, False or None")
        low, high = (0, 1) if self.intensity is None else two_numbers(self.intensity)
        scaling = Scaling(low, high, fill=self.fill)  # checks them
        object.__setattr__(self, "step", whole_number("step", self.step, 1))
        object.__setattr__(self, "fill", scaling.fill)
        if self.intensity is not None:
            object.__setattr__(self, "intensity", (scaling.low, scaling.high))
        labels = self.labels
        labels.check()
        object.__setattr__(self, "label_values", labels.label_values)
        object.__setattr__(self, "ignore_label", labels.ignore_label)

    @property
    def labels(self) -> LabelValues:
        """What the values of labels mean."""
        from evenslice.volumes.labels import LabelValues

        return LabelValues(**{name: getattr(self, name) for name in OF_LABELS})

    @classmethod
    def from_plain(cls, stated: Mapping[str, Any]) -> Self:
        """Return the way of reading that a file states among other entries; those that it lacks have their defaults.

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
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    def with_given(self, **given: Any) -> Self:
        """Return this with other options, where they are not None.

        Numbers of objects are no values of classes, so either option takes the place of the other.

        Example:
            >>> Reading(step=2, label_values=[0, 5]).with_given(instances="dense", step=None).label_values
        """
        stated = {name: value for name, value in given.items() if value is not None}
        if "instances" in stated:
            stated = {"label_values": None, "other_labels": "error", **stated}
        elif {"label_values", "other_labels"} & stated.keys():
            stated = {"instances": None, **stated}
        return replace(self, **stated)

    def without_labels(self) -> Self:
        """Return this without what the values of labels mean, for where there are none.

        Example:
            >>> Reading(step=2, ignore_label=7).without_labels() == Reading(step=2)
            True
        """
        defaults: dict[str, Any] = {
            entry.name: entry.default for entry in fields(self) if entry.name in OF_LABELS
        }
        return replace(self, **defaults)


def each_reading(reading: Reading | Sequence[Reading] | None, volumes: Sequence[Volume]) -> list[Reading]:
    """Return how each volume is read; by default as ``Reading()`` says.

    Raises:
        ConfigError: there are several ways, but not one for each volume, or they differ in more than intensity and fill.
    """
    given = [reading or Reading()] if isinstance(reading, Reading | None) else list(reading)
    if len({repr(replace(own, intensity=None, fill=None)) for own in given}) > 1:
        raise ConfigError(
            f"{option('reading')}: those of several volumes may differ in intensity and fill alone"
        )
    if len(given) == 1:
        return given * len(volumes)
    if len(given) != len(volumes):
        count = "1 volume" if len(volumes) == 1 else f"{len(volumes)} volumes"
        raise ConfigError(f"{option('reading')}: {len(given)} for {count}; give one for each, or one for all")
    return given


def fit_scalings(volumes: Sequence[Volume], readings: Sequence[Reading], *, seed: int) -> list[Scaling]:
    """Return the scaling of each volume, as it is to be read.

    Raises:
        VolumeError: a volume cannot be scaled, or it is the only one and constant.
    """
    from evenslice.volumes.scaling import fit_scaling

    # An empty tile may stand beside others; alone, all of its windows would be the same.
    blank = len(volumes) > 1
    return [
        fit_scaling(item, intensity=own.intensity, fill=own.fill, seed=seed, blank=blank)
        for item, own in zip(volumes, readings, strict=True)
    ]
