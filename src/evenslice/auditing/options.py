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
        precision: also go on until the half-widths of the 95 % intervals of all judged B and C are below this; by default
            only until the verdict is settled.
        min_windows: number of windows before which an audit does not end, unless there are fewer, or fewer are the most.
        max_windows: largest number of windows, and of those that the stress test shows, but those of one slice.
        tile: size (y, x) of the in-plane tile; by default the size that the network requires, or up to 256 of a plane that
            is no larger, and 192 of larger planes, of which the inner 160 are compared.
        seed: random seed for the order of the windows and for methods that draw samples, 0 to 2**63 - 1.
        explain: a slice z of the first volume, or (z, y, x), whose window is the first of the examples: the one around that
            voxel, or in the middle of the plane. For other sizes and methods see ``evenslice.explain``.
        stress: with labels, also measure at the end what a disturbed slice costs.

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
        if self.precision is not None:
            precision: Any = self.precision
            if not (isinstance(precision, Real) and float(precision) > 0):
                raise ConfigError(f"{option('precision', precision)}: must be above 0")
            object.__setattr__(self, "precision", float(precision))
        for name, least in (("max_windows", 1), ("min_windows", 1), ("seed", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if self.seed >= 2**63:
            raise ConfigError(f"{option('seed', self.seed)}: must be below 2**63")
