"""The kernels of a network's stems, before and after they were changed, for figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["StemKernels"]


@dataclass(frozen=True, eq=False)
class StemKernels:
    """The kernels of one stem as they act on the image; a linear stem has ky = kx = 1.

    Where one channel feeds several features of the stem, as after space to depth, their kernels lie side by side, in a
    square if their number is a square.

    Attributes:
        name: the stem.
        before: (filters, C, ky, kx) float32, the response to one unit of each channel. Channels and slices are in the
            unit that all slices share from now on, so a normalization by channel is part of the kernels.
        after: (filters, N, ky, kx) float32, the response to one unit of each slice.
    """

    name: str
    before: NDArray[np.float32]
    after: NDArray[np.float32]
