"""What counts as fair in an audit: the tolerances, and how much a pair or a class needs to be judged."""

from dataclasses import dataclass

__all__ = ["Thresholds", "least_attention"]


@dataclass(frozen=True)
class Thresholds:
    """What counts as fair.

    Attributes:
        attention: the largest absolute pair bias B_k, of saliency or reliance, that counts as equal.
        answer: the largest part C of an answer that may change when the window is reversed.
        use: the largest mirror mismatch E of a network that uses opposite slices in the same way.
        judged: the part of the saliency that a pair has to get in order to be judged; see ``least_attention``.
        judged_class: the part of the pixels that a class has to cover; the two largest classes are always judged.
    """

    attention: float = 0.05
    answer: float = 0.05
    use: float = 0.01
    judged: float = 0.02
    judged_class: float = 0.01


def least_attention(pairs: int, judged_share: float = Thresholds.judged) -> float:
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
