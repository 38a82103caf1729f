"""The colour balance of a network's stems: the weight of each channel, and the part that a gray image does not excite.

For the kernels W_c of the channels c = 1..C, all filters and taps together, the energy of a channel is |W_c|^2, the sum
of squares. A gray image is the same in every channel, so it only excites sum_c W_c: the projection of the kernels on
equal channels, of energy |sum_c W_c|^2 / C. The rest is chromatic:

    chromatic part  =  1 - |sum_c W_c|^2 / (C sum_c |W_c|^2)

It is 0 if all channels have the same kernels and 1 if they cancel out. Energies of several stems are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ColourBalance", "colour_balance"]


@dataclass(frozen=True)
class ColourBalance:
    """The weights that a network's stems give to channels.

    Attributes:
        energy: of each channel, as a share of the energy of all, 0..1; they sum to 1.
        chromatic: part of the energy that an image of equal channels does not excite, 0..1.
    """

    energy: tuple[float, ...]
    chromatic: float


def colour_balance(kernels: Sequence[NDArray[Any]]) -> ColourBalance:
    """Compute the colour balance of stems.

    Args:
        kernels: the effective kernels of each stem, (filters, C, ...), from ``Record.kernels`` or
            ``evenslice.neutralizing.folding.effective_kernels``; all with the same C.

    Raises:
        ModelError: the stems have different numbers of channels, or their kernels are all 0 or not finite.

    Example: one filter that subtracts twice the second channel from the first.
        >>> colour_balance([np.array([[1.0, -2.0]])])
        ColourBalance(energy=(0.2, 0.8), chromatic=0.9)
    """
    stems = [np.asarray(stem, dtype=np.float64).reshape(*stem.shape[:2], -1) for stem in kernels]
    counts = {stem.shape[1] for stem in stems}
    if len(counts) != 1:
        raise ModelError(
            f"the stems read {' and '.join(map(str, sorted(counts))) or 'no'} channels; they must all read the same"
        )
    by_channel = sum(np.square(stem).sum(axis=(0, 2)) for stem in stems)
    total = float(np.sum(by_channel))
    if not (np.isfinite(total) and total > 0):
        raise ModelError("the kernels of the stems are all 0 or not finite; check the weights of the network")
    gray = sum(float(np.square(stem.sum(axis=1)).sum()) for stem in stems)
    return ColourBalance(
        energy=tuple((by_channel / total).tolist()),
        chromatic=max(0.0, 1 - gray / (counts.pop() * total)),  # rounding may take it below 0
    )
