"""Mirror mismatch that may be rounding alone is measured again in float64.

Where an activation hits the corner of a ReLU, as on a constant background, rounding decides which side it is on, and with it
a whole path of the gradient. A network that is the same function of both neighbours then seems to use them a little
differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from evenslice.inference import ReadyNetwork
from evenslice.neutralizing import in_float64
from evenslice.results import SAME_OUTPUT

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.measurer import Measurer

__all__ = ["USE_FIELDS", "remove_rounding"]

USE_FIELDS = ("mismatch", "outer")
"""The fields of ``Measurements`` from which the mirror mismatch E is computed."""

DOUBTFUL = 0.001
"""Smallest mirror mismatch that matters to a verdict."""


def remove_rounding(
    measurer: Measurer,
    windows: Tensor,
    labels: Tensor | None,
    rows: dict[str, NDArray[np.float64]],
) -> None:
    """Replace the mirror mismatch of windows whose output is that of their mirrors by the one in float64, in place.

    Where the output differs by more than rounding, so does the use of the slices, and nothing is computed again; nor for
    windows without a mismatch, nor for functions and for networks that do not compute in float64.

    Args:
        measurer: of the audit.
        windows: (m, N, y, x).
        labels: (m, y, x) for the target "labels".
        rows: fields of ``Measurements`` of these windows.
    """
    with np.errstate(
        invalid="ignore"
    ):  # no attribution at all is NaN, and so is a window that is its own mirror
        mismatch = rows["mismatch"].sum(axis=1) / rows["outer"].sum(axis=1)
        doubtful = (mismatch > DOUBTFUL) & (rows["mirror_error"] <= SAME_OUTPUT)
    if not doubtful.any() or not isinstance(measurer.network, ReadyNetwork):
        return
    some = np.flatnonzero(doubtful)
    try:
        precise = measurer.in_precision(torch.float64)
        with in_float64(precise.network):
            exact = precise.explain_both(
                windows[some], None if labels is None else labels[some], method=measurer.methods.use
            )
    except Exception:  # noqa: BLE001  # a network may refuse float64 by any exception
        return
    again = exact.rows(classes=measurer.classes)
    for name in USE_FIELDS:
        rows[name][some] = again[name]
