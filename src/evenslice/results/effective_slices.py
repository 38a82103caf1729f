"""How many slices of equal weight are worth as much as some of unequal weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["effective_slices"]


def effective_slices(whole: ArrayLike, positions: ArrayLike, volumes: ArrayLike) -> NDArray[np.float64]:
    """Return the effective numbers (q,) of slices of q ratios: (sum w)^2 / sum(w^2) (Kish 1965, Survey Sampling, 11.7).

    Args:
        whole: (n, q) what each window weighs, at least 0.
        positions: (n,) position of the windows along z; those of one slice count together.
        volumes: (n,) index of the volume of each window; each volume counts the same.

    Returns:
        The numbers; that of all slices where nothing weighs anything.

    Example:
        >>> effective_slices([[2.0], [2.0], [0.0]], positions=[0, 1, 2], volumes=[0, 0, 0]).tolist()
        [2.0]
    """
    weight = np.asarray(whole, dtype=np.float64)
    _, volume, windows = np.unique(np.asarray(volumes), return_inverse=True, return_counts=True)
    places, place = np.unique(np.stack([volume, np.asarray(positions)]), axis=1, return_inverse=True)
    sums = np.zeros((places.shape[1], weight.shape[1]))
    np.add.at(sums, place.ravel(), weight / windows[volume, None])
    squares, same = (sums**2).sum(axis=0), np.full(weight.shape[1], float(len(sums)))
    return np.asarray(np.divide(sums.sum(axis=0) ** 2, squares, out=same, where=squares > 0))
