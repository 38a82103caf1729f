"""Options of an audit that travel together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, option

if TYPE_CHECKING:
    from evenslice.auditing.targets import Target
    from evenslice.results import Thresholds
    from evenslice.volumes import LabelValues

__all__ = ["Computing", "Sampling", "check_label_options", "check_thresholds"]


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


def check_label_options(values: LabelValues, target: Target, *, labelled: bool) -> None:
    """Raise ConfigError if there are no labels that an audit needs, or options of labels have no effect in it."""
    if not labelled and target == "labels":
        raise ConfigError(f"{option('target', target)} needs label volumes; give them as {option('labels')}")
    if not labelled:
        values.refuse()
    if values.ignore_label is not None and target == "labels":
        raise ConfigError(
            f"{option('ignore_label', values.ignore_label)}: the target 'labels' explains the class of every pixel; "
            "omit one of the two"
        )
    values.check()


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
