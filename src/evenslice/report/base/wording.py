"""Numbers and intervals as text, and lists of names."""

from __future__ import annotations

import math
import textwrap
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evenslice.results import Interval

NOTHING = "\N{EN DASH}"
"""Replaces an undefined value."""

MINUS = "\N{MINUS SIGN}"
"""Precedes negative numbers; a hyphen is shorter and allows a line break."""


MOST_DECIMALS = 6
ROUNDING = 1e-6  # of shares, most of which were computed in single precision


def decimals(values: Iterable[float], limits: Iterable[float], least: int = 3) -> int:
    """Return how many decimals show on which side of limits values lie: ``least``, or up to six where those would hide it.

    Example:
        >>> decimals([-0.0096, -0.0054], limits=[0, -0.02]), decimals([-0.0096, -0.0054], limits=[0, -0.01])
        (3, 4)
    """
    return max((_decimals(value, limit, least) for value, limit in product(values, limits)), default=least)


def _decimals(value: float, limit: float, least: int) -> int:
    def side(shown: float) -> int:
        return (shown > limit) - (shown < limit)

    places = range(least, MOST_DECIMALS + 1)
    fewest = (number for number in places if side(round(value, number)) == side(value))
    return next(fewest, least)  # what is less than a millionth away lies at the limit


def number(value: float, places: int = 3) -> str:
    """Format a number with three decimals, or other ``places``, or as a power of ten if those would all be 0.

    Example:
        >>> [number(value).replace(MINUS, "-") for value in (-0.2346, 2e-6, 0.0, float("inf"))]
        ['-0.235', '2.0e-6', '0', '∞']
    """
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    if abs(value) >= 0.5 / 10**places:
        return f"{value:.{places}f}".replace("-", MINUS)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def beside(value: float, limit: float) -> str:
    """Format a number so that it shows on which side of a limit it lies.

    Example:
        >>> beside(0.0098, 0.01), beside(0.0012, 0.01)
        ('0.0098', '0.001')
    """
    return number(value, decimals([value], [limit]))


def rounded(value: Interval, *limits: float) -> tuple[str, str, str]:
    """Format an estimate and the ends of its interval, so that they show which limits the interval excludes.

    Example:
        >>> from evenslice.results import Interval
        >>> rounded(Interval(0.0506, 0.0503, 0.0509), 0.05), rounded(Interval(0.0506, 0.0503, 0.0509))
        (('0.0506', '0.0503', '0.0509'), ('0.051', '0.050', '0.051'))
    """
    places = decimals((value.low, value.high), limits)
    return number(value.estimate, places), number(value.low, places), number(value.high, places)


def interval(value: Interval | None, *limits: float) -> str:
    """Format an estimate with its interval, ``"0.562 [0.559, 0.565]"``, so that it shows which limits that excludes."""
    if value is None or math.isnan(value.estimate):
        return NOTHING
    if math.isnan(value.low) or math.isnan(value.high):
        return number(value.estimate)
    estimate, low, high = rounded(value, *limits)
    return f"{estimate} [{low}, {high}]"


def percent(share: float) -> str:
    """Format a share in whole percent, or with one decimal below one percent; no line break before the sign.

    Example:
        >>> [percent(share).replace("\N{NO-BREAK SPACE}", " ") for share in (0.562, 0.004, 2e-6, 0.0, 0.996)]
        ['56 %', '0.4 %', 'less than 0.1 %', '0 %', 'more than 99 %']
    """
    if math.isnan(share):
        return NOTHING
    space = "\N{NO-BREAK SPACE}"
    if 0.995 <= share < 1 - ROUNDING:
        return f"more than 99{space}%"
    if share == 0 or share >= 0.01:
        return f"{100 * share:.0f}{space}%"
    return f"less than 0.1{space}%" if share < 0.001 else f"{100 * share:.1f}{space}%"


def threshold(share: float) -> str:
    """Format a share that is a limit, in percent with three digits; no line break before the sign.

    Example:
        >>> [threshold(share).replace("\N{NO-BREAK SPACE}", " ") for share in (0.02, 0.02 * 2 / 3, 0.0008)]
        ['2 %', '1.33 %', '0.08 %']
    """
    return f"{100 * share:.3g}\N{NO-BREAK SPACE}%"


def signed(offset: int) -> str:
    """Format an offset with its sign; 0 has none."""
    return f"{offset:+d}".replace("-", MINUS) if offset else "0"


def counted(count: int, name: str) -> str:
    """Put a count before a name: ``"1 fold"``, ``"3 folds"``."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def one_line(text: str, longest: int = 28) -> str:
    """Make any text fit a label: one line of printable characters, cut at ``longest``."""
    text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def few_lines(text: str, width: int = 28, lines: int = 2) -> str:
    """Make any text fit a label of a few lines, broken between words.

    Example:
        >>> print(few_lines("symmetrized at the encoder with missing slices"))
        symmetrized at the encoder
        with missing slices
    """
    return textwrap.fill(
        one_line(text, 2 * lines * width), width, max_lines=lines, placeholder="…", break_on_hyphens=False
    )


def listed(names: Sequence[str]) -> str:
    """Join names: ``"a, b and c"``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
