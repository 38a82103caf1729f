"""Options of an audit that travel together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.auditing.targets import Target
    from evenslice.results import Thresholds

__all__ = ["Computing", "LabelValues", "Sampling", "check_thresholds"]


@dataclass(frozen=True)
class Sampling:
    """Which windows an audit measures and when it stops; see ``audit`` for the meaning of each.

    Raises:
        ConfigError: a value is out of range.
    """

    precision: float
    max_windows: int | None
    batch: int | None
    seed: int

    def __post_init__(self) -> None:
        if not self.precision > 0:
            raise ConfigError(f"{option('precision', self.precision)}: must be above 0")
        for name, value, least in (
            ("max_windows", self.max_windows, 1),
            ("seed", self.seed, 0),
            ("batch", self.batch, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{option(name, value)}: must be at least {least}")


@dataclass(frozen=True)
class Computing:
    """Where and how an audit computes; see ``audit`` for the meaning of each."""

    device: str
    dtype: str
    workers: int | None
    scheduler: str | None
    progress: bool | None


@dataclass(frozen=True)
class LabelValues:
    """What the values in label volumes mean; see ``audit`` for the meaning of each."""

    values: Sequence[int] | None = None
    others: str = "error"
    ignore: int | None = None
    instances: str | None = None

    def check(self, target: Target, *, labelled: bool) -> None:
        """Raise ConfigError if there are no labels to which these would apply, or the target explains every pixel."""
        given = {
            "ignore_label": self.ignore is not None,
            "other_labels": self.others != "error",
            "label_values": self.values is not None,
            "instances": self.instances is not None,
        }
        name = next((name for name, is_given in given.items() if is_given), None)
        if not labelled and (target == "labels" or name):
            asked = option("target", "labels") if target == "labels" else option(name or "")
            raise ConfigError(f"{asked} needs label volumes; give them as {option('labels')}")
        if self.ignore is not None and target == "labels":
            raise ConfigError(
                f"{option('ignore_label', self.ignore)}: the target 'labels' explains the class of every pixel; omit "
                "one of the two"
            )


def check_thresholds(thresholds: Thresholds) -> Thresholds:
    """Return thresholds as given; raise ConfigError if one is out of range."""
    for name, value in (
        ("tolerance", thresholds.attention),
        ("answer_tolerance", thresholds.answer),
        ("mismatch_tolerance", thresholds.use),
    ):
        if not 0 < value < 1:
            raise ConfigError(f"{option(name, value)}: must lie between 0 and 1")
    if not 0 <= thresholds.judged < 1:
        raise ConfigError(f"{option('judged_share', thresholds.judged)}: must be at least 0 and below 1")
    return thresholds
