"""Which stored dimensions are z, y and x, and which index is read along the others."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from evenslice._core import ConfigError, VolumeError, did_you_mean, option

__all__ = ["Arrangement", "arrange", "check_axes", "check_picks"]


@dataclass(frozen=True)
class Arrangement:
    """How a stored array becomes a volume.

    Attributes:
        zyx: the stored dimensions that are z, y and x.
        fixed: for every other stored dimension, the one index that is read.
    """

    zyx: tuple[int, int, int]
    fixed: dict[int, int]


def check_axes(axes: str) -> str:
    """Return the user's names of the stored dimensions, checked and in lower case.

    Raises:
        ConfigError: a name is not a letter or is repeated, or z, y or x is missing.

    Example:
        >>> check_axes("TZYX")
        'tzyx'
    """
    names = axes.lower()
    if not names.isalpha() or len(set(names)) != len(names) or not set("zyx") <= set(names):
        raise ConfigError(
            f"{option('axes', axes)}: give one letter per stored dimension, each once, including z, y and x, such as tzyx"
        )
    return names


def check_picks(select: Any) -> dict[str, int]:
    """Return the index along each axis that a user picked, None for none.

    Raises:
        ConfigError: it is not a whole number for each name of an axis.

    Example:
        >>> check_picks({"t": 3}), check_picks(None)
        ({'t': 3}, {})
    """
    if select is None:
        return {}
    if isinstance(select, Mapping) and all(isinstance(axis, str) for axis in select):
        with suppress(TypeError):
            return {axis: operator.index(index) for axis, index in select.items()}  # of NumPy, too
    raise ConfigError(
        f"{option('select')}: is {select!r:.60}; give a whole number for each axis, such as {option('select', {'t': 0})}"
    )


def arrange(
    shape: tuple[int, ...],
    names: str | None,
    select: Mapping[str, int],
    label: str,
) -> Arrangement:
    """Find z, y and x among the stored dimensions, and one index for each of the others.

    Three unnamed dimensions are z, y, x. A dimension of length 1 that is neither z, y nor x is dropped.

    Args:
        shape: the stored shape.
        names: one letter per stored dimension, or None if unnamed.
        select: the index to read of a named dimension that is neither z, y nor x.
        label: the file, as the user wrote it.

    Raises:
        VolumeError: the array is not a volume; the message names the option that makes it one.
        ConfigError: ``select`` does not fit the array.

    Example:
        >>> arrange((5, 20, 64, 48), "tzyx", {"t": 3}, "data.tif")
        Arrangement(zyx=(1, 2, 3), fixed={0: 3})
    """
    if 0 in shape:
        raise VolumeError(
            f"{label}: has an empty axis, its shape is {shape}; a volume needs at least one voxel"
        )
    if names is None:
        return _arrange_unnamed(shape, select, label)
    missing = [name for name in "zyx" if name not in names]
    if missing:
        raise VolumeError(f"{label}: {_no_volume(shape, names, missing)}")
    zyx = (names.index("z"), names.index("y"), names.index("x"))
    fixed = _selected(shape, names, select, label)
    fixed.update({d: 0 for d, n in enumerate(shape) if n == 1 and d not in zyx and d not in fixed})
    _refuse_open_axes(shape, names, {*zyx, *fixed}, label)
    return Arrangement(zyx, fixed)


def _arrange_unnamed(shape: tuple[int, ...], select: Mapping[str, int], label: str) -> Arrangement:
    count = len(shape)
    example = "tzyx" if count == 4 else "uvwtczyx"[-count:] if 4 < count <= 8 else "zyx"
    if select:
        raise ConfigError(
            f"{label}: its {count} dimensions {shape} have no names to select by; name them, as "
            f"{option('axes', example)}"
        )
    if count < 3:
        raise VolumeError(f"{label}: {_no_volume(shape, None, ['z'])}")
    long = [d for d, length in enumerate(shape) if length > 1]
    if count == 3:
        return Arrangement((0, 1, 2), {})
    if len(long) == 3:
        return Arrangement((long[0], long[1], long[2]), {d: 0 for d in range(count) if d not in long})
    picks = option("select", {name: 0 for name in example if name not in "zyx"})
    raise VolumeError(
        f"{label}: has {count} dimensions {shape}; name them, as {option('axes', example)}, and pick with {picks}"
    )


def _no_volume(shape: tuple[int, ...], names: str | None, missing: list[str]) -> str:
    """Explain why an array without z, y or x is not a volume, and what would help."""
    named = f"axes {names.upper()} {shape}" if names else f"shape {shape}"
    if len(shape) < 3:
        return f"is {len(shape)}-D ({named}); a volume needs three axes z, y, x: put all slices into one file"
    if names is not None and "s" in names and len(shape) == 3:
        slices = option("axes", names.replace("s", "z"))
        return f"is one colour image ({named}), not a volume z, y, x; if axis S counts slices, give {slices}"
    lacking = " and ".join(missing)
    example = "zyx" if len(shape) == 3 else "tzyx"
    if names is not None and 0 <= names.find("x") < names.find("y"):
        example = example[::-1]
    return f"has {named} and no axis {lacking}; say which axis is which, as {option('axes', example)}"


def _selected(shape: tuple[int, ...], names: str, select: Mapping[str, int], label: str) -> dict[int, int]:
    """Translate the user's selection to stored dimensions and indices."""
    fixed = {}
    choices = [name for name in names if name not in "zyx"]
    for axis, index in select.items():
        name = axis.lower()
        if name not in choices:
            known = did_you_mean(name, choices) if choices else "its only axes are z, y and x"
            raise ConfigError(
                f"{label}: {option('select', {axis: index})} names no axis of the file; {known}"
            )
        dimension = names.index(name)
        if not 0 <= index < shape[dimension]:
            raise ConfigError(
                f"{label}: {option('select', {axis: index})} is out of range; axis {name} has 0 to "
                f"{shape[dimension] - 1}"
            )
        fixed[dimension] = index
    return fixed


def _refuse_open_axes(shape: tuple[int, ...], names: str, settled: set[int], label: str) -> None:
    """Raise if a dimension longer than 1 is neither z, y, x nor selected."""
    rest = [name for dimension, name in enumerate(names) if dimension not in settled]
    if not rest:
        return
    axes = ("axis " if len(rest) == 1 else "each of axes ") + ", ".join(name.upper() for name in rest)
    picks = option("select", dict.fromkeys(rest, 0))
    one = "one of " if len(rest) == 1 else "one index of "
    raise VolumeError(
        f"{label}: has {len(shape)} axes {names.upper()} {shape}; pick {one}{axes} with {picks}, or name the axes by "
        f"{option('axes')} if they are others"
    )
