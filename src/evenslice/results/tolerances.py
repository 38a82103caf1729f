"""What counts as fair; without NumPy, which the command line imports late."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Real

from evenslice._core import ConfigError, option


@dataclass(frozen=True)
class Tolerances:
    """How far from 0 still counts as fair.

    Attributes:
        tolerance: the largest absolute pair bias B_k, of saliency or reliance, that counts as equal.
        answer_tolerance: the largest part C of an answer that may change when the window is reversed.
        mismatch_tolerance: the largest mirror mismatch E of a network that uses opposite slices in the same way.
        judged_share: smallest part of the saliency with which a pair is judged.
        judged_class: smallest part of the pixels with which a class is judged; the two largest always are.

    Raises:
        ConfigError: a value is no number, or out of range.

    Example:
        >>> Tolerances(tolerance=0.1)
        Tolerances(tolerance=0.1, answer_tolerance=0.05, mismatch_tolerance=0.01, judged_share=0.02, judged_class=0.01)
    """

    tolerance: float = 0.05
    answer_tolerance: float = 0.05
    mismatch_tolerance: float = 0.01
    judged_share: float = 0.02
    judged_class: float = 0.01

    def __post_init__(self) -> None:
        for entry in fields(Tolerances):
            zero, value = entry.name.startswith("judged"), getattr(self, entry.name)
            if not isinstance(value, Real) or not (0 < float(value) < 1 or (zero and value == 0)):
                allowed = "at least 0 and below 1" if zero else "between 0 and 1"
                raise ConfigError(f"{option(entry.name, value)}: must be {allowed}")
            object.__setattr__(self, entry.name, float(value))
