"""Pair biases in words: which slice gets how many times the attention of the other."""

from __future__ import annotations

import math


def favour(k: int, bias: float) -> str:
    """Describe which slice of a pair is favoured, and by how much.

    Example:
        >>> favour(1, -0.2)
        'the slice before the middle gets 1.5 times the attention of the one after it'
    """
    slice_, other = sides(k, bias)
    if abs(bias) > 0.99:
        return f"{slice_} gets the attention of its pair and {other} none"
    return f"{slice_} gets {times(bias)} times the attention of {other}"


def sides(k: int, bias: float) -> tuple[str, str]:
    """Name the favoured slice of a pair, and the other."""
    favoured, other = ("before", "after") if bias < 0 else ("after", "before")
    return f"the slice {'' if k == 1 else f'{k} '}{favoured} the middle", f"the one {other} it"


def times(bias: float) -> str:
    """Return how many times the attention of the other the favoured slice gets, (1 + |B|) / (1 - |B|).

    Example:
        >>> times(0.1), times(-0.6), times(0.9), times(0.001)
        ('1.22', '4.0', '19', '1.002')
    """
    ratio = (1 + abs(bias)) / (1 - abs(bias))
    if 0 < ratio - 1 < 0.005:  # which two decimals do not tell from 1
        return f"{ratio:.{max(3, -math.floor(math.log10(ratio - 1)))}f}"
    return f"{ratio:.2f}" if ratio < 1.495 else f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
