"""Simulated answers whose loss is known: how often do the 95 % intervals of the stress test hold the truth?

An intact answer is perfect; without the neighbour, each slice loses a part of its foreground that is log-normal with mean
0.1. The foreground is an organ, largest in the middle; parts are autoregressions along z. The test reads every fifth slice; the
truth is that of all slices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evenslice.results import Stress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LOST = 0.1  # mean part of the foreground that is lost
SPREAD = 0.5  # standard deviation of its logarithm
EVERY = 5  # slices of the volume for one that is read
AREA = 10_000  # pixels of foreground in a slice of 10^6


def autoregression(generator: np.random.Generator, count: int, correlation: float) -> Floats:
    """Return standard normal values, whose neighbours are correlated."""
    noise = generator.normal(size=count)
    values = [float(noise[0])]
    for new in noise[1:]:
        values.append(correlation * values[-1] + (1 - correlation**2) ** 0.5 * float(new))
    return np.array(values)


def organ(slices: int, inside: int) -> Floats:
    """Return areas of an organ that is in some slices, largest in the middle one."""
    place = (np.arange(slices) - (slices - 1) / 2) / (inside / 2)
    return np.asarray(AREA * np.maximum(0.0, 1 - place**2))


def counts(
    generator: np.random.Generator, areas: Floats, correlation: float
) -> tuple[NDArray[np.int64], ...]:
    """Return volume, hits and sizes of a stress test with one kind of disturbance at one distance."""
    whole = np.round(areas).astype(np.int64)
    lost = [
        np.minimum(
            LOST * np.exp(SPREAD * autoregression(generator, len(areas), correlation) - SPREAD**2 / 2), 1
        )
        for _ in range(2)
    ]
    before, after = (np.round(whole * (1 - part)).astype(np.int64) for part in lost)
    hits = np.stack([whole, whole, before, after, before], axis=1)
    background = np.full_like(hits, 10**6)
    # What is missing is taken for background, and as much background for foreground: Dice is the part that is kept.
    sizes = np.repeat(2 * whole[:, None], hits.shape[1], axis=1)
    return (
        np.zeros(len(areas), np.int64),
        np.stack([background, hits], axis=2),
        np.stack([2 * background, sizes], axis=2),
    )


def coverage(slices: int, correlation: float, runs: int, inside: int) -> tuple[float, float]:
    """Return how often the intervals of the loss and of the asymmetry hold those of all slices of the volume.

    Args:
        slices: that are read, evenly spread over ``EVERY`` times as many.
        correlation: of neighbouring slices.
        runs: number of simulations.
        inside: the slices of them that the organ is in.
    """
    generator = np.random.default_rng(0)
    held = np.zeros(2)
    for run in range(runs):
        whole = counts(generator, organ(EVERY * slices, EVERY * inside), correlation)
        read = [part[run % EVERY :: EVERY] for part in whole]
        loss, truth = (
            Stress.of_counts(*part, [("missing", 1)], reference="labels").losses[0] for part in (read, whole)
        )
        held += (
            loss.before.loss.low <= truth.before.loss.estimate <= loss.before.loss.high,
            loss.asymmetry.low <= truth.asymmetry.estimate <= loss.asymmetry.high,
        )
    of_loss, of_asymmetry = (held / runs).tolist()
    return of_loss, of_asymmetry
