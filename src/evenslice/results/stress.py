"""What a slice is worth to the result: the loss of Dice when slices of the windows are lost, damaged or out of order.

The class map of a slice is predicted from its window as it is (intact), from the reversed window, and from windows in
which the neighbour at -k, the one at +k, or both are disturbed. With hits, and the sizes of a class in the reference and in
the answer, summed over the slices of a volume,

    Dice_c = 2 hits_c / (size_c in the reference + size_c in the answer)        loss = intact Dice - disturbed Dice

The reference is the labels, or without labels the intact answer; Dice is then the agreement with it, and that of the
intact answer is 1. The mean is over the classes that the reference or the intact answer has, without class 0, then over
volumes. A class that the reference lacks counts as 0, with disturbed windows, too. The asymmetry of a loss is the loss at -k
less the loss at +k: above 0 if the slices before were worth more, to this network in these volumes: it need not be 0 for a
symmetric network.

Intervals are those of slices as a sample of each volume, with volumes as strata (Cochran 1977, *Sampling Techniques*,
chapter 5), from the slices' influence on the Dice of their volume: to first order, a slice with h hits and sizes s moves
Dice = 2 H / S by (2 h - Dice s) / S. Both sides are measured on the same slices, so the differences are paired. Slices without
any of the classes do not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evenslice.results.intervals import UNKNOWN, Interval, PooledMean, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]


@dataclass(frozen=True)
class DisturbedScore:
    """The score of the answers to disturbed windows; NaN where undefined.

    Attributes:
        dice: mean Dice of the classes that the reference or the intact answer has, 0..1.
        iou: the same for intersection over union.
        dice_per_class: (C,) Dice of each class, means over volumes.
        loss: intact Dice less this one, -1..1, with its 95 % interval.
    """

    dice: float
    iou: float
    dice_per_class: tuple[float, ...]
    loss: Interval


@dataclass(frozen=True)
class Loss:
    """What one kind of disturbance costs at one distance from the middle slice.

    Attributes:
        kind: "missing", "blank", "noisy" or "shifted".
        offset: k, in places of the window, 1..K.
        before: with the slice at -k disturbed.
        after: with the slice at +k disturbed.
        both: with both.
        asymmetry: the loss before less the loss after, -1..1, with its 95 % interval.
    """

    kind: str
    offset: int
    before: DisturbedScore
    after: DisturbedScore
    both: DisturbedScore
    asymmetry: Interval


@dataclass(frozen=True)
class Stress:
    """What disturbed slices cost a network.

    Attributes:
        reference: "labels" or "intact answer".
        slices: number of slices whose windows were disturbed.
        intact: the score of the intact windows on the same slices; its loss is 0.
        reversed: that of the reversed windows.
        losses: one for each kind and each k.
        blank: the scaled intensity of blank slices.
        noise: standard deviation of the noise of noisy slices, where 1 is the range of the scaled intensities.
        shift: pixels by which shifted slices are translated along x; their first column is repeated.
    """

    reference: str
    slices: int
    intact: DisturbedScore
    reversed: DisturbedScore
    losses: tuple[Loss, ...]
    blank: float = 0.0
    noise: float = 0.1
    shift: int = 8

    @classmethod
    def of_counts(
        cls, volume: Counts, hits: Counts, sizes: Counts, kinds: Sequence[tuple[str, int]], *, reference: str
    ) -> Self:
        """Compute the cost of disturbed slices, from how n slices were answered in v ways, for C classes.

        Args:
            volume: (n,) index of the volume of each slice.
            hits: (n, v, C) pixels of a class that were answered with it; the v ways are intact, reversed, and for each kind
                before, after and both.
            sizes: (n, v, C) pixels of a class in the reference plus those in the answer.
            kinds: the kind and the offset k of each three ways.
            reference: "labels" or "intact answer".

        Example: the slice before is worth half of the hits, that after nothing.
            >>> hits = np.array([[[9, 4], [9, 4], [9, 2], [9, 4], [9, 2]]] * 3)
            >>> volume, sizes = np.zeros(3, int), np.full_like(hits, 8)
            >>> found = Stress.of_counts(volume, hits, sizes, [("missing", 1)], reference="labels")
            >>> found.losses[0].before.loss.estimate, found.losses[0].after.loss, found.losses[0].asymmetry.estimate
            (0.5, Interval(estimate=0.0, low=0.0, high=0.0), 0.5)
        """
        dice, iou, by_class, influence = _scores(volume, hits, sizes)
        effects = _effects(volume, dice, influence, [(0, way) for way in range(hits.shape[1])])
        means = nan_mean(dice).tolist(), nan_mean(iou).tolist(), map(tuple, nan_mean(by_class).tolist())
        scores = [DisturbedScore(*way) for way in zip(*means, effects, strict=True)]
        firsts = range(2, hits.shape[1], 3)  # of before, after and both
        # The loss before less the loss after is the Dice after less the Dice before.
        asymmetries = _effects(volume, dice, influence, [(first + 1, first) for first in firsts])
        losses = tuple(
            Loss(kind, offset, scores[first], scores[first + 1], scores[first + 2], asymmetry)
            for (kind, offset), first, asymmetry in zip(kinds, firsts, asymmetries, strict=True)
        )
        return cls(reference, len(volume), scores[0], scores[1], losses)

    def summary(self) -> StressSummary:
        """Return the short form."""
        losses = [
            BriefLoss(
                each.kind, each.offset, each.before.dice, each.after.dice, each.both.dice, each.asymmetry
            )
            for each in self.losses
        ]
        return StressSummary(self.reference, self.slices, self.intact.dice, self.reversed.dice, tuple(losses))


@dataclass(frozen=True)
class BriefLoss:
    """The mean Dice with the slice at -k, at +k or both disturbed, and the asymmetry of the loss; see ``Loss``."""

    kind: str
    offset: int
    before: float
    after: float
    both: float
    asymmetry: Interval


@dataclass(frozen=True)
class StressSummary:
    """The short form of ``Stress``: mean Dice alone.

    Attributes:
        reference: "labels" or "intact answer".
        slices: number of slices whose windows were disturbed.
        intact: mean Dice of the intact windows.
        reversed: that of the reversed windows.
        losses: one for each kind and each k.
    """

    reference: str
    slices: int
    intact: float
    reversed: float
    losses: tuple[BriefLoss, ...]

    def lost(self, kind: str, offset: int, side: str) -> float:
        """Return a loss with the slice at a side disturbed, or its "asymmetry"; NaN if unknown. Kind "reversed" has no side."""
        if kind == "reversed":
            return self.intact - self.reversed
        for loss in self.losses:
            if (loss.kind, loss.offset) == (kind, offset):
                return loss.asymmetry.estimate if side == "asymmetry" else self.intact - getattr(loss, side)
        return math.nan


def _scores(volume: Counts, hits: Counts, sizes: Counts) -> tuple[Floats, Floats, Floats, Floats]:
    """Return mean Dice and IoU (volumes, v), Dice of each class (volumes, v, C), and the influence (n, v) of each slice.

    The influence is what a slice adds to the Dice of its volume, with mean 0 over the slices that count; NaN for others.
    """
    volumes = np.unique(volume).tolist()
    dice, iou = np.full((2, len(volumes), hits.shape[1]), np.nan)
    influence = np.full(hits.shape[:2], np.nan)
    classes = []
    for row, number in enumerate(volumes):
        here = volume == number
        own, both = hits[here], sizes[here]
        pooled = ratio(2 * own.sum(axis=0), both.sum(axis=0))
        classes.append(pooled)
        present = np.flatnonzero(both[:, 0].sum(axis=0)[1:]) + 1
        if not len(present):
            continue
        # Of a class that the reference lacks, a disturbed answer may have nothing either.
        pooled = np.nan_to_num(pooled)
        dice[row] = pooled[:, present].mean(axis=1)
        iou[row] = (pooled / (2 - pooled))[:, present].mean(axis=1)
        totals = np.maximum(both.sum(axis=0)[:, present], 1)
        moved = (2 * own - pooled * both)[:, :, present] / totals
        part = (both[:, :, present] / totals).mean(axis=2)
        counted = part.any(axis=1)
        influence[here] = np.where(counted[:, None], counted.sum() * moved.mean(axis=2), np.nan)
    return dice, iou, np.array(classes), influence


def _effects(
    volume: Counts, dice: Floats, influence: Floats, pairs: Sequence[tuple[int, int]]
) -> tuple[Interval, ...]:
    """Return the difference in Dice of pairs of ways, the first less the second, with 95 % intervals.

    Args:
        volume: (n,) that of each slice.
        dice: (volumes, ways).
        influence: (n, ways) of each slice.
        pairs: of ways.
    """
    one, other = np.array(pairs).T
    known = ~np.isnan(influence[:, 0])
    if not known.any():
        return (UNKNOWN,) * len(pairs)
    moved = influence[known][:, one] - influence[known][:, other]  # with mean 0 in each volume
    parts = [moved[volume[known] == number] for number in np.unique(volume[known])]
    each = [np.square(part).sum(axis=0) / max(len(part) - 1, 1) / len(part) for part in parts]
    freedom = len(moved) - len(parts)
    error = np.sqrt(np.sum(each, axis=0)) / len(parts)
    if freedom < 1 or min(map(len, parts)) < 2:
        error, freedom = np.full_like(error, np.inf), 1
    means = nan_mean(dice[:, one] - dice[:, other])  # the mean of the values, without their rounding
    rows = zip(means.tolist(), error.tolist(), strict=True)
    return tuple(PooledMean(*row, freedom).interval((-1.0, 1.0)) for row in rows)


def nan_mean(values: Floats) -> Floats:
    """Return the mean over the first axis of the values that are not NaN; NaN where all are."""
    valid = ~np.isnan(values)
    return ratio(np.where(valid, values, 0).sum(axis=0), valid.sum(axis=0))
