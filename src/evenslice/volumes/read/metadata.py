"""Checks of values in metadata that may hold anything, shared by formats that describe themselves in JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

from evenslice.volumes.geometry import common_unit, normal_unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.volumes.geometry import Unit

__all__ = ["LARGEST_OFFSET", "is_inside", "is_sizes", "letters", "scaled_spacing"]

LARGEST_SIZE = 2**62
"""Size limit of an axis."""

LARGEST_OFFSET = 2**62
"""Limit on the distance of the first voxel from the origin, in voxels."""

MOST_DIMENSIONS = 8
LONGEST_PATH = 1000


def is_inside(path: Any) -> TypeGuard[str]:
    r"""Return whether a value is the path of a folder below another one, in a folder and at an address.

    What has a meaning in addresses, such as a percent sign, could lead elsewhere there.

    Example:
        >>> is_inside("scales/0"), is_inside("../0"), is_inside("%2e%2e/0"), is_inside("https://host/0"), is_inside("/0")
        (True, False, False, False, False)
    """
    return (
        isinstance(path, str)
        and len(path) < LONGEST_PATH
        and all(part not in ("", ".", "..") and not set("\\\0?#%:") & set(part) for part in path.split("/"))
    )


def is_sizes(value: Any, count: int | None = None) -> TypeGuard[list[int]]:
    """Return whether a value is a list of sizes of axes: whole numbers above zero, as many as given.

    Example:
        >>> is_sizes([64, 64, 1]), is_sizes([64, True, 1]), is_sizes([64, 64], 3)
        (True, False, False)
    """
    return (
        isinstance(value, list)
        and (0 < len(value) <= MOST_DIMENSIONS if count is None else len(value) == count)
        and all(type(size) is int and 0 < size < LARGEST_SIZE for size in value)
    )


def letters(names: list[str]) -> str | None:
    """Join names of one letter each, all different; return None for other names.

    Example:
        >>> letters(["z", "y", "x"]), letters(["row", "column"])
        ('zyx', None)
    """
    joined = "".join(names)
    return joined if joined.isalpha() and len(joined) == len(names) == len(set(names)) else None


def scaled_spacing(
    sizes: Sequence[Any], units: Sequence[Any], names: Sequence[str] | None
) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Return the sizes of voxels along each dimension, in one unit for z, y and x.

    Args:
        sizes: along each dimension.
        units: of each, in any spelling.
        names: of each dimension, z, y and x among them.

    Returns:
        The sizes, NaN for dimensions that are not spatial, and their unit; (None, None) if they are no numbers or their
        units do not fit together.

    Example:
        >>> scaled_spacing([0.04, 4, 4], ["um", "nm", "nm"], "zyx")
        ((40.0, 4.0, 4.0), 'nm')
    """
    named = list(names or ())
    space = [named.index(name) for name in "zyx" if name in named]
    try:
        found = [float(sizes[dimension]) for dimension in space]
    except (TypeError, ValueError, OverflowError):
        return None, None
    if not space:
        return None, None
    common, unit = common_unit(found, [normal_unit(units[dimension]) for dimension in space])
    if common is None:
        return None, None
    spacing = dict(zip(space, common, strict=True))
    return tuple(spacing.get(dimension, math.nan) for dimension in range(len(sizes))), unit
