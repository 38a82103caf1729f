"""What an audit keeps of each window: sums of attributions and changes, from which all figures are ratios."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.results.ratios import ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["SAME", "SAME_USE", "Measurements"]

SAME = 1e-4
"""Largest difference of a window from its mirror that rounding may explain, relative to the largest output."""

SAME_USE = 1e-3
"""Largest mirror mismatch that rounding may explain where outputs are the same: a tenth of the tolerance."""

CLASSES_LAST = ("pixels", "changed", "union")
CLASSES_INSIDE = {"saliency": 2, "reliance": 2, "explained": 1, "mismatch": 1, "outer": 1}


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements on n windows of N = 2K + 1 slices; row i belongs to window i.

    Attributions and changes are in the order in which the network was given the slices: index j is offset j - K of its
    input. An axis of 2 holds the window and its mirror; an axis of 1 + C all predicted pixels, and those of each class.

    Attributes:
        volume: (n,) index of the volume a window was taken from.
        position: (n, 3) window centre slice z and in-plane origin y, x, in voxels.
        saliency: (n, 2, 1 + C, N) absolute attribution of what is explained, by pixels of the input; NaN if not measured.
        reliance: (n, 2, 1 + C, N) absolute change of what is explained if the slice is replaced by the middle one, added
            over pixels of the output; 0 for the middle slice.
        explained: (n, 1 + C) absolute value of what is explained, mean of window and mirror.
        mismatch: (n, 1 + C, K) sum of |a_k(x) - a_-k(x')| and |a_-k(x) - a_k(x')| over pixels, a the signed attribution by
            gradient, or by replacement where there is none; 0 for a window that is its own mirror.
        outer: (n, 1 + C, K) the absolute attribution that ``mismatch`` compares.
        pixels: (n, C) part of the output's pixels in each class, mean of the answers to window and mirror.
        changed: (n, C) part of the pixels that are in the class in one of the two answers alone.
        union: (n, C) part that is in the class in either; 0 for a window that is its own mirror.
        wasserstein: (n, K) Wasserstein-1 distance between the saliency distributions of offsets k and -k, pooled over
            the window and its mirror, in units of their mean saliency; N at most.
        mirror_error: (n,) largest change of the output when the window is reversed, relative to the largest output; of classes
            that exclude each other, logits less their mean over classes; NaN for class numbers.
        mirror_disagreement: (n,) part of the output's pixels whose class changes; NaN if the output has no classes.
        change: (n,) mean square of the change of what is explained when the window is reversed; NaN for class numbers.
        power: (n,) mean square of what is explained, less its mean over pixels or tokens if it has any; likewise.
        level: (n, F) what is explained, if it has no pixels: at most 256 numbers; else (n, 1) zeros.
        clamped: (n,) part of the probabilities that were clamped to [1e-6, 1 - 1e-6].
        own_mirror: (n,) 1 if the window is its own mirror, such as an empty one, else 0: it does not tell whether the order
            of its slices matters.
    """

    volume: NDArray[np.int64]
    position: NDArray[np.int64]
    saliency: Floats
    reliance: Floats
    explained: Floats
    mismatch: Floats
    outer: Floats
    pixels: Floats
    changed: Floats
    union: Floats
    wasserstein: Floats
    mirror_error: Floats
    mirror_disagreement: Floats
    change: Floats
    power: Floats
    level: Floats
    clamped: Floats
    own_mirror: Floats

    def __len__(self) -> int:
        return len(self.volume)

    @property
    def slices(self) -> int:
        """N."""
        return int(self.saliency.shape[-1])

    @property
    def classes(self) -> int:
        """C, one more than the highest class seen."""
        return int(self.pixels.shape[1])

    @property
    def shares(self) -> Floats:
        """The share (n, 2, N) of each slice in the saliency of window and mirror; NaN without saliency."""
        sums = self.saliency[:, :, 0]
        return ratio(sums, sums.sum(axis=-1, keepdims=True))

    @property
    def equal(self) -> NDArray[np.bool_]:
        """Which windows (n,) equal their mirrors up to rounding, in scores, attributions and changes."""
        output = np.where(np.isnan(self.mirror_error), self.mirror_disagreement, self.mirror_error) <= SAME
        use = self.mismatch.sum(axis=2) <= SAME_USE * self.outer.sum(axis=2)
        off = np.abs(self.reliance[:, 0] - self.reliance[:, 1, :, ::-1]).sum(axis=-1)
        changes = off <= SAME * np.maximum(self.explained, self.reliance.sum(axis=(1, 3)))
        return np.asarray(output & use.all(axis=1) & changes.all(axis=1))

    def at(self, rows: Any) -> Measurements:
        """Return those of some windows."""
        return Measurements(**{entry.name: getattr(self, entry.name)[rows] for entry in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, NDArray[Any]]]) -> Self:
        """Join batches of windows, each a mapping of all fields; a batch may have seen fewer classes than another."""
        classes = max(part["pixels"].shape[1] for part in parts)
        features = {part["level"].shape[1] for part in parts}
        joined = {}
        for name in parts[0]:
            arrays = [_with_classes(name, part[name], classes) for part in parts]
            if name == "level" and len(features) > 1:
                arrays = [array.mean(axis=1, keepdims=True) for array in arrays]
            joined[name] = np.concatenate(arrays)
        return cls(**joined)


def _with_classes(name: str, values: NDArray[Any], classes: int) -> NDArray[Any]:
    """Fill up the classes that a batch did not see with zeros."""
    if name in CLASSES_LAST:
        axis, missing = 1, classes - values.shape[1]
    elif name in CLASSES_INSIDE:
        axis, missing = CLASSES_INSIDE[name], classes + 1 - values.shape[CLASSES_INSIDE[name]]
    else:
        return values
    return np.pad(values, [(0, missing if axis == number else 0) for number in range(values.ndim)])
