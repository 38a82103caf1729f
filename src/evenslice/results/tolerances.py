"""What counts as fair in an audit: the tolerances, and how much a pair or a class needs to be judged."""

from dataclasses import astuple, dataclass, fields
from numbers import Real

from evenslice._core import ConfigError, option


@dataclass(frozen=True)
class Tolerances:
    """What counts as fair.

    Attributes:
        tolerance: the largest absolute pair bias B_k, of saliency or reliance, that counts as equal.
        answer_tolerance: the largest part C of an answer that may change when the window is reversed.
        mismatch_tolerance: the largest mirror mismatch E of a network that uses opposite slices in the same way.
        judged_share: the part of the saliency that a pair has to get in order to be judged; see ``least_attention``.
        judged_class: the part of the pixels that a class has to cover; the two largest classes are always judged.

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
        for entry, value in zip(fields(self), astuple(self), strict=True):
            zero = entry.name.startswith("judged")
            if not isinstance(value, Real) or not (0 < float(value) < 1 or (zero and value == 0)):
                allowed = "at least 0 and below 1" if zero else "between 0 and 1"
                raise ConfigError(f"{option(entry.name, value)}: must be {allowed}")
            object.__setattr__(self, entry.name, float(value))


def least_attention(pairs: int, judged_share: float = Tolerances.judged_share) -> float:
    """Return the part of the saliency that each of K pairs has to get in order to be judged.

    That is the judged share, and with more than two pairs 2/K of it: however many slices share the saliency, the pairs
    that are not judged together get less than twice the judged share.

    Args:
        pairs: K.
        judged_share: the part that each of one or two pairs has to get.

    Example: of 101 slices, each pair gets about 2 % of the saliency.
        >>> [least_attention(pairs) for pairs in (1, 2, 4, 50)]
        [0.02, 0.02, 0.01, 0.0008]
    """
    return judged_share * min(1.0, 2 / max(pairs, 1))
