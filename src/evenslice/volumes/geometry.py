"""Where voxels lie: units of length, and affine maps from voxels to the patient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from evenslice._core import needs_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

Unit = Literal["pm", "angstrom", "nm", "um", "mm", "cm", "m", "inch"]

LARGEST = 1e30
"""Largest number of an affine; NIfTI files, which hold single precision, have no room for much more."""

_UNITS: dict[Unit, tuple[str, float]] = {
    "pm": ("picometer", 1e-12),
    "angstrom": ("angstrom", 1e-10),
    "nm": ("nanometer", 1e-9),
    "um": ("micrometer", 1e-6),
    "mm": ("millimeter", 1e-3),
    "cm": ("centimeter", 1e-2),
    "m": ("meter", 1.0),
    "inch": ("inch", 0.0254),
}
UNITS: tuple[Unit, ...] = tuple(_UNITS)
"""All units, in ascending order except for the inch."""

_SPELLINGS: dict[str, Unit] = {
    **{name: unit for unit, (name, _) in _UNITS.items()},
    "å": "angstrom",
    "micron": "um",
    "µm": "um",  # the micro sign
    "μm": "um",  # the Greek letter, equally common in files
    "\\u00b5m": "um",  # as ImageJ escapes it
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
    return name if name in UNITS else _SPELLINGS.get(name)


def full_name(unit: Unit) -> str:
    """Return the name of a unit as OME-Zarr spells it.

    Example:
        >>> full_name("um")
        'micrometer'
    """
    return _UNITS[unit][0]


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
    factors = [_UNITS[cast(Unit, unit)][1] / _UNITS[target][1] for unit in units]
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
    return float(f"{_UNITS[unit][1] / _UNITS['mm'][1]:.12g}")


def sizes_in(sizes: Sequence[float], unit: Unit | None, target: Unit) -> tuple[float, ...]:
    """Convert lengths to another unit; lengths in an unknown unit are unchanged.

    Example:
        >>> sizes_in([50.0, 5.3], "nm", "mm"), sizes_in([1.5], None, "mm")
        ((5e-05, 5.3e-06), (1.5,))
    """
    converted, _ = common_unit([*sizes, 1.0], [*(unit or target for _ in sizes), target])
    return (converted or tuple(sizes))[: len(sizes)]


def affine_from_lps(directions: ArrayLike, origin: ArrayLike) -> NDArray[np.float64] | None:
    """Return the affine of a volume whose position is given as in DICOM and ITK.

    There, x runs to the patient's left and y to the back. In the affine of a volume, as in NIfTI, x runs to the right
    and y to the front. z runs to the head in both.

    Args:
        directions: (3, 3), one column per step from a voxel to the next along x, y, z, in mm.
        origin: (3,), centre of the first voxel in mm.

    Returns:
        (4, 4), or None if a number is not finite or beyond ``LARGEST``, or the steps are linearly dependent.

    Example:
        >>> affine_from_lps(np.diag([0.5, 0.5, 2.0]), [10, 20, 30])[0].tolist()
        [-0.5, 0.0, 0.0, -10.0]
    """
    affine = np.eye(4)
    affine[:3, :3] = directions
    affine[:3, 3] = origin
    if not (np.abs(affine) <= LARGEST).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        return None
    affine[:2] *= -1
    return affine + 0.0  # no -0.0


def axis_codes(affine: NDArray[Any]) -> str:
    """Return the sides of the patient to which x, y and z of a volume run, to the nearest axis.

    Args:
        affine: (4, 4) map from voxel indices (x, y, z, 1) to right, front, head.

    Returns:
        Three letters: L (left) or R (right), P (posterior) or A (anterior), I (inferior) or S (superior).

    Example:
        >>> axis_codes(np.diag([-1, -1, 2, 1]))
        'LPS'
    """
    with needs_extra("volumes", "the orientation of a volume"):
        from nibabel.orientations import aff2axcodes
    codes = aff2axcodes(affine)  # type: ignore[no-untyped-call]
    return "".join(map(str, codes))


def is_invertible(affine: NDArray[Any]) -> bool:
    """Return whether an affine is finite and its columns are linearly independent, however long they are.

    Example:
        >>> is_invertible(np.diag([1e-9, 1, 1, 1])), is_invertible(np.diag([0, 1, 1, 1]))
        (True, False)
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not positive(lengths.tolist()):
        return False
    return bool(np.linalg.matrix_rank(affine[:3, :3] / lengths) == 3)


def fit_spacing(
    affine: NDArray[np.float64], spacing: tuple[float, float, float], unit: Unit | None
) -> NDArray[np.float64]:
    """Return an affine in mm with columns as long as the voxels, which are others if the user has changed the spacing.

    Args:
        affine: (4, 4), invertible, in mm.
        spacing: along z, y, x.
        unit: of the spacing; None for mm. If the user has changed this alone, the origin is in that unit, too.

    Example:
        >>> fit_spacing(np.diag([1.0, 1, 3, 1]), (6.0, 1.0, 1.0), None).diagonal().tolist()
        [1.0, 1.0, 6.0, 1.0]
    """
    own = 1.0 if unit is None else millimetres(unit)
    sizes = np.array(spacing[::-1])
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    fitted = affine.copy()
    if np.allclose(lengths, sizes, rtol=1e-3, atol=0):
        fitted[:3] *= own
    elif not np.allclose(lengths, sizes * own, rtol=1e-3, atol=0):
        fitted[:3, :3] *= sizes * own / lengths
    return fitted
