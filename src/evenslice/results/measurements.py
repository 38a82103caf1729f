"""What an audit keeps of each window: sums of attributions and changes, from which all figures are ratios, and biases.

For the shares s_-K..s_K of one window, in the order in which the network saw its slices, and every pair k = 1..K

    pair bias          B_k = (s_k - s_-k) / (s_k + s_-k)                               0 where both are 0
    directional bias   D = (sum of s_k, k > 0, - sum of s_k, k < 0) / (sum of both)    0 where all are 0

lie in [-1, 1], and for either, with its values at a window x and its mirror x' (the same slices in reversed order),
exactly

    model part   (D(x) + D(x')) / 2     0 for a mirror-symmetric network, whatever the data
    data part    (D(x) - D(x')) / 2
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evenslice.results.intervals import ratio
from evenslice.results.tolerances import Tolerances

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements on n windows of N = 2K + 1 slices; row i belongs to window i.

    Attributions and changes are in the order in which the network was given the slices: index j is offset j - K of its
    input. An axis of 2 holds the window and its mirror; an axis of G = 1 + C all predicted pixels, and those of each class.

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
        SAME: largest difference of a window from its mirror that rounding may explain, relative to the largest output.
    """

    SAME: ClassVar[float] = 1e-4
    volume: Annotated[Whole, "n"]
    position: Annotated[Whole, "n 3"]
    saliency: Annotated[Floats, "n 2 G N"]
    reliance: Annotated[Floats, "n 2 G N"]
    explained: Annotated[Floats, "n G"]
    mismatch: Annotated[Floats, "n G K"]
    outer: Annotated[Floats, "n G K"]
    pixels: Annotated[Floats, "n C"]
    changed: Annotated[Floats, "n C"]
    union: Annotated[Floats, "n C"]
    wasserstein: Annotated[Floats, "n K"]
    mirror_error: Annotated[Floats, "n"]
    mirror_disagreement: Annotated[Floats, "n"]
    change: Annotated[Floats, "n"]
    power: Annotated[Floats, "n"]
    level: Annotated[Floats, "n F"]
    clamped: Annotated[Floats, "n"]
    own_mirror: Annotated[Floats, "n"]

    def __len__(self) -> int:
        return len(self.volume)

    @property
    def moved(self) -> bool:
        """Whether anything in the windows moves the output, or it differs between windows."""
        explained = self.explained
        varies = np.ptp(explained, axis=0) > self.SAME * explained.max(axis=0)
        moved = np.nan_to_num(self.mirror_disagreement), self.mirror_error > self.SAME
        return any(part.any() for part in (varies, self.saliency, self.reliance, self.outer, *moved))

    @property
    def slices(self) -> int:
        """N."""
        return int(self.saliency.shape[-1])

    @property
    def shares(self) -> Floats:
        """The share (n, 2, N) of each slice in the saliency of window and mirror; NaN without saliency."""
        sums = self.saliency[:, :, 0]
        return ratio(sums, sums.sum(axis=-1, keepdims=True))

    @property
    def equal(self) -> bool:
        """Whether all windows equal their mirrors up to rounding, in scores, attributions and changes."""
        error = np.where(np.isnan(self.mirror_error), self.mirror_disagreement, self.mirror_error)
        # Rounding decides here and there on which side of a ReLU's corner an activation is, and with it a path of the gradient.
        unlike, outer = self.mismatch.sum(axis=2), self.outer.sum(axis=2)
        use = (unlike <= Tolerances.mismatch_tolerance * outer).all()
        use &= (unlike.sum(axis=0) <= 10 * self.SAME * outer.sum(axis=0)).all()
        off = np.abs(self.reliance[:, 0] - self.reliance[:, 1, :, ::-1]).sum(axis=-1)
        changes = off <= self.SAME * np.maximum(self.explained, self.reliance.sum(axis=(1, 3)))
        return bool((error <= self.SAME).all() and use and changes.all())

    def at(self, rows: Any) -> Measurements:
        """Return those of some windows."""
        return Measurements(**{entry.name: getattr(self, entry.name)[rows] for entry in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, NDArray[Any]]]) -> Self:
        """Join batches of windows, each a mapping of all fields; a batch may have seen fewer classes than another."""
        joined = {}
        for name in (entry.name for entry in fields(cls)):
            arrays = [part[name] for part in parts]
            if name == "level" and len({array.shape[1] for array in arrays}) > 1:
                arrays = [array.mean(axis=1, keepdims=True) for array in arrays]
            largest = np.max([array.shape[1:] for array in arrays], axis=0)
            for n, array in enumerate(arrays):  # zeros for the classes that a batch did not see
                more = (largest - array.shape[1:]).astype(int).tolist()
                arrays[n] = np.pad(array, [(0, 0), *((0, length) for length in more)])
            joined[name] = np.concatenate(arrays)
        return cls(**joined)

    @staticmethod
    def mean_biases(shares: Floats) -> dict[str, float]:
        """Return mean shares and biases as the log of a training names them; NaN without windows whose shares are known.

        These are the mean share of each offset, the model part D_m of the directional bias, the asymmetry A (half the L1
        distance between the shares and their mirror) and the imbalance U (half that between the shares and 1/N).

        Args:
            shares: (n, 2, N) those of windows and of their mirrors.

        Example:
            >>> Measurements.mean_biases(np.full((1, 2, 1), 1.0))
            {'share_0': 1.0, 'directional_bias': 0.0, 'asymmetry': 0.0, 'imbalance': 0.0}
        """
        parts = shares.mean(axis=1), directional_bias(shares).mean(axis=1)
        known = ~np.isnan(shares).any(axis=(1, 2))
        profile, direction = (part[known].mean(axis=0) if known.any() else part[0] * np.nan for part in parts)
        half = len(profile) // 2
        return {
            **{f"share_{k - half}": float(share) for k, share in enumerate(profile)},
            "directional_bias": float(direction),
            "asymmetry": float(np.abs(profile - profile[::-1]).sum() / 2),
            "imbalance": float(np.abs(profile - 1 / len(profile)).sum() / 2),
        }


def pair_bias(shares: Floats) -> Floats:
    """Return the pair biases B_1..B_K (..., K) of shares (..., N); NaN where a share is NaN.

    Example:
        >>> pair_bias(np.array([[0.125, 0.5, 0.375], [0.0, 1.0, 0.0]])).tolist()
        [[0.5], [0.0]]
    """
    left, right = halves(shares)
    return _contrast(right, left)


def directional_bias(shares: Floats) -> Floats:
    """Return the directional bias D (...) of shares (..., N): positive if later slices get more attention.

    Example:
        >>> directional_bias(np.array([[0.1, 0.1, 0.2, 0.3, 0.3]])).round(6).tolist()
        [0.5]
    """
    left, right = halves(shares)
    return _contrast(right.sum(axis=-1), left.sum(axis=-1))


def halves(array: Floats) -> tuple[Floats, Floats]:
    """Return the parts of an array (..., N) for offsets -1..-K and for 1..K, both (..., K)."""
    half = array.shape[-1] // 2
    return array[..., :half][..., ::-1], array[..., half + 1 :]


def _contrast(right: Floats, left: Floats) -> Floats:
    total = right + left
    return np.divide(right - left, total, out=np.zeros_like(total), where=total != 0)
