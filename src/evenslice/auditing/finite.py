"""Windows for which a network returns no numbers or has no finite gradient: an audit ends with the first of them.

NaN equals nothing and exceeds nothing, so such windows would count as agreement, or would be left out without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenslice._core import ModelError, option

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.measurer import Explained, Measurer

__all__ = ["check_finite"]


def check_finite(measurer: Measurer, found: Explained, places: NDArray[Any], method: str) -> Explained:
    """Return what a method found for windows, if it is finite.

    A gradient that is not finite passes if the user has asked for occlusion: what it was to tell is then unknown.

    Args:
        measurer: of the audit.
        found: for m windows and their mirrors.
        places: (m, 4) volume, z, y, x of each window.
        method: that found it.

    Raises:
        ModelError: the output or the attribution is NaN or infinite.
    """
    for item in (found.given, found.mirrored):
        if found_at := _first(measurer, item.output, places):
            what, place = found_at
            raise ModelError(f"the network returns {what} for {place}; it has to return finite numbers")
        if method != "occlusion" and measurer.methods.first == "occlusion":
            continue
        if found_at := _first(measurer, item.attribution, places):
            what, place = found_at
            if method == "occlusion":
                raise ModelError(
                    f"the network returns {what} where a slice of {place} is replaced by gray; it has to return finite "
                    "numbers"
                )
            raise ModelError(
                f"the network's gradient is {what} for {place}; use {option('method', 'occlusion')}"
            )
    return found


def _first(measurer: Measurer, values: Tensor, places: NDArray[Any]) -> tuple[str, str] | None:
    """Return "NaN" or "infinity", and the first window whose values (m, ...) hold it; None if all are finite."""
    finite = values.isfinite().reshape(len(values), -1).all(dim=1)
    if bool(finite.all()):
        return None
    row = int(finite.logical_not().nonzero()[0])
    volume, *place = places[row].tolist()
    what = "NaN" if bool(values[row].isnan().any()) else "infinity"
    return what, f"the window at z, y, x = {tuple(place)} of {measurer.grids[volume].volume.path}"
