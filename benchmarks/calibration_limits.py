"""Simulated audits near the limits of what intervals can promise: volumes that differ, and differences that few windows have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from calibration_simulations import TOLERANCE

from evenslice.results.intervals import fit_means, fit_ratio
from evenslice.results.thresholds import Thresholds
from evenslice.results.verdicts import BIASED_LEVEL, WITHIN_LEVEL, WITHIN_LEVEL_OF_RATIOS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rare:
    """Simulated audits of a difference that few windows have, and these wholly.

    Attributes:
        name: "answer", or "attention" (a pair bias).
        truth: mean over all windows: C, or the pair bias.
        slices: windows along z, one a slice, without correlation.
        part: of the windows that have the difference; of the others, it is 0.
    """

    name: str
    truth: float
    slices: int
    part: float


def rare_rates(setting: Rare, audits: int, seed: int) -> dict[str, float]:
    """Return how often the interval covers the truth, and how often it lies within the tolerance."""
    rng = np.random.default_rng([seed, crc32(str(setting).encode())])
    z, shape = np.arange(setting.slices), (setting.slices, audits)
    values = np.where(rng.random(shape) < setting.part, setting.truth / setting.part, 0.0)
    if setting.name == "attention":
        fit, level, tolerance = (
            fit_means(values + 0.01 * rng.standard_normal(shape), z),
            WITHIN_LEVEL,
            TOLERANCE,
        )
    else:
        whole = np.exp(0.2 * rng.standard_normal(shape))
        fit = replace(fit_ratio(values * whole, whole, z), unseen=np.asarray(~values.any(axis=0)))
        level, tolerance = WITHIN_LEVEL_OF_RATIOS, Thresholds.answer
    low, high = fit.bounds()
    return {
        "coverage": float(((low <= setting.truth) & (setting.truth <= high)).mean()),
        "balanced": float((fit.bounds(level)[1] <= tolerance).mean()),
    }


def rare_settings() -> Iterator[Rare]:
    """Yield differences of one window in twenty to one in five, at the tolerances, in few and in many windows."""
    for name, part in (("answer", 0.05), ("answer", 0.2), ("attention", 0.1), ("attention", 0.2)):
        truth = Thresholds.answer if name == "answer" else TOLERANCE
        for slices in (8, 12, 20, 40, 62, 100):
            yield Rare(name, truth, slices, part)


@dataclass(frozen=True)
class SeveralVolumes:
    """Simulated audits of the answer in several volumes, of which each has its own foreground and its own C.

    Attributes:
        volumes: number of volumes, with 12 windows each.
        foreground: standard deviation of the logarithm of the foreground between volumes.
        answer: that of C.
    """

    volumes: int
    foreground: float
    answer: float


def several_rates(setting: SeveralVolumes, audits: int, seed: int) -> dict[str, float]:
    """Return how often C is rightly and wrongly found beyond or within its tolerance, and how often the interval covers it."""
    rng = np.random.default_rng([seed, crc32(str(setting).encode())])
    windows = 12

    def draw(between: float) -> Floats:
        levels = between * rng.standard_normal((setting.volumes, 1, audits)) - between**2 / 2
        own = 0.5 * rng.standard_normal((setting.volumes, windows, audits)) - 0.125
        return np.exp(levels + own).reshape(-1, audits)

    whole, ratio = draw(setting.foreground), draw(setting.answer)
    z = np.tile(np.arange(windows), setting.volumes)
    volume = np.repeat(np.arange(setting.volumes), windows)
    # All bounds are proportional to C, so 1 stands for its tolerance.
    fit = fit_ratio(ratio * whole, whole, z, volume)
    low, high = fit.bounds()
    beyond, within = fit.bounds(BIASED_LEVEL)[0], fit.bounds(WITHIN_LEVEL_OF_RATIOS)[1]
    return {
        "coverage": float(((low <= 1) & (high >= 1)).mean()),
        "biased": float((beyond > 1).mean()),
        "balanced": float((within <= 1).mean()),
        "found beyond": float((beyond > 1 / 5).mean()),
        "found within": float((within <= 5).mean()),
    }


def several_settings() -> Iterator[SeveralVolumes]:
    """Yield volumes that are alike, and volumes that differ; there are requirements up to a spread of 1."""
    spreads = ((0.0, 0.5), (0.0, 1.0), (1.0, 0.5), (1.0, 1.0), (1.5, 1.0))
    for volumes, (foreground, answer) in product((2, 3, 4, 6, 12, 30), spreads):
        yield SeveralVolumes(volumes, foreground, answer)
