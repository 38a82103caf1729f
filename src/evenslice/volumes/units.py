"""Units of length: normal spellings and conversion."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["UNITS", "Unit", "common_unit", "millimetres", "normal_unit", "positive"]

Unit = Literal["pm", "angstrom", "nm", "um", "mm", "cm", "m", "inch"]

_METRES: dict[Unit, float] = {
    "pm": 1e-12,
    "angstrom": 1e-10,
    "nm": 1e-9,
    "um": 1e-6,
    "mm": 1e-3,
    "cm": 1e-2,
    "m": 1.0,
    "inch": 0.0254,
}
UNITS: tuple[Unit, ...] = tuple(_METRES)
"""All units, in ascending order except for the inch."""

_SPELLINGS: dict[str, Unit] = {
    "picometer": "pm",
    "å": "angstrom",
    "nanometer": "nm",
    "micron": "um",
    "micrometer": "um",
    "µm": "um",  # the micro sign
    "μm": "um",  # the Greek letter, equally common in files
    "\\u00b5m": "um",  # as ImageJ escapes it
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "in": "inch",
}


def normal_unit(text: object) -> Unit | None:
    """Return the normal spelling of a unit of length, or None for anything else.

    Example:
        >>> normal_unit("Micrometre"), normal_unit("nm"), normal_unit("pixel")
        ('um', 'nm', None)
    """
    given = str(text).strip()
    if given == "Mm":  # megametres
        return None
    name = given.lower().replace("metre", "meter")
    if len(name) > 3:  # "ms" are milliseconds
        name = name.removesuffix("s")
    if name in _METRES:
        return name
    return _SPELLINGS.get(name)


def common_unit(
    sizes: Sequence[float], units: Sequence[Unit | None]
) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Convert sizes in several units to the unit of the last.

    Args:
        sizes: one size per axis.
        units: the unit of each; None if unknown.

    Returns:
        The sizes and their unit; (None, None) if only some of the units are known.

    Example:
        >>> common_unit([0.05, 4.0, 4.0], ["um", "nm", "nm"])
        ((50.0, 4.0, 4.0), 'nm')
    """
    target = units[-1]
    if all(unit == target for unit in units):
        return tuple(map(float, sizes)), target
    if target is None or None in units:
        return None, None
    factors = [_METRES[cast(Unit, unit)] / _METRES[target] for unit in units]
    # Twelve digits: more than files have, and few enough to hide the rounding error of 1e-6 / 1e-9.
    return tuple(float(f"{size * factor:.12g}") for size, factor in zip(sizes, factors, strict=True)), target


def positive(sizes: Sequence[float]) -> bool:
    """Return whether all sizes are finite and above zero."""
    return all(math.isfinite(size) and size > 0 for size in sizes)


def millimetres(unit: Unit) -> float:
    """Return the length of a unit in mm.

    Example:
        >>> millimetres("um")
        0.001
    """
    return float(f"{_METRES[unit] / _METRES['mm']:.12g}")
