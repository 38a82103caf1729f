"""How a network reads volumes and their labels, in Python and in files, which may come from anywhere.

Reading.of(step=2, intensity=(0, 255), ignore_label=7).to_plain()    {"step": 2, "intensity": [0, 255], "ignore_label": 7, ...}
"""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, get_args

from evenslice._core import ConfigError, did_you_mean, option, reason
from evenslice.volumes import LabelValues, Plane, Scaling, check_window

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Reading"]

MOST_STEP = 2**16
MOST_CLASSES = 2**16

OF_LABELS = tuple(entry.name for entry in fields(LabelValues))
"""Options that say what the values of labels mean."""

OF_VOLUMES = ("step", "plane", "intensity", "fill", "overlapping")
"""Options that say how a volume is read, and how the output is to be understood."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a network reads volumes and their labels.

    Attributes:
        step: distance between the slices of a window.
        plane: the axis along which slices follow one another, "z", "y" or "x".
        intensity: the voxel values that become 0 and 1; None for percentiles of each volume.
        fill: the voxel value that replaces NaN and infinity; None if there must be none.
        labels: what the values of labels mean.
        overlapping: whether several channels of the output can be on at once; None if that is not known, or there is one.

    Raises:
        ConfigError: an option is out of range, or those of labels contradict each other.

    Example:
        >>> Reading.of(step=2, label_values=[0, 255], fill=None).options()["label_values"]
        (0, 255)
    """

    step: int = 1
    plane: str = "z"
    intensity: tuple[float, float] | None = None
    fill: float | None = None
    labels: LabelValues = field(default_factory=LabelValues)
    overlapping: bool | None = None

    def __post_init__(self) -> None:
        try:
            step = operator.index(self.step)
        except TypeError:
            raise ConfigError(f"{option('step', self.step)}: must be a whole number") from None
        check_window(1, step, "reflect")
        if self.plane not in get_args(Plane):
            raise ConfigError(f"{option('plane', self.plane)}: must be one of {', '.join(get_args(Plane))}")
        try:
            low, high = (0, 1) if self.intensity is None else self.intensity
        except (TypeError, ValueError):
            raise ConfigError(
                f"{option('intensity', self.intensity)}: give two numbers, the voxel values that become 0 and 1"
            ) from None
        scaling = Scaling(low, high, fill=self.fill)  # checks them
        self.labels.check()
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "fill", scaling.fill)
        if self.intensity is not None:
            object.__setattr__(self, "intensity", (scaling.low, scaling.high))

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Return the way of reading that options say, those of labels by their own names; None means the default.

        Raises:
            ConfigError: there is no such option; or see above.
        """
        for name in given:
            if name not in OF_VOLUMES + OF_LABELS:
                raise ConfigError(f"unknown entry {name!r}; {did_you_mean(name, OF_VOLUMES + OF_LABELS)}")
        stated = {name: value for name, value in given.items() if value is not None}
        labels = LabelValues(**{name: stated.pop(name) for name in OF_LABELS if name in stated})
        return cls(**stated, labels=labels)

    @classmethod
    def from_plain(cls, stated: Mapping[str, Any]) -> Self:
        """Return the way of reading that a file states; entries that it lacks, as those of before do, have their defaults.

        Raises:
            ValueError: an entry cannot be right.

        Example:
            >>> Reading.from_plain({"step": 2, "intensity": [0, 255], "anything": None}).intensity
            (0.0, 255.0)
        """
        found = {name: stated.get(name) for name in OF_VOLUMES + OF_LABELS}
        step, intensity, fill, values = (
            found[name] for name in ("step", "intensity", "fill", "label_values")
        )
        sound = {
            "step": step is None or (type(step) is int and step <= MOST_STEP),
            "intensity": intensity is None or all(map(_is_number, intensity)),
            "fill": fill is None or _is_number(fill),
            "label_values": values is None
            or (len(values) <= MOST_CLASSES and all(type(value) is int for value in values)),
            "ignore_label": found["ignore_label"] is None or type(found["ignore_label"]) is int,
            "overlapping": isinstance(found["overlapping"], bool | None),
        }
        for name, is_sound in sound.items():
            if not is_sound:
                raise ValueError(f"{name} {found[name]!r:.40}")
        try:
            return cls.of(**found)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @staticmethod
    def stated(reading: Reading | Mapping[str, Any]) -> Reading:
        """Return the way of reading that a user states as such, or as options by name.

        Raises:
            ConfigError: an entry is unknown, or cannot be right.
        """
        if isinstance(reading, Reading):
            return reading
        try:
            return Reading.of(**reading)
        except ConfigError as error:
            raise ConfigError(f"{option('reading')}: {error}") from error
        except (TypeError, ValueError) as error:  # neither numbers nor several of them
            raise ConfigError(
                f"{option('reading')}: cannot be right ({reason(error)}); correct the entry"
            ) from error

    def to_plain(self) -> dict[str, Any]:
        """Return every option by name, as JSON holds it.

        Example:
            >>> Reading(intensity=(0, 255)).to_plain()["intensity"]
            [0.0, 255.0]
        """
        plain = {"plane": self.plane, "overlapping": self.overlapping, **self.options()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def options(self, *, labels: bool = True) -> dict[str, Any]:
        """Return the options by which ``evaluate`` and ``audit`` take all this, but for the plane, which is a volume's.

        Args:
            labels: with those of labels.
        """
        own = {"step": self.step, "intensity": self.intensity, "fill": self.fill}
        return own | asdict(self.labels) if labels else own

    def with_given(self, **given: Any) -> Self:
        """Return this with other options, where they are not None.

        Numbers of objects are no values of classes, so either option takes the place of the other.

        Example:
            >>> Reading.of(step=2, label_values=[0, 5]).with_given(instances="dense", step=None).labels.label_values
        """
        stated = {name: value for name, value in given.items() if value is not None}
        known = {"plane": self.plane, "overlapping": self.overlapping, **self.options()}
        if "instances" in stated:
            known |= {"label_values": None, "other_labels": None}
        elif {"label_values", "other_labels"} & stated.keys():
            known["instances"] = None
        return self.of(**known | stated)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
