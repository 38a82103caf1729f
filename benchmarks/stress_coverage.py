"""How often the 95 % intervals of the stress test hold the truth, in simulated answers whose loss is known.

    python benchmarks/stress_coverage.py [--runs 1000]

An intact answer is perfect; without the neighbour, each slice loses a part of its foreground that is log-normal with mean
0.1. Parts and foreground are autoregressions along z. The test reads every fifth slice; the truth is that of all slices.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from evenslice.results.stress import StressCounts, summarize_stress

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


def scattered(
    generator: np.random.Generator, slices: int, part: float, spread: float, correlation: float
) -> Floats:
    """Return areas of foreground that lies in a part of the slices."""
    areas = AREA * np.exp(spread * autoregression(generator, slices, correlation))
    inside = ndtr(autoregression(generator, slices, correlation)) < part
    return np.asarray(np.where(inside, areas, 0.0))


def organ(slices: int, inside: int) -> Floats:
    """Return areas of an organ that is in some slices, largest in the middle one."""
    place = (np.arange(slices) - (slices - 1) / 2) / (inside / 2)
    return np.asarray(AREA * np.maximum(0.0, 1 - place**2))


def counts(generator: np.random.Generator, areas: Floats, correlation: float) -> StressCounts:
    """Return what a stress test with one kind of disturbance at one distance counts."""
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
    return StressCounts(
        np.zeros(len(areas), np.int64),
        np.arange(len(areas)),
        np.stack([background, hits], axis=2),
        np.stack([2 * background, sizes], axis=2),
    )


def coverage(slices: int, correlation: float, runs: int, **foreground: float) -> tuple[float, float]:
    """Return how often the intervals of the loss and of the asymmetry hold those of all slices of the volume.

    Args:
        slices: that are read, evenly spread over ``EVERY`` times as many.
        correlation: of neighbouring slices.
        runs: number of simulations.
        foreground: ``inside``, the slices of an organ, or ``part`` and ``spread`` of scattered foreground.
    """
    generator = np.random.default_rng(0)
    held = np.zeros(2)
    for run in range(runs):
        if "inside" in foreground:
            areas = organ(EVERY * slices, EVERY * int(foreground["inside"]))
        else:
            areas = scattered(
                generator, EVERY * slices, foreground["part"], foreground["spread"], correlation
            )
        whole = counts(generator, areas, correlation)
        read = StressCounts(*(part[run % EVERY :: EVERY] for part in whole))
        if np.count_nonzero(read.hits[:, 0, 1]) < 2:
            held += 1  # nothing is claimed
            continue
        loss, truth = (
            summarize_stress(part, [("missing", 1)], reference="labels", noise=0, shift=0).losses[0]
            for part in (read, whole)
        )
        held += (
            loss.before.loss.low <= truth.before.loss.estimate <= loss.before.loss.high,
            loss.asymmetry.low <= truth.asymmetry.estimate <= loss.asymmetry.high,
        )
    of_loss, of_asymmetry = (held / runs).tolist()
    return of_loss, of_asymmetry


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    print(
        "| foreground | correlation | covers the loss, % | covers the asymmetry, % |\n| --- | --- | --- | --- |"
    )
    settings: list[tuple[str, int, dict[str, float]]] = [
        ("all of 60 slices", 60, {"part": 1.0, "spread": 0.5}),
        ("half of 60 slices, uneven", 60, {"part": 0.5, "spread": 1.0}),
        ("an organ in 24 of 60 slices", 60, {"inside": 24}),
        ("an organ in 8 of 60 slices", 60, {"inside": 8}),
        ("an organ in 6 of 16 slices", 16, {"inside": 6}),
    ]
    for name, slices, foreground in settings:
        for correlation in (0.0, 0.8):
            loss, asymmetry = coverage(slices, correlation, runs, **foreground)
            print(f"| {name} | {correlation:g} | {100 * loss:.1f} | {100 * asymmetry:.1f} |", flush=True)


if __name__ == "__main__":
    main()
