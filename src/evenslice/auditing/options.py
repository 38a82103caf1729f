"""The methods of attribution, and which windows an audit reads; without NumPy, which the command line imports late."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  # the command line evaluates annotations
from dataclasses import dataclass
from numbers import Real
from typing import Any

from evenslice._core import ConfigError, option, whole_number

METHODS = ("gradient", "input_x_gradient", "integrated_gradients", "smoothgrad", "gradient_shap", "occlusion")

FIRST = 40  # windows before which an audit does not end by default; fewer may be the most


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which windows an audit reads, and when it stops.

    Attributes:
        precision: stop only when every judged B and C is known to within this (half the 95 % interval); by default
            stop when the verdict is settled.
        min_windows: smallest number of windows to read, if there are as many and ``max_windows`` allows them.
        max_windows: largest number of windows to read, and also of windows in the stress test.
        tile: size (y, x) of the in-plane tile; by default the size that the network requires, else the whole plane up
            to 256, else 192, with the inner 160 compared.
        seed: random seed for the order of the windows and for methods that draw samples, 0 to 2**63 - 1.
        explain: a slice z of the first volume, or a voxel (z, y, x): its window comes first among the examples. See
            ``evenslice.explain`` for other sizes and methods.
        stress: with labels, also measure the cost of disturbed slices at the end.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> Sampling(precision=0.01).max_windows
        2000
    """

    precision: float | None = None
    min_windows: int = FIRST
    max_windows: int = 2000
    tile: tuple[int, int] | None = None
    seed: int = 0
    explain: int | Sequence[int] | None = None
    stress: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.stress, bool):
            raise ConfigError(f"{option('stress', self.stress)}: must be True or False")
        if self.precision is not None:
            precision: Any = self.precision
            if not (isinstance(precision, Real) and float(precision) > 0):
                raise ConfigError(f"{option('precision', precision)}: must be above 0")
            object.__setattr__(self, "precision", float(precision))
        for name, least in (("max_windows", 1), ("min_windows", 1), ("seed", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if self.seed >= 2**63:
            raise ConfigError(f"{option('seed', self.seed)}: must be below 2**63")
