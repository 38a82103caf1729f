"""Options of an audit that travel together."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, option, whole_number
from evenslice.results import Thresholds

if TYPE_CHECKING:
    from evenslice.auditing.targets import Target
    from evenslice.volumes import LabelValues

FIRST = 40  # windows before which an audit does not end by default; fewer may be the most
__all__ = ["Computing", "Sampling", "check_label_options", "check_thresholds"]


@dataclass(frozen=True)
class Sampling:
    """Which windows an audit measures and when it stops; see ``audit`` for the meaning of each.

    Raises:
        ConfigError: a value is out of range.
    """

    precision: float | None
    max_windows: int
    min_windows: int
    batch: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.precision is not None:
            if not (_is_number(self.precision) and self.precision > 0):
                raise ConfigError(f"{option('precision', self.precision)}: must be above 0")
            object.__setattr__(self, "precision", float(self.precision))
        for name, least in (("max_windows", 1), ("min_windows", 1), ("seed", 0), ("batch", 1)):
            value = getattr(self, name)
            if value is not None or name != "batch":
                object.__setattr__(self, name, whole_number(name, value, least))
        if self.seed >= 2**63:
            raise ConfigError(f"{option('seed', self.seed)}: must be below 2**63")

    def check(self, population: int) -> None:
        """Raise ConfigError if more windows have to be read than may be, of a population that has them."""
        if population > self.max_windows and self.min_windows > max(self.max_windows, FIRST):
            raise ConfigError(
                f"{option('min_windows', self.min_windows)}: is more than {option('max_windows', self.max_windows)}; "
                "raise that as well"
            )


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
    """Return thresholds as numbers of Python; raise ConfigError if one is out of range."""
    for name, value in (
        ("tolerance", thresholds.attention),
        ("answer_tolerance", thresholds.answer),
        ("mismatch_tolerance", thresholds.use),
    ):
        if not (_is_number(value) and 0 < value < 1):
            raise ConfigError(f"{option(name, value)}: must lie between 0 and 1")
    for name, value in (("judged_share", thresholds.judged), ("judged_class", thresholds.judged_class)):
        if not (_is_number(value) and 0 <= value < 1):
            raise ConfigError(f"{option(name, value)}: must be at least 0 and below 1")
    return Thresholds(*map(float, astuple(thresholds)))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)
