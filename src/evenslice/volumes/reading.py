"""How a network reads volumes and their labels, in Python and in files.

Reading.of(step=2, intensity=(0, 255), ignore_label=7).to_plain()    {"step": 2, "intensity": [0, 255], "ignore_label": 7, ...}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, get_args

from evenslice._core import ConfigError, check_known, did_you_mean, option, whole_number
from evenslice.volumes.labels import LabelValues
from evenslice.volumes.scaling import Scaling, two_numbers
from evenslice.volumes.volume import Plane

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Reading"]

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
        check_known("plane", self.plane, get_args(Plane))
        if not isinstance(self.overlapping, bool | None):
            raise ConfigError(f"{option('overlapping', self.overlapping)}: must be True, False or None")
        intensity = (0, 1) if self.intensity is None else two_numbers(self.intensity)
        scaling = Scaling(*intensity, fill=self.fill)  # checks them
        self.labels.check()
        object.__setattr__(self, "step", whole_number("step", self.step, 1))
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
        """Return the way of reading that a file states among other entries; those that it lacks have their defaults.

        Raises:
            ValueError: an entry cannot be right.

        Example:
            >>> Reading.from_plain({"step": 2, "intensity": [0, 255], "anything": None}).intensity
            (0.0, 255.0)
        """
        try:
            return cls.of(**{name: stated.get(name) for name in OF_VOLUMES + OF_LABELS})
        except ConfigError as error:
            raise ValueError(str(error)) from error

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
        known = self.to_plain()
        if "instances" in stated:
            known |= {"label_values": None, "other_labels": None}
        elif {"label_values", "other_labels"} & stated.keys():
            known["instances"] = None
        return self.of(**known | stated)
